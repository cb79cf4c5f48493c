"""How the scores of a completion become one reward: the choices of `reward_combination`.

Floor 3: numbers alone. A part that is None does not apply, and is left out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

Scores = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Combination:
    """Which way to combine, and the part that must be earned where it is `gated`."""

    kind: Literal["sum", "normalized_sum", "gated"] = "sum"
    gate: str | None = None


SUM = Combination()


def combine(group: Sequence[Scores], weights: Mapping[str, float], combination: Combination) -> list[float | None]:
    """Return the reward of each completion of one prompt; None where no part with a weight has a score.

    `normalized_sum` is GDPO's (arXiv 2601.05242): every part has mean 0 and deviation 1 within the group before it is
    weighted, so that none drowns the others; one that is equal in all gives 0. `gated` pays the other parts, and takes
    their punishments, only where the gate is above 0: format that is added to wrong answers makes these likelier. Where
    the gate has no score, neither has the completion.
    """
    match combination.kind:
        case "sum":
            return [weighted_sum(scores, weights) for scores in group]
        case "normalized_sum":
            return [weighted_sum(scores, weights) for scores in normalized(group)]
        case "gated":
            assert combination.gate is not None
            return [_gated(scores, weights, combination.gate) for scores in group]
        case _:
            assert_never(combination.kind)


def weighted_sum(scores: Scores, weights: Mapping[str, float]) -> float | None:
    """Return the weighted sum of the scores that are not None; None when all are. What has the weight 0 is watched."""
    parts = [weights[name] * value for name, value in scores.items() if value is not None and weights[name] != 0]
    return math.fsum(parts) if parts else None


def normalized(group: Sequence[Scores]) -> list[Scores]:
    """Return the scores of a group, each part with mean 0 and deviation 1 over those that have one."""
    import torch

    from posttrain.algorithms.advantages import group_advantages

    if not group:
        return []
    names = list(group[0])
    table = torch.tensor(
        [[math.nan if (value := scores[name]) is None else value for scores in group] for name in names],
        dtype=torch.float64,
    ).reshape(len(names), len(group))
    parts = group_advantages(table, baseline="group_mean", scale="group_std").tolist()
    return [
        {name: None if scores[name] is None else parts[row][column] for row, name in enumerate(names)}
        for column, scores in enumerate(group)
    ]


def _gated(scores: Scores, weights: Mapping[str, float], gate: str) -> float | None:
    earned = scores[gate]
    if earned is None:
        return None
    paid = scores if earned > 0 else {gate: earned}
    return weighted_sum(paid, weights) or 0.0
