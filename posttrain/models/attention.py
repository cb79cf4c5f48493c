"""One attention function for every transformers model, and the layouts that decide which token sees which.

Floor 1: knows tensors and spans; no data, no stage. Importing the module registers the name "posttrain" with
transformers; a model loaded with `attn_implementation="posttrain"` then takes the keyword `layout` in its forward.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from posttrain.errors import ModelError
from posttrain.kernels.operations import TreeSpans
from posttrain.models.masked_attention import causal_bias, masked_attention
from posttrain.models.padded_trees import PaddedTrees
from posttrain.models.tree_attention import Span, tree_attention, tree_kernels, tree_spans

ATTENTION_NAME = "posttrain"


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

    On a CPU by the compiled kernels, where these serve the model's heads; else in padded grids.
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
        kept = [place for place, (_, length) in enumerate(branches) if length]
        self._trees = prompts, [branches[place] for place in kept], [branch_prompts[place] for place in kept]
        self._device = device

    @cached_property
    def _spans(self) -> TreeSpans:
        return tree_spans(*self._trees)

    @cached_property
    def _padded(self) -> PaddedTrees:
        return PaddedTrees(*self._trees, device=self._device)

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
        """Attend within each prompt, and from each branch; see `AttentionLayout.attend`."""
        states = tuple(each[0].transpose(0, 1) for each in (query, key, value))  # (T, H, D)
        kernels = tree_kernels(query, value) if softcap is None else None
        if kernels is None:
            return self._padded.attend(*states, scaling=scaling, window=sliding_window, softcap=softcap)[None]
        return tree_attention(kernels, self._spans, *states, scaling=scaling, window=sliding_window)[None]
