"""From the score of a completion to the advantage of each of its tokens: KL penalty, GAE, whitening.

Floor 0: pure tensor mathematics; knows no model, setting or rank. Entry t of a `(B, T)` tensor belongs to token t: its
reward follows it, its value is the critic's guess, before it is chosen, of the rewards from it on. A mask means KEEP;
the kept tokens of a sequence are its first ones.
"""

import torch
from torch import Tensor

from posttrain.algorithms.tokens import k1, masked_mean, masked_sum, upcast

EPS = 1e-5  # deviations up to this, relative to the largest advantage, are rounding noise


def token_rewards(
    scores: Tensor, mask: Tensor, *, logprobs: Tensor | None, ref_logprobs: Tensor | None, kl_coef: float
) -> Tensor:
    """Return the rewards `(B, T)`: -kl_coef * log(policy / reference) at each token, and the score at the last one.

    `scores` is `(B,)`. The penalty is k1, whose expectation is KL(policy || reference) (Ouyang et al. 2022,
    arXiv 2203.02155, eq. 2, spread over the tokens as in Ziegler et al. 2019, arXiv 1909.08593). Without `ref_logprobs`
    there is none. A sequence without tokens has no reward.
    """
    keep = mask.bool()
    rewards = torch.zeros(mask.shape, dtype=upcast(scores).dtype, device=mask.device)
    if ref_logprobs is not None:
        assert logprobs is not None
        rewards = (-kl_coef * k1(logprobs, ref_logprobs)).detach().masked_fill(~keep, 0.0)
    filled = keep.any(-1)  # (B,)
    last = (keep.sum(-1) - 1).clamp(min=0).unsqueeze(-1)  # (B, 1)
    return rewards.scatter_add(1, last, upcast(scores).masked_fill(~filled, 0.0).unsqueeze(-1))


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
    final_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return advantages and returns `(B, T)`, 0 where masked.

    Generalised advantage estimation (Schulman et al. 2015, arXiv 1506.02438, eqs. 11, 12, 16): delta_t = r_t + gamma
    V_{t+1} - V_t and A_t = delta_t + gamma lambda A_{t+1}. `final_values` `(B,)` are the values after the last tokens,
    0 by default: the completion ended. Returns are A_t + V_t, the critic's targets.
    """
    keep = mask.bool()
    assert rewards.shape == values.shape == keep.shape, "rewards, values and mask differ in shape"
    rewards, values = upcast(rewards).masked_fill(~keep, 0.0), upcast(values).masked_fill(~keep, 0.0)
    after = torch.zeros_like(values[:, 0]) if final_values is None else upcast(final_values)  # (B,)
    advantage = torch.zeros_like(after)
    advantages = torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * after - values[:, t]
        # Past the end nothing has happened yet: the value that follows the last token is still to come.
        advantage = torch.where(keep[:, t], delta + gamma * gae_lambda * advantage, advantage)
        after = torch.where(keep[:, t], values[:, t], after)
        advantages[:, t] = torch.where(keep[:, t], advantage, 0.0)
    return advantages, (advantages + values).masked_fill(~keep, 0.0)


def whiten(values: Tensor, mask: Tensor, *, eps: float = EPS) -> Tensor:
    """Return the kept values of `(B, T)` with mean 0 and unbiased deviation 1, all others 0.

    Of a whole batch of rollouts, never of a part. Values that differ by no more than rounding become 0.
    """
    keep = mask.bool()
    mean = masked_mean(values, keep)
    centred = (upcast(values) - mean).masked_fill(~keep, 0.0)
    std = (masked_sum(centred.square(), keep) / (keep.sum() - 1).clamp(min=1)).sqrt()
    largest = upcast(values).masked_fill(~keep, 0.0).abs().max().clamp(min=1.0) if keep.any() else torch.ones(())
    return centred / std if std > eps * largest else torch.zeros_like(centred)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """Return 1 - Var(returns - values) / Var(returns) over the kept tokens: 1 is perfect, 0 no better than the mean.

    NaN where the returns do not vary.
    """
    keep = mask.bool()
    target = upcast(returns)[keep]
    if len(target) < 2 or target.var() == 0:
        return float("nan")
    return float(1 - (target - upcast(values)[keep]).var() / target.var())
