"""Log-probs of completions under a model: its transformer body, then the chunked head on completion tokens only.

Floor 1: knows transformers' causal language models, plain or with peft adapters, and the tensors of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.errors import ModelError
from posttrain.models.attention import ATTENTION_NAME, AttentionLayout, RowsLayout, Span, TreeLayout
from posttrain.models.head import chunked_logprobs

Model = PreTrainedModel | PeftModel


class TokenBatch(Protocol):
    """What a forward pass reads of `data.trees.TreeBatch`, where each field is explained."""

    @property
    def layout(self) -> Literal["tree", "rows"]: ...
    @property
    def input_ids(self) -> Tensor: ...
    @property
    def position_ids(self) -> Tensor: ...
    @property
    def attention_mask(self) -> Tensor: ...
    @property
    def prompt_spans(self) -> Sequence[Span]: ...
    @property
    def branch_spans(self) -> Sequence[Span]: ...
    @property
    def branch_prompts(self) -> Sequence[int]: ...
    @property
    def predictors(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def rows(self) -> Tensor: ...
    @property
    def columns(self) -> Tensor: ...
    @property
    def token_mask(self) -> Tensor: ...


@dataclass(frozen=True, slots=True, eq=False)
class TokenLogprobs:
    """Log-prob of each completion token and entropy of its distribution, `(B, T)` in float32, 0 on padding."""

    logprobs: Tensor
    entropy: Tensor


def completion_logprobs(model: Model, batch: TokenBatch, *, temperature: float = 1.0) -> TokenLogprobs:
    """Return the log-prob of every completion token of the batch, trained or not, at `temperature`.

    The batch is moved to the model's device. Raises ModelError for a tree batch on a model whose attention is its own.
    """
    transformer = plain_model(model)
    return logprobs_of_hidden(transformer, batch_hidden_states(transformer, batch), batch, temperature=temperature)


def logprobs_of_hidden(
    transformer: PreTrainedModel, hidden: Tensor, batch: TokenBatch, *, temperature: float = 1.0
) -> TokenLogprobs:
    """Return the log-probs of a batch's completion tokens from its hidden states `(R * T, E)`."""
    device = hidden.device
    of_predictors = hidden.index_select(0, batch.predictors.to(device))  # (N, E)
    logprobs, entropy = head_logprobs(transformer, of_predictors, batch.targets.to(device), temperature=temperature)
    where = batch.rows.to(device), batch.columns.to(device)
    empty = logprobs.new_zeros(batch.token_mask.shape)
    return TokenLogprobs(empty.index_put(where, logprobs), empty.index_put(where, entropy))


def batch_hidden_states(transformer: PreTrainedModel, batch: TokenBatch) -> Tensor:
    """Return the last hidden states `(R * T, E)` of a batch's flattened input.

    Raises ModelError for a tree batch on a model whose attention is its own.
    """
    device = transformer.device
    if transformer.config._attn_implementation == ATTENTION_NAME:
        layout, attention_mask = attention_layout(batch, device), None
    elif batch.layout == "rows":
        layout, attention_mask = None, batch.attention_mask.to(device)
    else:
        raise ModelError(f"{type(transformer).__name__} was not loaded for prompt trees", fix='layout = "rows"')
    input_ids, position_ids = batch.input_ids.to(device), batch.position_ids.to(device)
    hidden = hidden_states(transformer, input_ids, position_ids, layout=layout, attention_mask=attention_mask)
    return hidden.flatten(0, 1)


def attention_layout(batch: TokenBatch, device: torch.device) -> AttentionLayout:
    """Return the layout to pass to a model whose attention is "posttrain"."""
    if batch.layout == "rows":
        return RowsLayout()
    return TreeLayout(batch.prompt_spans, batch.branch_spans, batch.branch_prompts, device=device)


def plain_model(model: Model) -> PreTrainedModel:
    """Return the transformers model; adapters stay in it as layers."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(plain, PreTrainedModel)
    return plain


def compute_dtype(transformer: PreTrainedModel) -> torch.dtype:
    """Return the dtype of a model's products: its `compute_dtype` where `load_model` set one, else its weights'."""
    dtype: torch.dtype = getattr(transformer, "compute_dtype", transformer.dtype)
    return dtype


def compute_autocast(transformer: PreTrainedModel) -> torch.autocast:
    """Return the autocast of a model's forward, to its `compute_dtype`."""
    dtype = compute_dtype(transformer)
    return torch.autocast(transformer.device.type, dtype=dtype, enabled=dtype != torch.float32)


def hidden_states(
    transformer: PreTrainedModel,
    input_ids: Tensor,
    position_ids: Tensor,
    *,
    layout: AttentionLayout | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Return the last hidden states `(R, T, E)` of `(R, T)` tokens, under `layout` or else under `attention_mask`."""
    masking = {"attention_mask": attention_mask} if layout is None else {"layout": layout}
    with compute_autocast(transformer):
        output = transformer.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False, **masking)
    return output.last_hidden_state


def head_logprobs(
    transformer: PreTrainedModel, hidden: Tensor, targets: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return log-prob `(N,)` and entropy `(N,)` of targets `(N,)` after hidden states `(N, E)`."""
    head = transformer.get_output_embeddings()
    config = transformer.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere multiplies
    scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite divides
    with compute_autocast(transformer):
        return chunked_logprobs(
            hidden,
            head.weight,
            targets,
            temperature=temperature,
            bias=getattr(head, "bias", None),
            softcap=getattr(config, "final_logit_softcapping", None),
            scale=scale,
        )
