"""Attention within prompt trees by torch's operations, in padded grids.

Floor 1: pure tensors; knows spans, no model.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.models.masked_attention import causal_bias, causal_mask, grouped_bias, masked_attention
from posttrain.models.tree_attention import Span


class PaddedTrees:
    """Prompts are gathered to one grid, and are causal; branches to another, with their prompts' keys and their own.

    Index tensors are built once here, biases once for each sliding window.
    """

    def __init__(
        self,
        prompts: Sequence[Span],
        branches: Sequence[Span],
        branch_prompts: Sequence[int],
        *,
        device: torch.device | str,
    ) -> None:
        """Take the spans of prompts and branches, which cover the sequence, and the prompt of each branch."""
        parents = [prompts[prompt] for prompt in branch_prompts]
        self._prompt_index = _grid(prompts, device)  # (P, Tp)
        self._branch_index = _grid(branches, device)  # (B, Tc)
        self._key_index = torch.cat([_grid(parents, device), self._branch_index], dim=1)  # (B, Tq + Tc)
        self._parent_lengths = torch.tensor([length for _, length in parents], device=device)  # (B,)
        self._scatter = self._scatter_index(prompts, branches).to(device)  # (T,)
        self._longest = max((p[1] + b[1] for b, p in zip(branches, parents, strict=True)), default=0)
        self._biases: dict[tuple[Any, ...], tuple[Tensor | None, Tensor]] = {}

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """Attend from `(T, H, D)` to `(T, Hkv, D)` and `(T, Hkv, Dv)`; return `(T, H, Dv)`."""
        prompt_bias, branch_bias = self._biases_within(window, query.shape[1] // key.shape[1], query.dtype)
        of_prompts = masked_attention(
            _gather(query, self._prompt_index),
            _gather(key, self._prompt_index),
            _gather(value, self._prompt_index),
            prompt_bias,
            scaling=scaling,
            softcap=softcap,
        )
        attended = [of_prompts.transpose(1, 2).flatten(0, 1)]  # (P * Tp, H, Dv)
        if self._branch_index.numel():
            of_branches = masked_attention(
                _gather(query, self._branch_index),
                _gather(key, self._key_index),
                _gather(value, self._key_index),
                branch_bias,
                scaling=scaling,
                softcap=softcap,
            )
            attended.append(of_branches.transpose(1, 2).flatten(0, 1))
        return torch.cat(attended).index_select(0, self._scatter)

    def _biases_within(self, window: int | None, groups: int, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
        """Return the biases of prompts (None: causal, without a window) and branches, built once for all layers."""
        length = self._prompt_index.shape[1]
        if window is not None and window >= max(self._longest, length):
            window = None
        if (window, groups, dtype) not in self._biases:
            device = self._scatter.device
            of_prompts = None if window is None else causal_bias(length, window, groups, dtype, device)
            of_branches = grouped_bias(self._branch_mask(window), groups, dtype)
            self._biases[window, groups, dtype] = of_prompts, of_branches
        return self._biases[window, groups, dtype]

    def _branch_mask(self, window: int | None) -> Tensor:
        """Return the `(B, Tc, Tq + Tc)` mask from each branch token to its prompt and its own past."""
        own_length = self._branch_index.shape[1]
        prompt_keys = torch.arange(self._key_index.shape[1] - own_length, device=self._scatter.device)
        own = torch.arange(own_length, device=self._scatter.device)
        parent_lengths = self._parent_lengths[:, None, None]
        to_prompt = (prompt_keys < parent_lengths).expand(-1, own_length, -1)  # (B, Tc, Tq)
        if window is not None:
            to_prompt = to_prompt & (parent_lengths + own[:, None] - prompt_keys < window)
        to_own = causal_mask(own_length, window=window, device=self._scatter.device).expand(len(to_prompt), -1, -1)
        return torch.cat([to_prompt, to_own], dim=2)

    def _scatter_index(self, prompts: Sequence[Span], branches: Sequence[Span]) -> Tensor:
        """Return where each token of the sequence lies in the prompt grid followed by the branch grid."""
        index = torch.empty(sum(length for _, length in [*prompts, *branches]), dtype=torch.long)
        offset = 0
        for spans, grid in ((prompts, self._prompt_index), (branches, self._branch_index)):
            for row, (start, length) in enumerate(spans):
                index[start : start + length] = offset + row * grid.shape[1] + torch.arange(length)
            offset += grid.numel()
        return index


def _grid(spans: Sequence[Span], device: torch.device | str) -> Tensor:
    """Return the token indices of each span as `(spans, longest)`, padded with the span's last token."""
    starts = torch.tensor([start for start, _ in spans], dtype=torch.long, device=device)[:, None]
    lengths = torch.tensor([length for _, length in spans], dtype=torch.long, device=device)[:, None]
    longest = max((length for _, length in spans), default=0)
    return starts + torch.arange(longest, device=device).minimum(lengths - 1)


def _gather(states: Tensor, index: Tensor) -> Tensor:
    """Gather `(T, H, D)` at `(B, L)` into `(B, H, L, D)`."""
    return states.index_select(0, index.flatten()).unflatten(0, index.shape).transpose(1, 2)
