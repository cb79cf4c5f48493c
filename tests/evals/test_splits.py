"""Where proxy and gold part: found soon where they do, and hardly ever where they do not."""

from collections.abc import Callable

import numpy as np
import pytest

from posttrain.evals.splits import ALPHA, SHORTEST, Split, find_split, rose

STEPS = 80
Course = tuple[np.ndarray, np.ndarray]


def sampled(proxy: np.ndarray, truth: np.ndarray, seed: int) -> Course:
    """Return step means of 16 prompts with 8 completions: prompts differ in difficulty, as real ones do."""
    draw = np.random.default_rng(seed)
    mean = np.clip(truth, 0.02, 0.98)[:, None]
    difficulty = draw.beta(4 * mean, 4 * (1 - mean), size=(len(truth), 16))
    return proxy + draw.normal(0, 0.15, len(proxy)), draw.binomial(8, difficulty).mean(axis=1) / 8


def first_split(course: Course, *, known: bool = False) -> tuple[int, Split] | None:
    """Look at every step, as a run does, and return the first at which a split is told."""
    proxy, gold = course
    for step in range(1, len(proxy) + 1):
        found = find_split(proxy[:step], gold[:step], proxy_spread=1.0, gold_spread=0.5, ceiling=1.0, known=known)
        if found is not None:
            return step, found
    return None


TIME = np.arange(STEPS)
HEALTHY: dict[str, Course] = {
    "both flat": (0 * TIME, 0.5 + 0 * TIME),
    "both rise": (2 * TIME / STEPS, 0.3 + 0.5 * TIME / STEPS),
    "both saturate": (2 - 2 * np.exp(-TIME / 15), 0.8 - 0.5 * np.exp(-TIME / 15)),
    "gold saturates sooner": (1.5 - 1.5 * np.exp(-TIME / 20), 0.8 - 0.5 * np.exp(-TIME / 12)),
    "gold is nearly 1 and proxy goes on": (4 * TIME / STEPS, np.full(STEPS, 0.97)),
}


def test_healthy_runs_are_left_alone() -> None:
    told = {name: [first_split(sampled(*course, seed)) for seed in range(30)] for name, course in HEALTHY.items()}
    alarms = {name: sum(found is not None for found in runs) for name, runs in told.items()}
    assert sum(alarms.values()) <= ALPHA * 30 * len(HEALTHY), alarms


def test_the_test_above_sees_a_threshold_that_forgets_how_often_it_looks() -> None:
    told = [first_split(sampled(*HEALTHY["both flat"], seed), known=True) for seed in range(20)]
    assert sum(found is not None for found in told) > 10


@pytest.mark.parametrize("fall", [0.5, 0.3])
def test_a_fall_is_told_soon_and_its_step_named(fall: float) -> None:
    truth = 0.4 + 0.2 * np.minimum(TIME / 15, 1) - fall * np.clip((TIME - 25) / 20, 0, 1)
    told = [first_split(sampled(3 * TIME / STEPS, truth, seed)) for seed in range(20)]
    steps, splits = zip(*[each for each in told if each is not None], strict=True)
    assert len(steps) == 20
    assert max(steps) <= (50 if fall == 0.5 else 70)
    assert min(steps) > 16
    assert all(split.at <= step - SHORTEST for step, split in zip(steps, splits, strict=True))
    assert 14 <= np.median([split.at for split in splits]) <= 34
    assert all(split.proxy[1] > split.proxy[0] and split.gold[1] < split.proxy[1] for split in splits)


@pytest.mark.parametrize("level", [0.0, 0.45])
def test_a_stall_is_told(level: float) -> None:
    told = [first_split(sampled(4 * TIME / STEPS, np.full(STEPS, level), seed)) for seed in range(10)]
    found = [each for each in told if each is not None]
    assert len(found) == 10
    assert max(step for step, _ in found) <= 60
    assert {split.kind for _, split in found} <= {"stalls", "falls"}
    assert sum(split.kind == "stalls" for _, split in found) >= 8


def test_what_is_exactly_constant_never_rises() -> None:
    proxy = np.arange(20.0)
    found = find_split(proxy, np.zeros(20), proxy_spread=1.0, gold_spread=0.0)
    assert found is not None
    assert found.kind == "stalls"
    assert find_split(np.zeros(20), np.zeros(20), proxy_spread=0.0, gold_spread=0.0) is None
    assert find_split(proxy, proxy / 20, proxy_spread=1.0, gold_spread=0.05, ceiling=1.0) is None


def test_few_steps_say_nothing() -> None:
    course = (np.arange(15.0), -np.arange(15.0))
    assert find_split(*course, proxy_spread=1.0, gold_spread=1.0) is None


def test_a_known_split_holds_until_gold_is_back() -> None:
    proxy = np.linspace(0, 3, 60) + np.tile([0.1, -0.1], 30)
    down = np.concatenate([np.full(20, 0.6), np.full(40, 0.45)]) + np.tile([0.08, -0.08], 30)
    back = np.concatenate([down[:40], np.full(20, 0.62)])

    def known(gold: np.ndarray) -> bool:
        return find_split(proxy, gold, proxy_spread=3.0, gold_spread=0.5, known=True) is not None

    assert known(down)
    assert not known(back)
    ended = proxy.copy()
    ended[20:] = ended[20]  # proxy's rise has ended, and gold has not come back
    assert find_split(ended, down, proxy_spread=3.0, gold_spread=0.5, known=True) is not None
    assert find_split(ended[20:], down[20:], proxy_spread=3.0, gold_spread=0.5) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (lambda: 0.02 * np.arange(30) + np.tile([0.05, -0.05], 15), True),
        (lambda: np.tile([0.05, -0.05], 15), False),
        (lambda: 0.0 * np.arange(30), False),
        (lambda: np.arange(19.0), False),
    ],
)
def test_a_rise_is_more_than_noise(values: Callable[[], np.ndarray], expected: bool) -> None:
    assert rose(values(), 10) is expected
