"""What scores like besides better answers: length and style, compared among the answers to one prompt.

Pure numpy and scipy. Everything is centred on its prompt's mean (prompt fixed effects), so that no difference between
prompts enters a slope. Its variance is the jackknife's over prompts (CR3; Cameron & Miller 2015, "A Practitioner's
Guide to Cluster-Robust Inference", section VI), with t of as many degrees of freedom as there are prompts whose answers
differ in the feature, less the features. Reward models' love of length: Singhal et al. 2023, arXiv 2310.03716.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from posttrain.evals.stats import CONFIDENCE, Interval, holm

MIN_PROMPTS = 10  # with answers that differ in a feature: below that, its slope is not asked for
SMALL = 0.1  # standard deviations (of a correlation, its own scale): a smaller effect is no finding
INSEPARABLE = 0.5  # correlation of judgement and length from which the one explains nothing about the other
UNIT = 100  # tokens

_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")
_STEP = re.compile(r"\b(?:first|second|third|then|next|after that|finally|step)\b", re.IGNORECASE)
_HEDGE = re.compile(r"\b(?:maybe|perhaps|probably|possibly|might|may|could|seems?|likely|i think|not sure)\b", re.I)


def _count(pattern: str) -> Callable[[str], float]:
    compiled = re.compile(pattern, re.MULTILINE)
    return lambda text: float(len(compiled.findall(text)))


def words_per_sentence(text: str) -> float:
    """Return the words of a text over its sentences, of which it has at least one."""
    return len(text.split()) / max(1, len(_SENTENCE_END.findall(text)))


STYLE: dict[str, Callable[[str], float]] = {
    "list items": _count(r"^\s*(?:[-*•]|\d+[.)])\s"),
    "bold": _count(r"\*\*[^*\n]+\*\*"),
    "headings": _count(r"^#{1,6}\s"),
    "question marks": _count(r"\?"),
    "exclamation marks": _count("!"),
    "digits": _count(r"\d"),
    "step words": lambda text: float(len(_STEP.findall(text))),
    "hedges": lambda text: float(len(_HEDGE.findall(text))),
    "words per sentence": words_per_sentence,
}


class Slope(NamedTuple):
    """How much more an outcome is, among answers to one prompt, for one more of a feature."""

    slope: float
    interval: Interval
    p: float  # two-sided, that it is 0
    standardised: float  # in standard deviations of both within prompts; without controls, their correlation
    prompts: int  # whose answers differ in the feature


def within_slopes(outcome: np.ndarray, features: Sequence[np.ndarray], prompts: np.ndarray) -> list[Slope | None]:
    """Return the least-squares slopes of an outcome `(N,)` on features `(N,)` together, within prompts `(N,)`.

    A slope is None where answers to fewer than MIN_PROMPTS prompts differ in its feature, where the other features
    leave nothing of it, or where the outcome is the same everywhere.
    """
    _, group = np.unique(prompts, return_inverse=True)
    y = _centred(outcome, group)
    centred = [_centred(feature, group) for feature in features]
    spreads = [float(np.sqrt((x**2).sum())) for x in centred]
    used = [index for index, spread in enumerate(spreads) if spread > 0]
    found: list[Slope | None] = [None] * len(features)
    if not used or not y.any():
        return found
    columns = [centred[index] / spreads[index] for index in used]  # each of length 1
    products = np.stack([np.bincount(group, a * b) for a in columns for b in columns], axis=1)
    gram = products.reshape(-1, len(used), len(used))  # (P, K, K), of each prompt
    moments = np.stack([np.bincount(group, column * y) for column in columns], axis=1)  # (P, K)
    whole, total = gram.sum(axis=0), moments.sum(axis=0)
    slopes = np.linalg.pinv(whole, hermitian=True) @ total
    without = np.einsum("pkl,pl->pk", np.linalg.pinv(whole - gram, hermitian=True), total - moments)
    squares = ((without - slopes) ** 2).sum(axis=0)
    for place, index in enumerate(used):
        varying = int((np.bincount(group, columns[place] != 0) > 0).sum())
        freedom = varying - len(used)
        if varying < MIN_PROMPTS or freedom < 1 or _explained(whole, place) > 1 - 1e-6:
            continue
        slope, spread = float(slopes[place]), spreads[index]
        error = float(np.sqrt((varying - 1) / varying * squares[place]))
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
        t = abs(slope) / error if error > 0 else np.inf
        found[index] = Slope(
            slope=slope / spread,
            interval=Interval((slope - half) / spread, (slope + half) / spread),
            p=float(2 * stats.t.sf(t, freedom)) if slope else 1.0,
            standardised=slope / float(np.sqrt((y**2).sum())),
            prompts=varying,
        )
    return found


def _explained(gram: np.ndarray, place: int) -> float:
    """Return the share of a column's squares that the others explain, from the products of columns of length 1."""
    others = np.arange(len(gram)) != place
    to_others = gram[place, others]
    return float(to_others @ np.linalg.pinv(gram[np.ix_(others, others)], hermitian=True) @ to_others)


