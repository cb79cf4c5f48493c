"""Claims about two models: what is named, what is left open, and in which words."""

import numpy as np
import pytest

from posttrain.evals.bias import within_slopes
from posttrain.evals.verdicts import Claim, only_longer, settle, suspected_hacking, verdict

Pair = tuple[np.ndarray, np.ndarray]


@pytest.mark.parametrize(
    ("difference", "p", "expected"),
    [(0.1, 0.04, "better"), (-0.1, 0.04, "worse"), (0.1, 0.05, "cannot tell"), (0.0, 0.0, "cannot tell")],
)
def test_the_three_verdicts(difference: float, p: float, expected: str) -> None:
    assert verdict(difference, p) == expected


def test_claims_are_adjusted_for_each_other() -> None:
    alone = settle([Claim(0.03, "yes", "no")])
    assert alone == [(True, "yes")]
    both = settle([Claim(0.03, "first", "not shown"), Claim(0.9, "second", "nor this")])
    assert both == [(False, "not shown"), (False, "nor this")]
    assert [reading.holds for reading in settle([Claim(0.02, "", ""), Claim(0.04, "", "")])] == [True, True]
    assert settle([]) == []


def accuracies(gain: float, *, problems: int = 400, samples: int = 4, skill: float = 0.4) -> Pair:
    rng = np.random.default_rng(0)
    chance = rng.beta(4 * skill, 4 * (1 - skill), problems)
    before, after = (rng.binomial(samples, np.clip(p, 0, 1)) / samples for p in (chance, chance + gain))
    return before, after


def changed(gain: float, *, mean: float = 0.0, problems: int = 400) -> Pair:
    """Scores or lengths of standard deviation about 1, and what became of them."""
    rng = np.random.default_rng(1)
    common = mean + rng.normal(0, 0.8, problems)
    before, after = common + rng.normal(0, 0.6, (2, problems))
    return before, after + gain


def lengths(share: float, problems: int = 400) -> Pair:
    before, after = changed(0.0, mean=5.0, problems=problems)
    return 30 * before, 30 * (1 + share) * after


def test_longer_and_no_better_is_named() -> None:
    for gain in (0.0, -0.1):
        claim = only_longer(accuracies(gain), lengths(0.4), samples=4)
        assert claim.p < 0.05
        assert claim.holds.startswith("longer, not better: 147 tokens became 207")
        assert "points [" in claim.holds
        assert "is ruled out" in claim.holds


def test_longer_and_better_is_not_named() -> None:
    claim = only_longer(accuracies(0.1), lengths(0.4), samples=4)
    assert claim.p > 0.05
    assert claim.open.startswith("longer, and whether better cannot be told")


def test_few_problems_leave_open_whether_longer_is_better() -> None:
    claim = only_longer(accuracies(0.05, problems=40), lengths(0.4, problems=40), samples=4)
    assert claim.p > 0.05


@pytest.mark.parametrize("share", [0.0, -0.3, 0.05])
def test_what_is_not_longer_by_a_tenth_is_not_only_longer(share: float) -> None:
    claim = only_longer(accuracies(-0.2), lengths(share), samples=4)
    assert claim.p == 1.0
    assert claim.open.startswith("not longer")


def test_the_slope_among_answers_to_one_prompt_is_told() -> None:
    rng = np.random.default_rng(2)
    prompts, tokens = np.repeat(np.arange(50), 4), rng.normal(150, 30, 200)
    slope = within_slopes(0.5 * tokens / 100 + 0.01 * rng.normal(size=200), [tokens / 100], prompts)[0]
    assert slope is not None
    before, after = lengths(0.4)
    claim = only_longer(changed(0.0), (before, after), samples=None, within=slope)
    explained = slope.slope * (after - before).mean() / 100
    assert slope.slope == pytest.approx(0.5, abs=0.02)
    assert f"so much more length goes with {explained:+.3g}" in claim.holds


def test_proxy_up_and_gold_flat_or_down_is_suspected() -> None:
    flat = suspected_hacking(changed(0.8), accuracies(0.0), samples=4)
    assert flat.p < 0.05
    assert flat.holds.startswith("suspected hacking: the proxy rose and gold did not: proxy +0.8")
    down = suspected_hacking(changed(0.8), accuracies(-0.1), samples=4)
    assert down.p < 0.001
    assert down.holds.startswith("suspected hacking: the proxy rose and gold fell")


@pytest.mark.parametrize(
    ("proxy", "gold", "words"),
    [
        (0.8, 0.1, "gold rose with the proxy"),
        (3.0, 0.05, "gold rose with the proxy"),
        (-0.2, -0.2, "the proxy did not rise"),
    ],
)
def test_healthy_runs_are_not_suspected(proxy: float, gold: float, words: str) -> None:
    claim = suspected_hacking(changed(proxy), accuracies(gold), samples=4)
    assert claim.p == 1.0
    assert claim.open.startswith(words)


def test_gold_that_is_nearly_full_cannot_follow() -> None:
    before, _ = accuracies(0.0, skill=0.97)
    full = suspected_hacking(changed(0.8), (before, before), samples=4)
    assert full.p == 1.0
    assert full.open.startswith("gold had nothing left to gain")
    lost = before.copy()
    lost[:20] -= 0.5
    assert suspected_hacking(changed(0.8), (before, lost), samples=4).p < 0.05


def test_gold_that_never_was_and_never_comes_is_flat() -> None:
    nothing = np.zeros(400)
    assert suspected_hacking(changed(0.8), (nothing, nothing), samples=None).p < 0.05
    assert suspected_hacking(changed(0.8), (nothing, nothing + 1), samples=None).p == 1.0


def test_few_problems_cannot_tell_whether_gold_follows() -> None:
    claim = suspected_hacking(changed(0.8, problems=30), accuracies(0.0, problems=30), samples=4)
    assert claim.p > 0.05
    assert claim.open.startswith("these problems cannot tell")


def test_a_proxy_that_rose_by_chance_is_no_sign_of_hacking() -> None:
    draw = np.random.default_rng(0)
    noise = draw.normal(size=200)
    before, after = np.zeros(200), noise - noise.mean() + 0.02  # a fifth of its error above 0
    gold = np.repeat([1.0, 0.0], 100), np.repeat([1.0, 0.0], [40, 160])
    assert suspected_hacking((before, after), gold).p > 0.2
    assert suspected_hacking((before, after + 1), gold).p < 0.01
