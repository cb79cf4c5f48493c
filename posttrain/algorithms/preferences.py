"""Losses that learn from preferences: Bradley-Terry rewards, the DPO family, KTO.

Floor 0: pure tensor mathematics; knows no model, setting or rank. A loss has one entry for each pair, `(P,)`, or for
each sequence, `(B,)`; averaging is the caller's business. `beta` is a temperature. What a pair loss compares, a
*score* of each completion, is the caller's choice too: the log-ratio log(policy / reference) summed over the tokens,
the same per token, or the policy's own log-prob per token. Gradients flow into scores alone.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.algorithms.tokens import masked_sum, upcast

# Below this, log(1 - p) for p = exp(score) is better computed by log1p, above it by expm1 (Maechler 2012).
LOG_HALF = -math.log(2)
MAX_MEAN_LOGPROB = -1e-6  # odds p / (1 - p) and their gradient are infinite at p = 1


def sequence_logprobs(logprobs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum `(B,)` and number `(B,)` of the kept log-probs of `(B, T)`."""
    return masked_sum(logprobs, mask, dim=-1), mask.bool().sum(-1)


def log_ratio(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return log(policy / reference) of each sequence `(B,)` from their summed log-probs `(B,)`."""
    return upcast(logprobs) - upcast(ref_logprobs).detach()


def per_token(sums: Tensor, lengths: Tensor) -> Tensor:
    """Return means `(B,)` from sums `(B,)` over sequences of these lengths `(B,)`; 0 for an empty one."""
    return upcast(sums) / lengths.clamp(min=1)


def _difference(chosen: Tensor, rejected: Tensor) -> Tensor:
    assert chosen.shape == rejected.shape, f"chosen {tuple(chosen.shape)} and rejected {tuple(rejected.shape)} differ"
    return upcast(chosen) - upcast(rejected)


def _smoothed_logistic(logits: Tensor, label_smoothing: float) -> Tensor:
    """Return the cross-entropy of logits that should be positive, where labels are wrong with this probability."""
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def dpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Return -log sigmoid(beta * (chosen - rejected)) of log-ratios `(P,)`; ln 2 where they are equal.

    DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7). Of log-ratios per token it is length-normalised DPO (Tulu 3,
    arXiv 2411.15124), whose beta is near 5. With `label_smoothing` e it is conservative DPO (Mitchell 2023,
    ericmitchell.ai/cdpo.pdf): (1 - e) of the loss, and e of that of the swapped pair.
    """
    return _smoothed_logistic(beta * _difference(chosen, rejected), label_smoothing)


def robust_dpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Return the loss `(P,)` whose mean over labels flipped with probability e is that of clean labels.

    ((1 - e) L(chosen, rejected) - e L(rejected, chosen)) / (1 - 2e), of log-ratios `(P,)` and with L as in
    `dpo_loss` (robust DPO, Chowdhury et al. 2024, arXiv 2403.00409). Raises ValueError unless 0 <= e < 0.5.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is the share of flipped labels, from 0 to below 0.5, not {label_smoothing}")
    logits = beta * _difference(chosen, rejected)
    clean, flipped = -F.logsigmoid(logits), -F.logsigmoid(-logits)
    return ((1 - label_smoothing) * clean - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def ipo_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Return (chosen - rejected - 1 / (2 beta))^2 of log-ratios per token `(P,)`.

    IPO (Azar et al. 2023, arXiv 2310.12036, eq. 17, where beta is tau). The paper writes sums; its authors' results
    are of means over the tokens, as they told the authors of TRL.
    """
    return (_difference(chosen, rejected) - 1 / (2 * beta)).square()


def hinge_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Return max(0, 1 - beta * (chosen - rejected)) of log-ratios `(P,)` (RSO, arXiv 2309.06657, after SLiC)."""
    return F.relu(1 - beta * _difference(chosen, rejected))


def simpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float) -> Tensor:
    """Return -log sigmoid(beta * (chosen - rejected) - gamma) of the policy's log-probs per token `(P,)`.

    SimPO (Meng et al. 2024, arXiv 2405.14734, eq. 6): without a reference, `gamma` is the margin that is asked for.
    """
    return -F.logsigmoid(beta * _difference(chosen, rejected) - gamma)


def orpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Return -chosen - beta * log sigmoid(log(odds(chosen) / odds(rejected))) of log-probs per token `(P,)`.

    ORPO (Hong et al. 2024, arXiv 2403.07691, eqs. 6 and 7, where beta is lambda): no reference, the likelihood of the
    chosen completion is part of the loss. odds = p / (1 - p) of p, the geometric mean of the tokens' probabilities.
    """
    log_odds = _log_odds(chosen) - _log_odds(rejected)
    return -upcast(chosen) - beta * F.logsigmoid(log_odds)


def _log_odds(logprob: Tensor) -> Tensor:
    """Return log(p / (1 - p)) of log p."""
    logprob = upcast(logprob).clamp(max=MAX_MEAN_LOGPROB)
    # Each branch is computed for all entries; at this bound both are finite, so that no gradient is NaN.
    near_one = torch.log(-torch.expm1(logprob))
    return logprob - torch.where(logprob > LOG_HALF, near_one, torch.log1p(-logprob.clamp(max=LOG_HALF).exp()))


def kto_kl(mismatched: Tensor) -> Tensor:
    """Return KTO's estimate of KL(policy || reference) from log-ratios `(M,)` of completions of other prompts.

    Their mean, at least 0, detached (Ethayarajh et al. 2024, arXiv 2402.01306, section 4).
    """
    return upcast(mismatched).detach().mean().clamp(min=0)


def kto_loss(
    log_ratios: Tensor,
    desirable: Tensor,
    kl: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Return weight * (1 - sigmoid(beta * (log-ratio - kl))) of `(B,)` sequences, the sign turned where undesirable.

    KTO (Ethayarajh et al. 2024, arXiv 2402.01306, section 4): needs no pairs, `desirable` `(B,)` says which is which.
    """
    assert log_ratios.shape == desirable.shape, f"{tuple(log_ratios.shape)} and {tuple(desirable.shape)} differ"
    gain = beta * (upcast(log_ratios) - upcast(kl).detach())
    wanted = desirable.bool()
    weight = torch.where(wanted, desirable_weight, undesirable_weight)
    return weight * (1 - torch.sigmoid(torch.where(wanted, gain, -gain)))


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    margins: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    centre_coef: float = 0.0,
) -> Tensor:
    """Return -log sigmoid(chosen - rejected - margin) of a reward model's scores `(P,)`, with optional terms.

    The loss of InstructGPT's reward model (Ouyang et al. 2022, arXiv 2203.02155, eq. 1), with the margin of Llama 2
    (arXiv 2307.09288, eq. 2) and the centring term centre_coef * (chosen + rejected)^2 (Eisenstein et al. 2023,
    arXiv 2312.09244, eq. 2), which settles the scores' free constant.
    """
    difference = _difference(chosen, rejected)
    logits = difference if margins is None else difference - upcast(margins).detach()
    loss = _smoothed_logistic(logits, label_smoothing)
    return loss + centre_coef * (upcast(chosen) + upcast(rejected)).square() if centre_coef else loss
