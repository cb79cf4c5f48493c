"""Attention within prompt trees by the compiled kernels: nothing is padded, and no score is kept.

Floor 1: pure tensors; knows spans, no model.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from posttrain.kernels.operations import COLUMNS, Kernels, TreeSpans, compiled_kernels

Span = tuple[int, int]  # start and length in the packed sequence


def tree_spans(prompts: Sequence[Span], branches: Sequence[Span], branch_prompts: Sequence[int]) -> TreeSpans:
    """Return the spans of trees as the kernels read them, from those of prompts and branches, and each one's prompt."""
    order = sorted(range(len(branches)), key=branch_prompts.__getitem__)
    counts = torch.bincount(torch.tensor(branch_prompts, dtype=torch.long), minlength=len(prompts))
    return TreeSpans(
        torch.tensor(prompts, dtype=torch.long).view(-1, 2),
        torch.tensor([branches[place] for place in order], dtype=torch.long).view(-1, 2),
        torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
    )


def tree_kernels(query: Tensor, value: Tensor) -> Kernels | None:
    """Return the kernels that serve heads `(..., D)` of this kind, where there are some."""
    if query.shape[-1] != value.shape[-1] or query.shape[-1] % COLUMNS:
        return None
    return compiled_kernels(query.device, query.dtype)


def tree_attention(
    kernels: Kernels, spans: TreeSpans, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None
) -> Tensor:
    """Attend from `(T, H, D)` to `(T, Hkv, D)` within trees, and to `window` tokens at most; return `(T, H, D)`."""
    out: Tensor = _TreeAttention.apply(
        *(states.contiguous() for states in (query, key, value)), kernels, spans, scaling, window
    )
    return out


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernels: Kernels,
        spans: TreeSpans,
        scaling: float,
        window: int | None,
    ) -> Tensor:
        out, logsums = kernels.attend_trees(spans, query, key, value, scaling=scaling, window=window)
        ctx.save_for_backward(query, key, value, out, logsums)
        ctx.kernels, ctx.spans, ctx.scaling, ctx.window = kernels, spans, scaling, window
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        *states, out, logsums = ctx.saved_tensors
        grads = ctx.kernels.attend_trees_backward(
            ctx.spans, tuple(states), out, logsums, grad_out.contiguous(), scaling=ctx.scaling, window=ctx.window
        )
        return *grads, None, None, None, None
