"""Rewards: every function that a recipe can name, in TRL's signature; one more is made of a reward model."""

from collections.abc import Callable

from posttrain.rewards.rules import boxed_answer, could_not_grade, format_think_answer, math_answer, r1_zero

REWARDS: dict[str, Callable[..., list[float | None]]] = {
    "r1_zero": r1_zero,
    "boxed_answer": boxed_answer,
    "math_answer": math_answer,
    "format_think_answer": format_think_answer,
    "could_not_grade": could_not_grade,
}
GOLD_REWARDS = frozenset(
    {"r1_zero", "boxed_answer", "math_answer", "could_not_grade"}
)  # these grade against a gold answer
REWARD_MODEL = "reward_model"  # the name of the reward that `learned.py` makes of the model that a stage names
