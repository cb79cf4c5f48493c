"""Simulated evaluations whose truth is known: how often intervals hold it, and how often claims are false.

`python -m tests.evals.simulate_statistics [part of a name]` prints both as Markdown tables, in some minutes;
`test_simulations.py` runs a smaller part. Problems differ in difficulty, and models share them.
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special, stats

from posttrain.evals.diversity import Diversity, mode_collapse
from posttrain.evals.length_slopes import _least_squares, _theil_sen
from posttrain.evals.stats import (
    Interval,
    accuracy_interval,
    holm,
    mean_interval,
    paired_difference,
    paired_p,
    share_interval,
    wilson_interval,
)
from posttrain.evals.verdicts import ALPHA, WORTH, Claim, only_longer, settle, suspected_hacking, verdict
from posttrain.evals.voting import majority_accuracy
from posttrain.evals.winrates import agreement, first_shown_rate, length_controlled_win_rate, win_rate
from posttrain.seeds import derive_seed

PROBLEMS = (50, 200, 500)
SIMULATIONS = 2000
MODELS = 3  # compared with one baseline

Rng = np.random.Generator
Covers = Callable[[Rng, int, int], bool]
"""Whether the interval of an evaluation of P problems with n samples each holds the truth."""


def holds(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


# --- one model -------------------------------------------------------------------------------------------------


def outcomes(rng: Rng, problems: int, samples: int, a: float = 0.5, b: float = 0.5) -> np.ndarray:
    """Return right and wrong answers (P, n) to problems of skill Beta(a, b): by default mostly easy or hard ones."""
    return (rng.random((problems, samples)) < rng.beta(a, b, (problems, 1))).astype(float)


def accuracy(rng: Rng, problems: int, samples: int) -> bool:
    return holds(accuracy_interval(outcomes(rng, problems, samples)), 0.5)


def accuracy_on_hard_problems(rng: Rng, problems: int, samples: int) -> bool:
    return holds(accuracy_interval(outcomes(rng, problems, samples, 0.4, 1.6)), 0.2)


def accuracy_of_three_seeds(rng: Rng, problems: int, samples: int) -> bool:
    skill = rng.beta(1, 1, (problems, 1)) * 0.8
    of_seeds = [rng.random((problems, samples)) < skill + gain for gain in (0.0, 0.1, 0.2)]
    return holds(accuracy_interval(np.concatenate(of_seeds, axis=1).astype(float)), 0.5)


def accuracy_ignoring_problems(rng: Rng, problems: int, samples: int) -> bool:
    correct = outcomes(rng, problems, samples)
    return holds(wilson_interval(correct.sum(), correct.size), 0.5)


def majority_of_three(rng: Rng, problems: int, samples: int) -> bool:
    """Skill is Beta(2, 1) and there is one wrong answer: the chance is 3 p^2 - 2 p^3, on average 0.7."""
    answers = outcomes(rng, problems, samples, 2, 1)
    votes = np.array([majority_accuracy(row.tolist(), {1.0}, 3) for row in answers])
    return holds(share_interval(votes, samples), 0.7)


def scores(rng: Rng, problems: int, samples: int, *, skewed: bool = False) -> np.ndarray:
    """Return scores (P, n) with mean 0."""
    problem = rng.gamma(2.0, size=(problems, 1)) - 2 if skewed else rng.normal(0, 1.4, (problems, 1))
    return problem + rng.normal(size=(problems, samples))


def mean_score(rng: Rng, problems: int, samples: int) -> bool:
    return holds(mean_interval(scores(rng, problems, samples)), 0.0)


def mean_of_skewed_scores(rng: Rng, problems: int, samples: int) -> bool:
    return holds(mean_interval(scores(rng, problems, samples, skewed=True)), 0.0)


def mean_score_ignoring_problems(rng: Rng, problems: int, samples: int) -> bool:
    return holds(mean_interval(scores(rng, problems, samples).reshape(-1, 1)), 0.0)


# --- two models ------------------------------------------------------------------------------------------------


def paired_shares(rng: Rng, problems: int, samples: int, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Return per-problem accuracies (P,) of two models, the second better by `gain` on each problem."""
    skill = rng.beta(0.8, 0.8, problems) * (1 - gain)
    return rng.binomial(samples, skill) / samples, rng.binomial(samples, skill + gain) / samples


def paired_accuracies(rng: Rng, problems: int, samples: int) -> bool:
    found = paired_difference(*paired_shares(rng, problems, samples, 0.1), samples=samples)
    return holds(found.interval, 0.1)


