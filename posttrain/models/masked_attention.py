"""Attention of padded rows under a bias: torch's own kernel, or, where training is faster by it, plain matrix products.

Floor 1: pure tensors; knows no model and no layout. A bias is added to the scaled scores: 0 = attend, -inf = don't.
Heads that share a key head (grouped-query attention) become further query rows, so that no key is ever copied.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Up to this many scores of one call, a CPU takes the products, and keeps their softmax for the backward pass (2 bytes
# each in bf16, in each layer). Measured in bf16, 2 cores, 9 heads on 3, forward and backward: 16 branches of 64 tokens
# on 214 keys 9.4 ms, torch's kernel 16.1; 4 prompts of 150 tokens 2.0 and 7.6; one row of 1,024 on 2,048 119 and 105.
MAX_KEPT_SCORES = 2**23


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, *, scaling: float, softcap: float | None = None
) -> Tensor:
    """Attend `(B, H, Tq, D)` to `(B, Hkv, Tk, D)` under a bias `(B or 1, 1, H / Hkv * Tq, Tk)`; None is causal.

    The bias has the query's dtype, and a row for each query of each head of a group, head by head (`grouped_bias`).
    Returns `(B, H, Tq, Dv)`. A query must see at least one key.
    """
    batch, heads, num_queries, size = query.shape
    kv_heads, num_keys = key.shape[1:3]
    groups = heads // kv_heads
    # Not by whether gradients are wanted: old, reference and current log-probs must come from one arithmetic.
    by_products = (
        query.device.type == "cpu" and softcap is None and batch * heads * num_queries * num_keys <= MAX_KEPT_SCORES
    )
    if bias is None and softcap is None and not by_products:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=groups > 1)
    if bias is None:
        make = _small_causal_bias if by_products else causal_bias
        bias = make(num_queries, None, groups, query.dtype, query.device)
    query = query.reshape(batch, kv_heads, groups * num_queries, size)
    if by_products:
        out = _ProductAttention.apply(query, key, value, bias, scaling)
    elif softcap is None:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scaling)
    else:
        scores = softcap * torch.tanh(query @ key.transpose(-1, -2) * (scaling / softcap))
        out = torch.softmax(scores + bias, dim=-1, dtype=torch.float32).to(value.dtype) @ value
    return out.reshape(batch, heads, num_queries, value.shape[-1])


def causal_mask(length: int, *, window: int | None = None, device: torch.device | None = None) -> Tensor:
    """Return the `(length, length)` mask of a causal sequence, True = attend, within a sliding window if given."""
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions[None, :]
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def causal_bias(length: int, window: int | None, groups: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the bias `(1, 1, groups * length, length)` of a causal sequence."""
    return grouped_bias(causal_mask(length, window=window, device=device)[None], groups, dtype)


@lru_cache(maxsize=4)  # each of at most MAX_KEPT_SCORES entries
def _small_causal_bias(length: int, window: None, groups: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it is kept, and an engine's tensor could not be used in training
        return causal_bias(length, window, groups, dtype, device)


def grouped_bias(mask: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """Turn a mask `(B, Tq, Tk)`, True = attend, into the bias `(B, 1, groups * Tq, Tk)` of `masked_attention`."""
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
    return bias.repeat(1, groups, 1)[:, None]


class _ProductAttention(torch.autograd.Function):
    """softmax(scaling * q k^T + bias) v and its gradient, in batched matrix products; the softmax in float32."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scaling: float) -> Tensor:
        wide = _wide(query.dtype)
        scores = (query @ key.mT).to(wide)
        torch.add(bias.to(wide), scores, alpha=scaling, out=scores)
        weights = scores.softmax(dim=-1).to(value.dtype)  # (B, Hkv, Q, Tk)
        ctx.save_for_backward(query, key, value, weights)
        ctx.scaling = scaling
        return weights @ value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights = ctx.saved_tensors
        # weights * (grad_weights - sum(weights * grad_weights)): torch's kernel takes the difference in float32 within
        # its one pass over the scores, whatever their dtype.
        grad_scores = torch._softmax_backward_data(grad_out @ value.mT, weights, -1, weights.dtype)
        grad_query = (grad_scores @ key).mul_(ctx.scaling)
        grad_key = (grad_scores.mT @ query).mul_(ctx.scaling)
        return grad_query, grad_key, weights.mT @ grad_out, None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return float32, or float64 where everything is."""
    return torch.promote_types(dtype, torch.float32)