def number_of_each(prompts: Sequence[Hashable]) -> np.ndarray:
    """Return a number for each prompt, equal for equal ones."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts])


def bias_report(
    scores: np.ndarray,
    lengths: np.ndarray,
    texts: Sequence[str],
    prompts: np.ndarray,
    judged: np.ndarray | None = None,
    *,
    judge: str = "the labels themselves",
) -> dict[str, Any]:
    """Return what scores `(N,)` like of completions, with lengths in tokens, texts and the numbers of their prompts.

    `judged` says how good each is known to be (of a pair 1 and 0), and `judge` what these are called: their own slopes
    stand beside the scores', which tells the data's bias from the model's. `findings` has a sentence for each bias,
    none where there is none: significant at 5% (of several, by Holm) and above SMALL.
    """
    hundreds = lengths / UNIT
    slopes = {
        "scores": within_slopes(scores, [hundreds], prompts)[0],
        "judged": None if judged is None else within_slopes(judged, [hundreds], prompts)[0],
        "scores_beside_judged": None if judged is None else within_slopes(scores, [hundreds, judged], prompts)[0],
    }
    _, group, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    spread = float(np.sqrt((_centred(lengths, group) ** 2).sum() / max(1, (sizes - 1).sum())))
    biased, sentence = _length_words(**slopes, judge=judge, spread=spread)
    style = _style(scores, hundreds, texts, prompts, judged)
    findings = [sentence] * biased + [_style_words(name, row, judge) for name, row in style.items() if row["found"]]
    return {
        "prompts": int((sizes > 1).sum()),  # with answers to compare
        "length_spread": spread,
        "length_per_100_tokens": {name: None if slope is None else slope._asdict() for name, slope in slopes.items()},
        "length": sentence,
        "style_at_equal_length": style,
        "findings": findings,
    }


def _length_words(
    scores: Slope | None, judged: Slope | None, scores_beside_judged: Slope | None, *, judge: str, spread: float
) -> tuple[bool, str]:
    """Return whether length is liked for itself, as far as can be told, and what was found in one sentence.

    `spread` is the standard deviation of lengths within prompts, in tokens.
    """
    total, beside = scores, scores_beside_judged
    if total is None:
        return False, f"length: fewer than {MIN_PROMPTS} prompts have answers that differ in length and in score"
    inseparable = judged is not None and (beside is None or abs(judged.standardised) >= INSEPARABLE)
    tested = [total] if beside is None or inseparable else [total, beside]
    sure = [p < 1 - CONFIDENCE for p in holm([slope.p for slope in tested])]
    found = [yes and abs(slope.standardised) >= SMALL for slope, yes in zip(tested, sure, strict=True)]
    follows = judged is not None and judged.p < 1 - CONFIDENCE and judged.slope * total.slope > 0
    biased = found[-1] or (found[0] and not follows)
    longer = "longer" if (tested[-1] if found[-1] or not sure[0] else total).slope > 0 else "shorter"
    if biased:
        head = f"prefers {longer} answers"
    elif found[0]:
        head = f"{longer} answers score higher only as far as they are judged better"
    elif any(sure):
        head = f"at most a slight preference for {longer} answers"
    else:
        head = "no preference for longer or shorter answers"
    parts = [
        f"{head}: {_words(total)}, correlation {total.standardised:+.2f}, where lengths spread by {spread:.3g} tokens"
    ]
    if judged is not None:
        parts.append(f"{judge} {_words(judged)}, correlation {judged.standardised:+.2f}")
    if beside is not None and not inseparable:
        parts.append(f"among answers judged alike {_words(beside)}")
    if inseparable:
        parts.append("length and judgement are too close here to be told apart")
    return biased, "; ".join(parts)


def _style(
    scores: np.ndarray, lengths: np.ndarray, texts: Sequence[str], prompts: np.ndarray, judged: np.ndarray | None
) -> dict[str, dict[str, Any]]:
    """Return of each feature that can be asked for its slope beside length and the others.

    Scores, features and judgements are in standard deviations within prompts.
    """
    _, group = np.unique(prompts, return_inverse=True)
    values = [np.array([measure(text) for text in texts]) for measure in STYLE.values()]
    design = [_standardised(column, group) for column in (*values, lengths)]
    slopes = within_slopes(_standardised(scores, group), design, prompts)
    of_judged: list[Slope | None] = [None] * len(design)
    if judged is not None:
        of_judged = within_slopes(_standardised(judged, group), design, prompts)
    rows: dict[str, dict[str, Any]] = {
        name: {**slope._asdict(), "judged": None if judgement is None else judgement._asdict()}
        for name, slope, judgement in zip(STYLE, slopes, of_judged, strict=False)  # length is the last
        if slope is not None
    }
    for row, p in zip(rows.values(), holm([row["p"] for row in rows.values()]), strict=True):
        row["p_holm"], row["found"] = p, p < 1 - CONFIDENCE and abs(row["slope"]) >= SMALL
    return rows


def _style_words(name: str, row: dict[str, Any], judge: str) -> str:
    low, high = row["interval"]
    words = f"prefers {'more' if row['slope'] > 0 else 'fewer'} {name} at equal length: {row['slope']:+.2f}"
    words += f" [{low:+.2f}, {high:+.2f}] standard deviations of score for one of it"
    judged = row["judged"]
    return words if judged is None else f"{words}; {judge} {judged['slope']:+.2f}"


def _words(slope: Slope) -> str:
    return f"{slope.slope:+.3g} per {UNIT} tokens [{slope.interval.low:+.3g}, {slope.interval.high:+.3g}]"


def _standardised(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return values over their standard deviation within prompts; as they are where it is 0."""
    spread = float(np.sqrt((_centred(values, group) ** 2).mean()))
    return values / spread if spread else values


def _centred(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return values minus their prompt's mean; exactly 0 where a prompt's are all the same."""
    values = values.astype(float)
    means = np.bincount(group, values) / np.bincount(group)
    centred = values - means[group]
    return np.where(np.abs(centred) <= 1e-12 * np.abs(values).max(initial=1.0), 0.0, centred)