def paired_accuracies_far_apart(rng: Rng, problems: int, samples: int) -> bool:
    found = paired_difference(*paired_shares(rng, problems, samples, 0.4), samples=samples)
    return holds(found.interval, 0.4)


def unpaired_accuracies(rng: Rng, problems: int, samples: int) -> bool:
    a, b = paired_shares(rng, problems, samples, 0.1)
    half = 1.96 * np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / problems)
    return holds(Interval(b.mean() - a.mean() - half, b.mean() - a.mean() + half), 0.1)


def paired_scores(rng: Rng, problems: int, samples: int) -> bool:
    common = rng.normal(0, 2, problems)
    a, b = (common + scores(rng, problems, samples, skewed=skewed).mean(axis=1) for skewed in (False, True))
    return holds(paired_difference(a, b, samples=None).interval, 0.0)


# --- comparisons by a judge --------------------------------------------------------------------------------------


def judged(rng: Rng, problems: int, orders: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return wins, orders and prompts: by 0.6 skill where not tied (3 in 10), then to the first shown 1 time in 5."""
    prompts = np.repeat(np.arange(problems), orders)
    first = np.tile([True, False], problems) if orders == 2 else rng.random(problems) < 0.5
    skill = rng.beta(1.2, 0.8, problems)[prompts]
    wins = (rng.random(len(prompts)) < skill).astype(float)
    wins = np.where(rng.random(len(prompts)) < 0.3, 0.5, wins)
    return np.where(rng.random(len(prompts)) < 0.2, first, wins), first, prompts


TRUE_WIN_RATE = 0.8 * (0.3 * 0.5 + 0.7 * 0.6) + 0.2 * 0.5


def raw_win_rate(rng: Rng, problems: int, orders: int) -> bool:
    wins, _, prompts = judged(rng, problems, orders)
    return holds(win_rate(wins, prompts).interval, TRUE_WIN_RATE)


def first_shown(rng: Rng, problems: int, orders: int) -> bool:
    found = first_shown_rate(*judged(rng, problems, orders))
    assert found is not None
    return holds(found.interval, 0.2 + 0.8 * 0.5)


def win_rate_at_equal_length(rng: Rng, problems: int, samples: int, *, clustered: bool = True) -> bool:
    """A model that wins 62% at equal length, writes longer answers, and wins the more by it; prompts are alike."""
    prompts = np.repeat(np.arange(problems), samples)
    prompt_luck, luck = rng.normal(size=problems)[prompts], rng.normal(size=len(prompts))
    gaps = 60 + rng.normal(0, 60, problems)[prompts] + rng.normal(0, 60, len(prompts))
    chance = special.expit(0.5 + np.tanh(gaps / np.hypot(60, 60)))
    wins = (stats.norm.cdf((prompt_luck + luck) / np.sqrt(2)) < chance).astype(float)
    found = length_controlled_win_rate(wins, gaps, prompts if clustered else np.arange(len(prompts)))
    assert found is not None
    return holds(found.interval, special.expit(0.5))


def win_rate_at_equal_length_ignoring_prompts(rng: Rng, problems: int, samples: int) -> bool:
    return win_rate_at_equal_length(rng, problems, samples, clustered=False)


def kappa(rng: Rng, problems: int, samples: int) -> bool:
    """Two judges see the same in 7 of 10 items and otherwise choose by chance: kappa is 0.7."""
    truth, other = rng.random((2, problems)) < 0.4
    found = agreement(truth.tolist(), np.where(rng.random(problems) < 0.7, truth, other).tolist())
    assert found.kappa_interval is not None
    return holds(found.kappa_interval, 0.7)


# --- reward and length -----------------------------------------------------------------------------------------


def rewarded(rng: Rng, problems: int, samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores that rise by 0.5 per 100 tokens, differ by prompt, and spread more where answers are long."""
    prompts = np.repeat(np.arange(problems), samples)
    lengths = 100 * np.exp(0.3 * rng.normal(size=problems)[prompts] + 0.3 * rng.normal(size=len(prompts)))
    noise = 1.5 * rng.normal(size=problems)[prompts] + np.where(lengths > 100, 1.5, 1) * rng.normal(size=len(prompts))
    return 0.5 * lengths / 100 + noise, lengths, prompts


def slope_by_least_squares(rng: Rng, problems: int, samples: int) -> bool:
    y, lengths, prompts = rewarded(rng, problems, samples)
    return holds(_least_squares(y, lengths / 100, prompts).interval, 0.5)


def slope_by_theil_sen(rng: Rng, problems: int, samples: int) -> bool:
    y, lengths, prompts = rewarded(rng, problems, samples)
    return holds(_theil_sen(y, lengths / 100, prompts).interval, 0.5)


def slope_ignoring_prompts(rng: Rng, problems: int, samples: int) -> bool:
    y, lengths, _ = rewarded(rng, problems, samples)
    found = stats.linregress(lengths / 100, y)
    return holds(Interval(found.slope - 1.96 * found.stderr, found.slope + 1.96 * found.stderr), 0.5)


class Case(NamedTuple):
    """An interval, and the evaluations it is tried on."""

    covers: Covers
    samples: tuple[int, ...] = (1, 4)
    problems: tuple[int, ...] = PROBLEMS
    simulations: int = SIMULATIONS


INTERVALS: dict[str, Case] = {
    "accuracy": Case(accuracy, (1, 4, 16)),
    "accuracy, hard problems": Case(accuracy_on_hard_problems, (1, 4, 16)),
    "accuracy of three seeds": Case(accuracy_of_three_seeds, (1, 4)),
    "maj@3": Case(majority_of_three, (4, 8)),
    "mean score": Case(mean_score),
    "mean of skewed scores": Case(mean_of_skewed_scores),
    "difference of accuracies, 0.1": Case(paired_accuracies, (1, 4, 16)),
    "difference of accuracies, 0.4": Case(paired_accuracies_far_apart, (1, 4, 16)),
    "difference of scores": Case(paired_scores),
    "win rate": Case(raw_win_rate, (1, 2)),
    "first shown wins": Case(first_shown, (1, 2)),
    "win rate at equal length": Case(win_rate_at_equal_length),
    "Cohen's kappa": Case(kappa, (1,)),
    "slope on length, least squares": Case(slope_by_least_squares, (4,)),
    "slope on length, Theil-Sen": Case(slope_by_theil_sen, (4,), (50,), 500),
}
CONTROLS: dict[str, Case] = {
    "accuracy, problems ignored": Case(accuracy_ignoring_problems, (4,)),
    "mean score, problems ignored": Case(mean_score_ignoring_problems, (4,)),
    "difference of accuracies, pairs ignored": Case(unpaired_accuracies),
    "win rate at equal length, prompts ignored": Case(win_rate_at_equal_length_ignoring_prompts, (4,)),
    "slope on length, prompts ignored": Case(slope_ignoring_prompts, (4,)),
}
"""What the intervals above would be without what they take care of; each must be seen to miss 93 to 97%."""


def coverage(name: str, case: Case, problems: int, samples: int, simulations: int) -> float:
    rng = np.random.default_rng(derive_seed(0, name, problems, samples))
    return float(np.mean([case.covers(rng, problems, samples) for _ in range(simulations)]))


# --- claims about several models ---------------------------------------------------------------------------------


class Measured(NamedTuple):
    """Per-problem means (P,) of one model."""

    gold: np.ndarray
    proxy: np.ndarray
    lengths: np.ndarray


class Change(NamedTuple):
    """What training did to a model; gains of gold and proxy are in standard deviations among problems."""

    gold: float = 0.0
    proxy: float = 0.0
    length: float = 0.0  # share of the length before


def measure(rng: Rng, skill: np.ndarray, change: Change) -> Measured:
    """Return what an evaluation of noisy scores measures, on problems of the given skill (P,)."""
    noise = rng.normal(0, 0.6, (2, len(skill)))
    spread = np.hypot(0.8, 0.6)
    lengths = 150 * (1 + change.length) * np.exp(0.3 * skill + rng.normal(0, 0.3, len(skill)))
    return Measured(
        0.8 * skill + noise[0] + change.gold * spread, 0.8 * skill + noise[1] + change.proxy * spread, lengths
    )


def longer_claim(before: Measured, after: Measured) -> Claim:
    return only_longer((before.gold, after.gold), (before.lengths, after.lengths), samples=None)


def hacking_claim(before: Measured, after: Measured) -> Claim:
    return suspected_hacking((before.proxy, after.proxy), (before.gold, after.gold), samples=None)


def hacking_by_missing_significance(before: Measured, after: Measured) -> Claim:
    """The control: what is not significantly better counts as flat."""
    rose = [
        stats.ttest_rel(new, old).pvalue < ALPHA and new.mean() > old.mean()
        for old, new in zip(before[:2], after[:2], strict=True)
    ]
    return Claim(0.0 if rose[1] and not rose[0] else 1.0, "", "")


def collapse_claim(before: Measured, after: Measured) -> Claim:
    similar = [
        [Diversity(0, 0, 0, float(value), 0, 0, 0, 0) for value in special.expit(model.proxy)]
        for model in (before, after)
    ]
    return mode_collapse(similar[0], similar[1])


FALSE_CLAIMS: dict[str, tuple[Callable[[Measured, Measured], Claim], Change]] = {
    "only longer: nothing changed": (longer_claim, Change()),
    "only longer: longer, and better by what is just worth it": (longer_claim, Change(gold=WORTH, length=0.4)),
    "only longer: longer and better": (longer_claim, Change(gold=0.3, length=0.4)),
    "only longer: worse, not longer": (longer_claim, Change(gold=-0.5)),
    "hacking: nothing changed": (hacking_claim, Change()),
    "hacking: both rise, gold by what is just worth it": (hacking_claim, Change(gold=WORTH, proxy=0.8)),
    "hacking: gold rises half as much": (hacking_claim, Change(gold=0.4, proxy=0.8)),
    "hacking: a little, both alike": (hacking_claim, Change(gold=0.08, proxy=0.08)),
    "hacking: gold falls, the proxy did not rise": (hacking_claim, Change(gold=-0.5)),
    "less diverse: nothing changed": (collapse_claim, Change()),
}
TRUE_CLAIMS: dict[str, tuple[Callable[[Measured, Measured], Claim], Change]] = {
    "only longer: longer, no better": (longer_claim, Change(length=0.4)),
    "only longer: longer and worse": (longer_claim, Change(gold=-0.3, length=0.4)),
    "hacking: the proxy rises, gold does not": (hacking_claim, Change(proxy=0.8)),
    "hacking: the proxy rises, gold falls": (hacking_claim, Change(gold=-0.3, proxy=0.8)),
    "less diverse: more alike": (collapse_claim, Change(proxy=1.0)),
}


def claimed(
    name: str, claim: Callable[[Measured, Measured], Claim], change: Change, problems: int, simulations: int
) -> float:
    """Return the share of comparisons of MODELS models with a baseline in which any has the claim."""
    rng = np.random.default_rng(derive_seed(0, name, problems))
    told = []
    for _ in range(simulations):
        skill = rng.normal(size=problems)
        before = measure(rng, skill, Change())
        told.append(any(r.holds for r in settle([claim(before, measure(rng, skill, change)) for _ in range(MODELS)])))
    return float(np.mean(told))


def verdicts_without_difference(
    problems: int, samples: int, simulations: int, *, adjusted: bool = True, models: int = MODELS
) -> float:
    """Return the share of comparisons of equally good models in which any is called better or worse."""
    rng = np.random.default_rng(derive_seed(0, "verdicts", problems, samples))
    told = []
    for _ in range(simulations):
        skill = rng.beta(0.8, 0.8, problems)
        baseline, *others = rng.binomial(samples, skill, (models + 1, problems)) / samples
        p_values = [paired_p(baseline, other) for other in others]
        differences = [float((other - baseline).mean()) for other in others]
        p_values = holm(p_values) if adjusted else p_values
        told.append(any(verdict(d, p) != "cannot tell" for d, p in zip(differences, p_values, strict=True)))
    return float(np.mean(told))


VERDICTS = [
    *(("better or worse: no difference", problems, 1, SIMULATIONS) for problems in PROBLEMS),
    ("better or worse, 4 samples, 200 simulations: no difference", 50, 4, 200),
]


def main(part: str = "") -> None:
    print("| 95% interval of | problems | samples | coverage |\n|---|---|---|---|")
    for name, case in {name: case for name, case in {**INTERVALS, **CONTROLS}.items() if part in name}.items():
        for problems in case.problems:
            for samples in case.samples:
                share = coverage(name, case, problems, samples, case.simulations)
                print(f"| {name} | {problems} | {samples} | {share:.1%} |", flush=True)
    print(f"\n| claim about any of {MODELS} models, and the truth | problems | claimed |\n|---|---|---|")
    for name, problems, samples, simulations in VERDICTS:
        if part in name:
            share = verdicts_without_difference(problems, samples, simulations)
            print(f"| {name} | {problems} | {share:.1%} |", flush=True)
    claims = {name: claim for name, claim in {**FALSE_CLAIMS, **TRUE_CLAIMS}.items() if part in name}
    for name, (claim, change) in claims.items():
        truly = ", true" if name in TRUE_CLAIMS else ""
        for problems in PROBLEMS:
            share = claimed(name, claim, change, problems, SIMULATIONS)
            print(f"| {name}{truly} | {problems} | {share:.1%} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:2])
