"""Losses of the training stages, token by token.

Floor 0: pure tensor mathematics; knows no model, setting or rank. Entry t of a `(B, T)` tensor belongs to token t, a
mask means KEEP. How a per-token loss is averaged is `tokens.aggregate`'s business, a KL penalty the caller's
(`tokens.k3`), an advantage `advantages`'.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.algorithms.tokens import MAX_LOG_RATIO, k3, token_mean, upcast


def sft_loss(logprobs: Tensor, mask: Tensor, *, num_tokens: int) -> Tensor:
    """Return the share of `(B, T)` log-probs in the mean negative log-likelihood of an update's `num_tokens` tokens."""
    return token_mean(-logprobs, mask, num_tokens=num_tokens)


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A policy loss, and what to watch in it; all `(B, T)`, 0 or False where masked.

    All but `per_token` are detached, and are per token too, so that their means can be taken over the whole update:
    with `aggregate(..., "token_mean", ...)`, like the loss.
    """

    per_token: Tensor
    ratio: Tensor  # policy / old policy
    clipped_low: Tensor  # bool: the lower bound holds the token, which only happens to negative advantages
    clipped_high: Tensor  # bool: the upper bound holds the token, which only happens to positive advantages
    clipped_dual: Tensor  # bool: the dual clip holds the token, which only happens to negative advantages
    approx_kl: Tensor  # k3 estimate of KL(old policy || policy): the tokens are the old policy's


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    epsilon_low: float,
    epsilon_high: float,
    dual_clip: float | None = None,
) -> PolicyLoss:
    """Return the clipped surrogate -min(ratio * A, clip(ratio, 1 - epsilon_low, 1 + epsilon_high) * A) of each token.

    PPO (arXiv 1707.06347, eq. 7), with a bound of its own on each side (DAPO, arXiv 2503.14476). `advantages` is
    `(B,)`, one for each sequence, or `(B, T)`. With `dual_clip` c > 1, the loss of a negative advantage A is at most
    -c * A, however much likelier the token became (Ye et al. 2019, arXiv 1912.09729, eq. 5). Without `old_logprobs`
    the policy is its own old policy: the ratio is exactly 1 and the gradient that of REINFORCE. Gradients flow into
    `logprobs` alone.
    """
    assert logprobs.shape == mask.shape, f"logprobs {tuple(logprobs.shape)} and mask {tuple(mask.shape)} differ"
    assert old_logprobs is None or old_logprobs.shape == mask.shape, (
        f"old_logprobs {tuple(old_logprobs.shape)} and mask {tuple(mask.shape)} differ"
    )
    assert advantages.shape in (logprobs.shape[:1], logprobs.shape), (
        f"advantages {tuple(advantages.shape)}, expected (B,) or (B, T)"
    )
    assert dual_clip is None or dual_clip > 1, f"dual_clip {dual_clip}, expected above 1"
    dropped = ~mask.bool()
    # Masked first: what is infinite in the padding would have NaN as its gradient, whatever is masked later. Padding
    # then has ratio 1: it is never clipped, and its KL is 0.
    new = upcast(logprobs).masked_fill(dropped, 0.0)
    old = new.detach() if old_logprobs is None else upcast(old_logprobs).detach().masked_fill(dropped, 0.0)
    advantage = upcast(advantages).detach()
    advantage = advantage.unsqueeze(-1) if advantage.dim() == 1 else advantage.masked_fill(dropped, 0.0)

    ratio = (new - old).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    clipped = ratio.clamp(1 - epsilon_low, 1 + epsilon_high)
    per_token = -torch.minimum(ratio * advantage, clipped * advantage)
    clipped_dual = torch.zeros_like(dropped)
    if dual_clip is not None:
        clipped_dual = (ratio > dual_clip) & (advantage < 0)
        per_token = torch.where(clipped_dual, -dual_clip * advantage, per_token)
    return PolicyLoss(
        per_token=per_token.masked_fill(dropped, 0.0),
        ratio=ratio.detach().masked_fill(dropped, 0.0),
        clipped_low=(ratio < 1 - epsilon_low) & (advantage < 0),
        clipped_high=(ratio > 1 + epsilon_high) & (advantage > 0),
        clipped_dual=clipped_dual,
        approx_kl=k3(old, new.detach()),
    )


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """A value loss `(B, T)`, 0 where masked; and, detached, which values its clip holds."""

    per_token: Tensor
    clipped: Tensor  # bool


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float | None
) -> ValueLoss:
    """Return max((value - return)^2, (held - return)^2) / 2 of each token, `held` within `clip` of the old value.

    The value loss of PPO's reference code (Schulman et al. 2017; arXiv 2005.12729, section 3): a value gains nothing
    from a move beyond `clip`. With None it is half the squared error. All `(B, T)`; gradients flow into `values` alone.
    """
    assert values.shape == old_values.shape == returns.shape == mask.shape, "values, returns and mask differ in shape"
    dropped = ~mask.bool()
    new = upcast(values).masked_fill(dropped, 0.0)
    old = upcast(old_values).detach().masked_fill(dropped, 0.0)
    target = upcast(returns).detach().masked_fill(dropped, 0.0)
    plain = (new - target).square()
    if clip is None:
        return ValueLoss(plain / 2, torch.zeros_like(dropped))
    held = old + (new - old).clamp(-clip, clip)
    of_held = (held - target).square()
    return ValueLoss(torch.maximum(plain, of_held) / 2, (of_held > plain).detach())
