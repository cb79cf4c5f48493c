"""The program of the symbolic child: reads a question a line, forks, answers "equal", "different" or "unknown".

Stands alone, for it is started by its path: it imports sympy and nothing of posttrain.
"""

import json
import os
import resource
import select
import signal
import sys
from typing import Any

import sympy

MAX_EVENTS = 400_000  # calls and returns of one question: the bound that decides, the same on every machine
CPU_SECONDS = 0.4  # for what calls nothing, such as one long multiplication; the kernel ends the fork
WALL_SECONDS = 3.0  # of one that sleeps, or on a machine too busy to give it its CPU time
MEMORY_BYTES = 256 * 2**20  # of address space, sympy itself included
MAX_ARGUMENT = 5000  # of powers and of what grows as fast
GROWING = ("gamma", "zeta", "factorial", "double factorial", "binom")

FUNCTIONS = {
    "sqrt": sympy.sqrt,
    "cbrt": sympy.cbrt,
    "root": sympy.root,
    "ln": sympy.log,
    "exp": sympy.exp,
    "abs": sympy.Abs,
    "sin": sympy.sin,
    "cos": sympy.cos,
    "tan": sympy.tan,
    "cot": sympy.cot,
    "sec": sympy.sec,
    "csc": sympy.csc,
    "arcsin": sympy.asin,
    "arccos": sympy.acos,
    "arctan": sympy.atan,
    "arccot": sympy.acot,
    "sinh": sympy.sinh,
    "cosh": sympy.cosh,
    "tanh": sympy.tanh,
    "factorial": sympy.factorial,
    "double factorial": sympy.factorial2,
    "binom": sympy.binomial,
    "floor": sympy.floor,
    "ceil": sympy.ceiling,
    "gcd": sympy.gcd,
    "lcm": sympy.lcm,
    "min": sympy.Min,
    "max": sympy.Max,
    "sgn": sympy.sign,
    "Re": sympy.re,
    "Im": sympy.im,
    "gamma": sympy.gamma,
    "zeta": sympy.zeta,
    "erf": sympy.erf,
}
CONSTANTS = {"pi": sympy.pi, "e": sympy.E, "i": sympy.I, "infinity": sympy.oo}
OPERATIONS: dict[str, Any] = {
    "+": sympy.Add,
    "*": sympy.Mul,
    "^": sympy.Pow,
    "/": lambda x, y: x / y,
    "neg": lambda x: -x,
    "percent": lambda x: x / 100,
    "degree": lambda x: x,
    "unit": lambda x: x,
}
BIG: dict[str, Any] = {
    "sum": lambda body, name, low, high: sympy.Sum(body, (name, low, high)),
    "prod": lambda body, name, low, high: sympy.Product(body, (name, low, high)),
    "int": lambda body, name, low, high: sympy.Integral(body, (name, low, high)),
    "lim": lambda body, name, low: sympy.Limit(body, name, low, dir="+-" if low.is_finite else "-"),
}


def main() -> None:
    """Answer questions until the input ends."""
    warm_up()
    print("ready", flush=True)
    for line in sys.stdin:
        print(answer_in_fork(line), flush=True)


def warm_up() -> None:
    """Do once what questions do, so that forks find sympy's modules loaded."""
    n, k = sympy.symbols("n k")
    sympy.simplify(sympy.Sum(k, (k, 1, n)).doit() - n * (n + 1) / 2)
    sympy.Integral(sympy.sin(k), (k, 0, 1)).doit()
    sympy.Integral(sympy.exp(-(k**2)), (k, 0, sympy.oo)).doit()
    sympy.simplify(sympy.Sum(1 / 2**k, (k, 1, sympy.oo)).doit() - 1)
    sympy.Limit(sympy.sin(k) / k, k, 0).doit()


def answer_in_fork(line: str) -> str:
    """Return what a fork answers, or how it ended; it is killed at the limits."""
    reading, writing = os.pipe()
    fork = os.fork()
    if fork == 0:
        os.close(reading)
        confine()
        count_events(writing)
        try:
            said = answer(json.loads(line))
        except MemoryError:
            said = "too much memory"
        except Exception as error:
            said = f"unknown {type(error).__name__}".split()[0]
        finish(writing, said)
    os.close(writing)
    readable, _, _ = select.select([reading], [], [], WALL_SECONDS)
    said = os.read(reading, 256).decode() if readable else ""
    os.close(reading)
    if not said:
        os.kill(fork, signal.SIGKILL)
    os.waitpid(fork, 0)
    return said or f"more than {CPU_SECONDS} s of CPU, or {WALL_SECONDS} s in all"


def finish(writing: int, said: str) -> None:
    """Say the answer and end this fork at once."""
    os.write(writing, said.encode())
    os._exit(0)


def count_events(writing: int) -> None:
    """End this fork after so many calls and returns of functions."""
    left = MAX_EVENTS

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            finish(writing, f"more than {MAX_EVENTS} calls")

    sys.setprofile(count)


def confine() -> None:
    """Limit this process; what exceeds the CPU time is ended by the timer's signal, whatever it is doing."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)


def answer(question: dict[str, Any]) -> str:
    """Return whether two expressions are equal, as far as sympy can tell."""
    difference = build(question["first"]) - build(question["second"])
    difference = difference.doit()
    if difference.has(sympy.nan, sympy.zoo):
        return "unknown"
    if difference == 0 or sympy.simplify(difference) == 0:
        return "equal"
    if difference.free_symbols:
        names = sorted(difference.free_symbols, key=str)
        difference = difference.subs({name: sympy.Integer(3 + 2 * at) for at, name in enumerate(names)}).doit()
    if difference.has(sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit):
        return "unknown"
    value = sympy.N(difference, 30)
    return "different" if value.is_number and value.is_finite and abs(value) > sympy.Float("1e-12") else "unknown"


def build(rows: list[list[Any]]) -> Any:
    """Return the sympy expression of a tree's rows, built node by node from these tables alone."""
    stack: list[Any] = []
    for head, value, count in rows:
        args = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        stack.append(build_node(head, value, args))
    return stack[0]


def build_node(head: str, value: Any, args: list[Any]) -> Any:
    """Return one node; raises KeyError for one that sympy is not asked about."""
    if head == "number":
        return sympy.Rational(int(value[0]), int(value[1]))
    if head == "symbol":
        return sympy.Symbol(f"_{value}")
    if head == "constant":
        return CONSTANTS[value]
    if head == "call":
        if value in GROWING and any(arg.is_number and abs(arg) > MAX_ARGUMENT for arg in args):
            raise OverflowError
        return FUNCTIONS[value](*args)
    if head == "big":
        return BIG[value](*args)
    if head == "^" and args[0].is_number and args[1].is_number and abs(args[1]) > MAX_ARGUMENT:
        raise OverflowError
    return OPERATIONS[head](*args)


if __name__ == "__main__":
    main()
