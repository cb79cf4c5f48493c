"""How often a model's answers win against another's: raw, at equal length, and what a judge adds of its own.

Numpy, scipy and statsmodels. Of N comparisons, `wins` (N,) is 1 where the model won, 0.5 for a tie, 0 where it lost,
and `prompts` (N,) numbers their prompts. The prompt is the unit: its comparisons, in either order, are alike.
"""

import warnings
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from posttrain.evals.stats import CONFIDENCE, Interval, paired_difference, wilson_interval

MIN_PROMPTS = 10  # below that, length is not controlled for


class Rate(NamedTuple):
    """A share and its 95% interval."""

    rate: float
    interval: Interval

    def to_json(self) -> dict[str, float]:
        """Return mean, low and high."""
        return {"mean": self.rate, **self.interval._asdict()}


class Agreement(NamedTuple):
    """How far two judges say the same; kappa is None where one of them has one verdict for everything."""

    items: int
    accuracy: Rate
    kappa: float | None
    kappa_interval: Interval | None


def wins_by_score(scores: np.ndarray, opponents: np.ndarray) -> np.ndarray:
    """Return the `wins` (N,) of scores (N,) against an opponent's; equal scores tie."""
    return (np.sign(scores - opponents) + 1) / 2


def win_rate(wins: np.ndarray, prompts: np.ndarray) -> Rate:
    """Return the mean over one or more prompts of the share of wins, ties as half a win.

    A win less a loss is a paired difference of 1, 0 or -1, so the interval is that of `paired_difference`.
    """
    _, group, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    return _rate(np.bincount(group, wins) / sizes, sizes)


def first_shown_rate(wins: np.ndarray, model_first: np.ndarray, prompts: np.ndarray) -> Rate | None:
    """Return how often the answer that is shown first wins, ties as half; without position bias it is 0.5.

    `model_first` (N,) says where the model's answer came first; each prompt has both orders, or one drawn by chance.
    Both orders weigh the same: with w the model's win rate in one order, the rate is (w_first + 1 - w_second) / 2,
    into which it does not enter which model is better, nor which order is more frequent. None where one is missing.
    """
    first = model_first.astype(bool)
    if not 0 < first.sum() < len(first):
        return None
    order_means = np.where(first, wins[first].mean(), wins[~first].mean())
    order_sizes = np.where(first, first.sum(), (~first).sum())
    _, group, sizes = np.unique(prompts, return_inverse=True, return_counts=True)
    rate = (wins[first].mean() + 1 - wins[~first].mean()) / 2
    pulls = np.bincount(group, np.where(first, 1, -1) * (wins - order_means) / (2 * order_sizes))  # of each prompt
    return _rate(rate + len(sizes) * pulls, sizes)


def _rate(shares: np.ndarray, sizes: np.ndarray) -> Rate:
    """Return the mean of each prompt's share, from as many comparisons as `sizes` says."""
    found = paired_difference(1 - shares, shares, samples=int(sizes.min()))
    return Rate((1 + found.mean) / 2, Interval(*((1 + end) / 2 for end in found.interval)))


def length_controlled_win_rate(wins: np.ndarray, length_gaps: np.ndarray, prompts: np.ndarray) -> Rate | None:
    """Return the win rate where both answers are equally long.

    Of the logistic model of AlpacaEval 2 (Dubois et al. 2024, "Length-Controlled AlpacaEval", arXiv 2404.04475),
    logit P(win) = model + length * tanh(gap / std(gap)), with `length_gaps` (N,) the tokens that the model's answers
    are longer; its term for the difficulty of an instruction needs many models and is left out. Errors are clustered by
    prompt, t of as many degrees of freedom as there are prompts less 2; the ends are those of the logit. A win and a
    loss, each of weight 1/2, are added for either coefficient (the prior log-F(1, 1) of Greenland & Mansournia 2015):
    a model that always wins, or always where it is longer, then has a finite estimate, and an interval that is wide
    where length and model cannot be told apart. None below MIN_PROMPTS prompts, and where all gaps are the same but
    not 0: then nothing says what length does.
    """
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    numbers, group = np.unique(prompts, return_inverse=True)
    if len(numbers) < MIN_PROMPTS or (np.ptp(length_gaps) == 0 and length_gaps[0] != 0):
        return None
    spread = float(length_gaps.std()) or 1.0
    model_and_length = np.column_stack([np.ones(len(wins)), np.tanh(length_gaps / spread)])
    with warnings.catch_warnings():  # of weights with clusters, which a test does by hand, and of separation
        warnings.filterwarnings("ignore", module="statsmodels")
        fit = GLM(
            np.concatenate([wins, [1, 0, 1, 0]]),
            np.concatenate([model_and_length, [[1, 0], [1, 0], [0, 1], [0, 1]]]),
            family=Binomial(),
            var_weights=np.concatenate([np.ones(len(wins)), np.full(4, 0.5)]),
        ).fit(cov_type="cluster", cov_kwds={"groups": np.concatenate([group, len(numbers) + np.arange(4)])})
    logit = float(fit.params[0])
    half = float(special.stdtrit(len(numbers) - 2, (1 + CONFIDENCE) / 2) * fit.bse[0])
    rate, low, high = (float(special.expit(end)) for end in (logit, logit - half, logit + half))
    return Rate(rate, Interval(low, high))


def agreement(verdicts: Sequence[Hashable], labels: Sequence[Hashable]) -> Agreement:
    """Return how far a judge's verdicts agree with (human) labels of the same one or more items, each item once.

    Accuracy with Wilson's interval, and Cohen's kappa (1960), the agreement beyond that of two who answer by chance
    with the same frequencies. Kappa's interval is the asymptotic one, with two items added that are spread over all
    pairs of verdicts: without them it covers 88 to 93% at 50 items, and is a point where the two agree on everything.
    """
    from statsmodels.stats.inter_rater import cohens_kappa

    same = sum(verdict == label for verdict, label in zip(verdicts, labels, strict=True))
    items = len(labels)
    accuracy = Rate(same / items, wilson_interval(same, items))
    place = {kind: index for index, kind in enumerate(dict.fromkeys([*verdicts, *labels]))}
    if len(set(verdicts)) == 1 or len(set(labels)) == 1:
        return Agreement(items, accuracy, None, None)
    table = np.zeros((len(place), len(place)))
    for verdict, label in zip(verdicts, labels, strict=True):
        table[place[verdict], place[label]] += 1
    kappa = float(cohens_kappa(table, return_results=False))
    around = cohens_kappa(table + 2 / table.size)
    return Agreement(items, accuracy, kappa, Interval(float(around.kappa_low), min(1.0, float(around.kappa_upp))))
