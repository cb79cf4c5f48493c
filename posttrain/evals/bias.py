"""What scores like besides better answers: length and style, compared among the answers to one prompt.

Pure numpy and scipy. Everything is centred on its prompt's mean (prompt fixed effects), so that no difference between
prompts enters a slope. Its variance is the jackknife's over prompts (CR3; Cameron & Miller 2015, "A Practitioner's
Guide to Cluster-Robust Inference", section VI), with t of one degree of freedom less than there are prompts whose
answers differ in the feature. Reward models' love of length: Singhal et al. 2023, arXiv 2310.03716.
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


def within_slope(
    outcome: np.ndarray, feature: np.ndarray, prompts: np.ndarray, controls: Sequence[np.ndarray] = ()
) -> Slope | None:
    """Return the least-squares slope of an outcome `(N,)` on a feature `(N,)` within prompts `(N,)`, beside controls.

    None where answers to fewer than MIN_PROMPTS prompts differ in the feature, where controls leave nothing of it, or
    where the outcome is the same everywhere.
    """
    _, group = np.unique(prompts, return_inverse=True)
    y, x, *others = (_centred(values.astype(float), group) for values in (outcome, feature, *controls))
    varying = int((np.bincount(group, x != 0) > 0).sum())
    spread = float(np.sqrt((x**2).sum()))
    if varying < MIN_PROMPTS or not (y**2).sum() > 0:
        return None
    columns = [x / spread, *(other / np.sqrt((other**2).sum()) for other in others if (other**2).sum() > 0)]
    design = np.stack(columns, axis=1)  # (N, K), each column of length 1
    products = np.stack([np.bincount(group, a * b) for a in columns for b in columns], axis=1)
    gram = products.reshape(-1, len(columns), len(columns))  # (P, K, K), of each prompt
    moments = np.stack([np.bincount(group, column * y) for column in columns], axis=1)  # (P, K)
    whole = gram.sum(axis=0)
    by_controls = whole[0, 1:] @ np.linalg.pinv(whole[1:, 1:], hermitian=True) @ whole[1:, 0]  # R^2 of the feature
    if 1 - by_controls < 1e-6:
        return None
    slope = float((np.linalg.pinv(whole, hermitian=True) @ moments.sum(axis=0))[0])
    rest = np.linalg.pinv(whole - gram, hermitian=True)[:, 0]  # (P, K)
    without = (rest * (design.T @ y - moments)).sum(axis=1)  # (P,), the slope without each prompt
    error = float(np.sqrt((varying - 1) / varying * ((without - slope) ** 2).sum()))
    t = slope / error if error > 0 else np.inf * np.sign(slope)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, varying - 1)) * error
    return Slope(
        slope=slope / spread,
        interval=Interval((slope - half) / spread, (slope + half) / spread),
        p=float(2 * stats.t.sf(abs(t), varying - 1)) if slope else 1.0,
        standardised=slope / float(np.sqrt((y**2).sum())),
        prompts=varying,
    )


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
    judge: str = "labels",
) -> dict[str, Any]:
    """Return what scores `(N,)` like of completions, with lengths in tokens, texts and the numbers of their prompts.

    `judged` says how good each is known to be (of a pair 1 and 0), and `judge` what these are called: their own slopes
    stand beside the scores', which tells the data's bias from the model's. `findings` has a sentence for each bias,
    none where there is none: significant at 5% (of several, by Holm) and above SMALL.
    """
    hundreds = lengths / UNIT
    slopes = {
        "scores": within_slope(scores, hundreds, prompts),
        "judged": None if judged is None else within_slope(judged, hundreds, prompts),
        "scores_beside_judged": None if judged is None else within_slope(scores, hundreds, prompts, [judged]),
    }
    biased, sentence = _length_words(slopes["scores"], slopes["judged"], slopes["scores_beside_judged"], judge)
    style = _style(scores, hundreds, texts, prompts, judged)
    findings = [sentence] * biased + [_style_words(name, row, judge) for name, row in style.items() if row["found"]]
    return {
        "prompts": int((np.unique(prompts, return_counts=True)[1] > 1).sum()),  # with answers to compare
        "length_per_100_tokens": {name: None if slope is None else slope._asdict() for name, slope in slopes.items()},
        "length": sentence,
        "style_at_equal_length": style,
        "findings": findings,
    }


def _length_words(total: Slope | None, judged: Slope | None, beside: Slope | None, judge: str) -> tuple[bool, str]:
    """Return whether length is liked for itself, as far as can be told, and what was found in one sentence."""
    if total is None:
        return False, f"length: fewer than {MIN_PROMPTS} prompts have answers that differ in length and in score"
    tested = [total] if beside is None else [total, beside]
    found = [
        p < 1 - CONFIDENCE and abs(slope.standardised) >= SMALL
        for slope, p in zip(tested, holm([slope.p for slope in tested]), strict=True)
    ]
    inseparable = judged is not None and (beside is None or abs(judged.standardised) >= INSEPARABLE)
    own = total if beside is None or not found[1] else beside
    longer = "longer" if own.slope > 0 else "shorter"
    biased = True
    if not any(found):
        biased, head = False, "no preference for longer or shorter answers"
    elif beside is None or found[1] or inseparable:
        head = f"prefers {longer} answers"
    else:
        biased, head = False, f"{longer} answers score higher only as far as they are judged better"
    parts = [f"{head}: {_words(total)} per {UNIT} tokens, correlation {total.standardised:+.2f}"]
    if judged is not None:
        parts.append(f"the {judge} themselves {_words(judged)}, correlation {judged.standardised:+.2f}")
    if beside is not None:
        parts.append(f"among answers judged alike {_words(beside)}")
    if biased and inseparable:
        parts.append("length and judgement are too close here to be told apart")
    return biased, "; ".join(parts)


def _style(
    scores: np.ndarray, lengths: np.ndarray, texts: Sequence[str], prompts: np.ndarray, judged: np.ndarray | None
) -> dict[str, dict[str, Any]]:
    """Return of each feature that can be asked for its slope beside length, in standard deviations within prompts."""
    rows: dict[str, dict[str, Any]] = {}
    for name, measure in STYLE.items():
        values = np.array([measure(text) for text in texts])
        slope = _standardised_slope(scores, values, prompts, lengths)
        if slope is not None:
            of_judged = None if judged is None else _standardised_slope(judged, values, prompts, lengths)
            rows[name] = {**slope._asdict(), "judged": None if of_judged is None else of_judged._asdict()}
    for row, p in zip(rows.values(), holm([row["p"] for row in rows.values()]), strict=True):
        row["p_holm"], row["found"] = p, p < 1 - CONFIDENCE and abs(row["slope"]) >= SMALL
    return rows


def _standardised_slope(
    outcome: np.ndarray, feature: np.ndarray, prompts: np.ndarray, lengths: np.ndarray
) -> Slope | None:
    _, group = np.unique(prompts, return_inverse=True)

    def scaled(values: np.ndarray) -> np.ndarray:
        spread = float(np.sqrt((_centred(values, group) ** 2).mean()))
        return values / spread if spread else values

    return within_slope(scaled(outcome.astype(float)), scaled(feature), prompts, [lengths])


def _style_words(name: str, row: dict[str, Any], judge: str) -> str:
    low, high = row["interval"]
    words = f"prefers {'more' if row['slope'] > 0 else 'fewer'} {name} at equal length: {row['slope']:+.2f}"
    words += f" [{low:+.2f}, {high:+.2f}] standard deviations for one more"
    judged = row["judged"]
    return words if judged is None else f"{words}; the {judge} themselves {judged['slope']:+.2f}"


def _words(slope: Slope) -> str:
    return f"{slope.slope:+.3g} [{slope.interval.low:+.3g}, {slope.interval.high:+.3g}]"


def _centred(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return values minus their prompt's mean; exactly 0 where a prompt's are all the same."""
    means = np.bincount(group, values) / np.bincount(group)
    centred = values - means[group]
    return np.where(np.abs(centred) <= 1e-12 * np.abs(values).max(initial=1.0), 0.0, centred)
