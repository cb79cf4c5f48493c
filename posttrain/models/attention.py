"""One attention function for every transformers model, and the layouts that decide which token sees which.

Floor 1: knows tensors and spans; no data, no stage. Importing the module registers the name "posttrain" with
transformers; a model loaded with `attn_implementation="posttrain"` then takes the keyword `layout` in its forward.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from posttrain.errors import ModelError
from posttrain.models.masked_attention import causal_bias, causal_mask, grouped_bias, masked_attention

ATTENTION_NAME = "posttrain"

Span = tuple[int, int]  # start and length in the packed sequence


class AttentionLayout(Protocol):
    """Which token attends to which: the object a caller passes as `model(..., layout=layout)`."""

    def attend(
        self,
        layer_index: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Attend in one layer; called once for each layer of each forward, and again by gradient checkpointing.

        query `(B, H, T, D)`, key `(B, Hkv, T, D)` and value `(B, Hkv, T, Dv)` are the forward's tokens, already
        rotated, in one dtype; B is 1 in packed layouts and H a multiple of Hkv. A query sees a key only if
        position(query) - position(key) < `sliding_window`. Scores are `softcap * tanh(q k scaling / softcap)` where
        softcap is given. Returns `(B, T, H, Dv)`.
        """
        ...


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: AttentionLayout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **further: Any,
) -> tuple[Tensor, None]:
    """Hand the attention of one layer to `layout`, in transformers' calling convention.

    Raises ModelError where no layout came, or where the architecture asks for something layouts don't do
    (attention sinks, position biases): a silent wrong answer otherwise.
    """
    if layout is None:
        raise ModelError(
            f'attention "{ATTENTION_NAME}" needs a layout, and the model was called without one',
            fix='model.set_attn_implementation("sdpa")  # to call the model by itself',
        )
    unsupported = [name for name in ("s_aux", "position_bias") if further.get(name) is not None]
    if unsupported:
        raise ModelError(
            f"{type(module).__name__} needs {', '.join(unsupported)} in its attention", fix='layout = "rows"'
        )
    # Under autocast rotary embeddings promote query and key to float32; value has the dtype to compute in.
    attended = layout.attend(
        module.layer_idx,  # type: ignore[arg-type]
        query.to(value.dtype),
        key.to(value.dtype),
        value,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window=sliding_window,
        softcap=softcap,
    )
    return attended, None


def no_mask(*args: Any, **kwargs: Any) -> None:
    """Build no attention mask: the layout knows better."""


AttentionInterface.register(ATTENTION_NAME, attention_forward)
AttentionMaskInterface.register(ATTENTION_NAME, no_mask)


class RowsLayout:
    """Separate right-padded rows, each causal by itself: padding comes last, so no real token can see it."""

    def __init__(self) -> None:
        self._biases: dict[tuple[Any, ...], Tensor] = {}  # of sliding windows

    def attend(
        self,
        layer_index: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Attend within each row; see `AttentionLayout.attend`."""
        length, groups = query.shape[2], query.shape[1] // key.shape[1]
        bias = None
        if sliding_window is not None and sliding_window < length:
            if (sliding_window, groups, query.dtype) not in self._biases:
                bias = causal_bias(length, sliding_window, groups, query.dtype, query.device)
                self._biases[sliding_window, groups, query.dtype] = bias
            bias = self._biases[sliding_window, groups, query.dtype]
        return masked_attention(query, key, value, bias, scaling=scaling, softcap=softcap).transpose(1, 2)


class TreeLayout:
    """Prompt trees packed into one sequence: a completion token sees its prompt and its own past, nothing else.

    Prompts are gathered to one padded grid and are causal; branches to another, where the keys of a row are its
    prompt's and its own. Index tensors are built once here, biases once for each sliding window.
    """

    def __init__(
        self,
        prompts: Sequence[Span],
        branches: Sequence[Span],
        branch_prompts: Sequence[int],
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        """Take the spans of prompts and branches, which cover the sequence, and the prompt of each branch."""
        kept = [(span, prompts[prompt]) for span, prompt in zip(branches, branch_prompts, strict=True) if span[1]]
        branches, parents = [span for span, _ in kept], [parent for _, parent in kept]
        self._prompt_index = _grid(prompts, device)  # (P, Tp)
        self._branch_index = _grid(branches, device)  # (B, Tc)
        self._key_index = torch.cat([_grid(parents, device), self._branch_index], dim=1)  # (B, Tq + Tc)
        self._parent_lengths = torch.tensor([length for _, length in parents], device=device)  # (B,)
        self._scatter = self._scatter_index(prompts, branches).to(device)  # (T,)
        self._longest = max((p[1] + b[1] for b, p in kept), default=0)
        self._biases: dict[tuple[Any, ...], tuple[Tensor | None, Tensor]] = {}

    def attend(
        self,
        layer_index: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """Attend within each prompt, then from each branch; see `AttentionLayout.attend`."""
        prompt_bias, branch_bias = self._biases_within(sliding_window, query.shape[1] // key.shape[1], query.dtype)
        queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))  # (T, H, D)
        of_prompts = masked_attention(
            _gather(queries, self._prompt_index),
            _gather(keys, self._prompt_index),
            _gather(values, self._prompt_index),
            prompt_bias,
            scaling=scaling,
            softcap=softcap,
        )
        attended = [of_prompts.transpose(1, 2).flatten(0, 1)]  # (P * Tp, H, Dv)
        if self._branch_index.numel():
            of_branches = masked_attention(
                _gather(queries, self._branch_index),
                _gather(keys, self._key_index),
                _gather(values, self._key_index),
                branch_bias,
                scaling=scaling,
                softcap=softcap,
            )
            attended.append(of_branches.transpose(1, 2).flatten(0, 1))
        return torch.cat(attended).index_select(0, self._scatter)[None]  # (1, T, H, Dv)

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
