"""What LaTeX commands and plain names stand for.

Tables only; the parser looks names up here and nowhere else, and model text never names anything in Python.
"""

from posttrain.rewards.math_answers.limits import words

OPERATORS = {
    r"\times": "*", r"\cdot": "*", r"\ast": "*", r"\div": "/", r"\slash": "/",
    r"\le": "<=", r"\leq": "<=", r"\leqslant": "<=", r"\ge": ">=", r"\geq": ">=", r"\geqslant": ">=",
    r"\lt": "<", r"\gt": ">", r"\ne": "!=", r"\neq": "!=", r"\approx": "~", r"\simeq": "~", r"\doteq": "~",
    r"\in": "in", r"\cup": "cup", r"\bigcup": "cup", r"\cap": "cap", r"\setminus": "minus", r"\backslash": "minus",
    r"\pm": "±", r"\mp": "∓", r"\to": "to", r"\rightarrow": "to", r"\colon": ":", r"\mid": "mid",
    r"\lor": "or", r"\vee": "or", r"\land": "and", r"\wedge": "and", r"\degree": "degree", r"\prime": "'",
    r"\choose": "choose", 
    r"\equiv": "=", r"\iff": "=", r"\%": "%", r"\#": "#",
    "**": "^", "==": "=", "<=": "<=", ">=": ">=", "!=": "!=",
    "+/-": "±", "->": "to",
}  # fmt: skip
OPENING = {r"\{": "{", r"\lbrace": "{", r"\lbrack": "[", r"\lfloor": "floor", r"\lceil": "ceil", r"\langle": "<"}
OPENING |= {r"\lvert": "|", r"\lVert": "|", r"\lgroup": "("}
CLOSING = {r"\}": "}", r"\rbrace": "}", r"\rbrack": "]", r"\rfloor": "floor", r"\rceil": "ceil", r"\rangle": ">"}
CLOSING |= {r"\rvert": "|", r"\rVert": "|", r"\rgroup": ")"}

TRIGONOMETRIC = frozenset({"sin", "cos", "tan", "cot", "sec", "csc"})
INVERSE = {name: f"arc{name}" for name in TRIGONOMETRIC}
HYPERBOLIC = frozenset({"sinh", "cosh", "tanh"})
FUNCTIONS = (
    TRIGONOMETRIC
    | HYPERBOLIC
    | frozenset(INVERSE.values())
    | frozenset(
        {"log", "ln", "lg", "exp", "gcd", "lcm", "min", "max", "cis", "floor", "ceil", "abs", "sgn", "erf", "det"}
    )
    | frozenset({"Re", "Im", "arg", "deg", "dim", "ker"})
)
FUNCTION_NAMES = {name: name for name in FUNCTIONS} | {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "Arcsin": "arcsin", "Arccos": "arccos", "Arctan": "arctan",
    "cosec": "csc", "arcctg": "arccot", "tg": "tan", "ctg": "cot", "ceiling": "ceil", "sqrt": "sqrt", "cbrt": "cbrt",
}  # fmt: skip
LETTER_FUNCTIONS = {r"\Gamma": "gamma", r"\zeta": "zeta"}  # functions before a bracket, letters elsewhere
GREEK = words(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi chi psi omega"
)
BIG = {r"\sum": "sum", r"\prod": "prod", r"\int": "int", r"\lim": "lim"}
CURRENCIES = {r"\$": "dollar", "€": "euro", "£": "sterling", "¥": "yen"}
CONSTANTS = {"pi": "pi", "e": "e", "i": "i", "infty": "infinity", "infinity": "infinity", "inf": "infinity"}
CONSTANTS |= {"oo": "infinity", "imath": "i"}
PREFIXES = {r"\frac": "frac", r"\dfrac": "frac", r"\tfrac": "frac", r"\cfrac": "frac", r"\sqrt": "sqrt"}
PREFIXES |= {r"\binom": "binom", r"\dbinom": "binom", r"\tbinom": "binom", r"\pmod": "pmod"}
ACCENTS = {
    f"\\{name}": name
    for name in ("overline", "bar", "vec", "hat", "tilde", "dot", "ddot", "underline", "widehat", "mathbb")
}
ACCENTS |= {r"\overrightarrow": "vec", r"\widetilde": "tilde"}

# Commands that only set how things look.
IGNORED = words(
    "displaystyle textstyle scriptstyle left right middle big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr "
    "Biggl Biggr boxed fbox framebox limits nolimits nonumber quad qquad rm bf it tt sf cal bold mathrm mathbf "
    "mathit  mathsf mathtt mathcal mathfrak mathscr boldsymbol bm pmb text textbf textit textrm textsf texttt "
    "textnormal mbox  hbox emph operatorname ensuremath mathop mathord mathop phantom hfill hspace"
)
WORDS = words(
    "yes no none true false odd even east west north south one two three four five six seven eight nine ten red "
    "both all not non of per the is was it but if for"
)
