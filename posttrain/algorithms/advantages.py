"""Advantages of a group of completions: how much better each one is than its siblings.

Floor 0: pure tensor mathematics; knows no model, setting or rank. Which baseline and which scale to take are two
choices apart, and both are apart from the loss: GRPO (arXiv 2402.03300) is group_mean with group_std, Dr. GRPO
(arXiv 2503.20783) group_mean with none, RLOO (arXiv 2402.14740) leave_one_out with none.
"""

from dataclasses import dataclass
from typing import Literal, assert_never

import torch
from torch import Tensor

from posttrain.algorithms.tokens import upcast

Baseline = Literal["group_mean", "leave_one_out", "none"]
Scale = Literal["group_std", "batch_std", "none"]

# A standard deviation up to this, relative to the largest reward (at least 1), is rounding noise: a hundred times
# float32's precision, and far below a difference that a reward could mean.
EPS = 1e-5


@dataclass(frozen=True, slots=True)
class GroupSignal:
    """How many groups of a step teach something: only mixed ones have advantages other than 0."""

    solved: int  # all rewards equal, and high
    failed: int  # all rewards equal, and low
    mixed: int
    unscorable: int  # no reward at all

    @property
    def frac_reward_zero_std(self) -> float:
        """Share of the groups that are not mixed; 0 without groups."""
        flat = self.solved + self.failed + self.unscorable
        return flat / max(flat + self.mixed, 1)


def group_advantages(rewards: Tensor, *, baseline: Baseline, scale: Scale, eps: float = EPS) -> Tensor:
    """Return the `(P, G)` advantages of `(P, G)` rewards, one row for each prompt.

    A NaN reward is one that could not be scored: its advantage is 0, and it counts in no mean and no deviation.
    Rewards that differ by no more than rounding (`eps`, see EPS) are equal: what compares or divides by them gives
    exactly 0, as does a group with a single scored completion. Deviations are unbiased (n - 1); `batch_std` is that
    of all the rewards together. Without a baseline and without a scale the advantage is the reward itself.
    """
    rewards = upcast(rewards)
    assert not rewards.isinf().any(), "rewards must be finite, or NaN where they could not be scored"
    scored = ~rewards.isnan()
    count = scored.sum(-1, keepdim=True)  # (P, 1)
    group_std = _std(rewards, eps)  # (P, 1)
    deviation = (rewards - rewards.nanmean(-1, keepdim=True)).masked_fill(group_std == 0, 0.0)
    match baseline:
        case "group_mean":
            advantages = deviation
        case "leave_one_out":  # r_i - mean of the others = n / (n - 1) * (r_i - mean of all)
            advantages = deviation * count / (count - 1).clamp(min=1)
        case "none":
            advantages = rewards
        case _:
            assert_never(baseline)
    match scale:
        case "group_std":
            std = group_std
        case "batch_std":
            std = _std(rewards.reshape(1, -1), eps)  # (1, 1)
        case "none":
            std = torch.ones_like(group_std)
        case _:
            assert_never(scale)
    return torch.where(scored & (std > 0), advantages / std, 0.0)


def group_signal(rewards: Tensor, *, solved_at: float = 0.5, eps: float = EPS) -> GroupSignal:
    """Count the groups of `(P, G)` rewards by what they teach, with the same idea of equality as the advantages.

    A group of equal rewards is solved where they are at least `solved_at` and failed below it.
    """
    rewards = upcast(rewards)
    mixed = _std(rewards, eps).squeeze(-1) > 0  # (P,)
    mean = rewards.nanmean(-1)  # (P,), NaN where nothing was scored
    return GroupSignal(
        solved=int((~mixed & (mean >= solved_at)).sum()),
        failed=int((~mixed & (mean < solved_at)).sum()),
        mixed=int(mixed.sum()),
        unscorable=int(mean.isnan().sum()),
    )


def _std(rewards: Tensor, eps: float) -> Tensor:
    """Unbiased deviation of the scored rewards of each row, `(..., 1)`; exactly 0 where it is rounding noise."""
    count = (~rewards.isnan()).sum(-1, keepdim=True)
    deviation = rewards - rewards.nanmean(-1, keepdim=True)
    std = (deviation.square().nansum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    magnitude = rewards.abs().nan_to_num(0.0).amax(-1, keepdim=True).clamp(min=1.0)
    # A threshold, not a term in the denominator: that would leave noise in groups of equal rewards and shrink the rest.
    return std.masked_fill(std <= eps * magnitude, 0.0)
