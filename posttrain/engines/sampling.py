"""Choose the next token of each sequence from its logits, and say how likely it was.

Pure functions on `(B, V)` logits; knows no model, cache or tokenizer. Each sequence spends one uniform number a step,
from its own counter-based stream, so a completion depends on its seed alone. A draw inverts the distribution function
in two levels (blocks, then the block's tokens): `torch.multinomial` draws an exponential for every entry of the
vocabulary, a hundred times the work.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from posttrain.kernels.operations import compiled_kernels
from posttrain.settings import SamplingSettings

BLOCK = 256  # entries summed together in the first level of a draw; about the square root of a vocabulary
SMALLEST_TEMPERATURE = 1e-6  # whose inverse times a difference of logits is a float32
SMALLEST_BLOCK = 32  # a vocabulary that blocks of this size divide is not copied to pad it


class Sampled(NamedTuple):
    """Sampled ids `(B,)` with their log-probs `(B,)` in fp32."""

    ids: Tensor
    logprobs: Tensor


def exact_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of uniform numbers and running sums: float64, or float32 on mps, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def uniforms(seed: int, count: int) -> np.ndarray:
    """Return the first `count` uniform numbers in [0, 1) of a sequence's stream, float64 `(count,)`."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


def sample(logits: Tensor, uniform: Tensor, sampling: SamplingSettings) -> Sampled:
    """Sample one id for each row of `logits` `(B, V)`, spending `uniform` `(B,)` in [0, 1).

    Log-probs are over the whole vocabulary, before top-k, top-p and min-p, at the sampling temperature; temperature 0
    takes the likeliest token and reports its log-prob at temperature 1. NaN logits give NaN log-probs.
    """
    kernels = compiled_kernels(logits.device, logits.dtype)
    if kernels is not None and sampling.temperature > SMALLEST_TEMPERATURE and not truncates(sampling):
        return Sampled(*kernels.draw(logits.contiguous(), uniform, sampling.temperature))
    if sampling.temperature in (0.0, 1.0):
        probs = logits.softmax(dim=-1, dtype=torch.float32)
    else:
        logits = logits.float()
        peak = logits.amax(dim=-1, keepdim=True)  # taken off first: a tiny temperature must not overflow
        probs = ((logits - peak) / sampling.temperature).softmax(dim=-1)
    if sampling.temperature == 0.0:
        ids = logits.argmax(dim=-1)
    else:
        kept, candidates = truncate(probs, top_k=sampling.top_k, top_p=sampling.top_p, min_p=sampling.min_p)
        ids = inverse_cdf(kept, uniform)
        if candidates is not None:
            ids = candidates.gather(-1, ids[:, None]).squeeze(-1)
    # A sampled probability is above 0, and the likeliest is at least 1 / V: the logarithm is finite.
    return Sampled(ids, probs.gather(-1, ids[:, None]).squeeze(-1).log())


def truncates(sampling: SamplingSettings) -> bool:
    """Say whether top-k, top-p or min-p may exclude tokens."""
    return sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0


def truncate(probs: Tensor, *, top_k: int, top_p: float, min_p: float) -> tuple[Tensor, Tensor | None]:
    """Zero the probabilities `(B, V)` that top-k, then top-p of what is left, then min-p exclude.

    Returns the kept probabilities, not renormalised, and the ids of their columns, likeliest first; None where the
    columns are still the vocabulary. The order is that of transformers' logits processors.
    """
    peak = probs.amax(dim=-1, keepdim=True)
    candidates = None
    if 0 < top_k < probs.shape[-1]:
        probs, candidates = probs.topk(top_k, dim=-1)  # (B, k)
    if top_p < 1.0:
        if candidates is None:
            probs, candidates = probs.sort(dim=-1, descending=True, stable=True)
        before = probs.cumsum(dim=-1) - probs  # mass of the likelier tokens; 0 for the first, which is always kept
        probs = probs.where(before < top_p * probs.sum(dim=-1, keepdim=True), 0.0)
    if min_p > 0.0:
        probs = probs.where(probs >= min_p * peak, 0.0)
    return probs, candidates


def inverse_cdf(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return the index `(B,)` at which each row's running sum of `weights` `(B, N)` passes `uniform` of its total.

    Weights are non-negative and need not sum to 1; an index of weight 0 is never returned.
    """
    exact = exact_dtype(weights.device)
    count = weights.shape[-1]
    block_size = math.gcd(count, BLOCK)
    if block_size < SMALLEST_BLOCK:
        weights, block_size = torch.nn.functional.pad(weights, (0, -count % BLOCK)), BLOCK
    weights = weights.unflatten(-1, (-1, block_size))  # (B, blocks, block_size)
    totals = weights.sum(dim=-1).to(exact)  # (B, blocks)
    target = uniform.to(exact) * totals.sum(dim=-1)
    block, below = _first_above(totals, target)
    inside = weights[torch.arange(len(block), device=block.device), block].to(exact)  # (B, block_size)
    index, _ = _first_above(inside, target - below)
    return (block * block_size + index).clamp(max=count - 1)  # NaN weights would name a column of the padding


def _first_above(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first index with weight whose running sum exceeds `target` `(B,)`, and the sum before it.

    Where rounding leaves no such index, the last one with weight: a draw must neither fall off the end nor land on 0.
    """
    sums = weights.cumsum(dim=-1)
    positive = weights > 0
    above = (sums > target[:, None]) & positive
    first = above.int().argmax(dim=-1)
    last = weights.shape[-1] - 1 - positive.flip(-1).int().argmax(dim=-1)
    index = torch.where(above.any(dim=-1), first, last)
    below = (sums - weights).gather(-1, index[:, None]).squeeze(-1)
    return index, below
