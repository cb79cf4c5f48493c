"""What is trained on and what says the truth, read from settings and rows."""

import numpy as np
import pytest

from posttrain.evals.objectives import Objective, find_parting
from posttrain.evals.splits import find_split

TIME = np.arange(60)
ROWS = [
    {
        "step": step + 1,
        "reward": step / 20,
        "reward_std": 1.0,
        "rewards/a/mean": 1.0,
        "rewards/b/mean": 2.0,
        "rewards/a/std": 3.0,
        "rewards/b/std": 4.0,
        "rewards/r1_zero/mean": 0.6 - 0.5 * min(max((step - 20) / 20, 0), 1),
        "rewards/r1_zero/std": 0.5,
    }
    for step in range(60)
]


@pytest.mark.parametrize(
    ("settings", "gold", "graded"),
    [
        ({"rewards": {"reward_model": 1.0, "r1_zero": 0.0}}, "r1_zero", "r1_zero"),
        ({"rewards": {"r1_zero": 1.0}}, None, "r1_zero"),
        ({"rewards": {"reward_model": 1.0, "step_words": 0.0}}, None, None),
        ({"rewards": {"a": 1.0, "b": 0.0, "r1_zero": 0.0}, "gold_reward": "b"}, "b", "b"),
    ],
)
def test_the_truth_is_what_grades_and_is_only_watched_or_what_is_named(
    settings: dict, gold: str | None, graded: str | None
) -> None:
    found = Objective.of(settings)
    assert (found.gold, found.graded) == (gold, graded)


def test_the_proxy_is_the_reward_or_the_weighted_parts_where_each_is_normalised() -> None:
    summed = Objective({"a": 2.0, "b": 0.5, "r1_zero": 0.0})
    assert summed.proxy(ROWS)[20] == 1.0
    assert summed.proxy_spread(ROWS) == 1.0
    normalised = Objective(summed.rewards, combination="normalized_sum")
    assert normalised.proxy(ROWS)[20] == 3.0
    assert normalised.proxy_spread(ROWS) == pytest.approx(np.hypot(6.0, 2.0))


def test_the_split_names_a_step_and_leaves_out_steps_that_lack_a_value() -> None:
    objective = Objective({"a": 1.0, "r1_zero": 0.0})
    whole = find_parting(ROWS, objective.proxy(ROWS), "r1_zero", proxy_spread=1.0)
    assert whole is not None
    assert 16 <= whole.at <= 26
    later = [{**row, "step": row["step"] + 100} for row in ROWS]
    later[2:2] = [{"step": 0.5, "reward": 0.0, "rewards/r1_zero/mean": float("nan")}]
    shifted = find_parting(later, objective.proxy(later), "r1_zero", proxy_spread=1.0)
    assert shifted == whole._replace(at=whole.at + 100)


def test_a_stricter_level_asks_for_more() -> None:
    draw = np.random.default_rng(0)
    gold = 0.6 - 0.1 * (TIME > 30) + draw.normal(0, 0.04, 60)
    course = (TIME / 20 + draw.normal(0, 0.1, 60), gold)
    assert find_split(*course, proxy_spread=10.0, gold_spread=0.5) is not None
    assert find_split(*course, proxy_spread=10.0, gold_spread=0.5, alpha=1e-12) is None
