"""The value head of a critic: for each completion token, one number read before the token is chosen.

Floor 1. The head stands beside a model, not in it: a critic may share its model with the policy, and what an engine
takes of that is the policy alone.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from posttrain.models.lm import LoadedModel
from posttrain.models.logprobs import (
    Model,
    TokenBatch,
    TokenLogprobs,
    batch_hidden_states,
    logprobs_of_hidden,
    plain_model,
)
from posttrain.seeds import derive_seed

VALUE_HEAD = "value_head.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class TokenValues:
    """Values in float32: before each completion token `(B, T)`, 0 on padding, and after the last one `(B,)`."""

    values: Tensor
    final: Tensor


def make_value_head(loaded: LoadedModel, *, seed: int) -> nn.Linear:
    """Return a trainable head `(E,) -> (1,)` in float32 whose values start near 0.

    Weights have the deviation 1 / (E + 1), the bias is 0: a larger start would be noise in the first advantages.
    """
    size = plain_model(loaded.model).config.get_text_config().hidden_size
    head = nn.Linear(size, 1, dtype=torch.float32)
    generator = torch.Generator().manual_seed(derive_seed(seed, "value-head"))
    nn.init.normal_(head.weight, std=1 / (size + 1), generator=generator)
    nn.init.zeros_(head.bias)
    return head.to(loaded.device)


def completion_values(model: Model, batch: TokenBatch, head: nn.Linear) -> TokenValues:
    """Return the values of every completion of the batch.

    Raises ModelError for a tree batch on a model whose attention is its own.
    """
    return values_of_hidden(batch_hidden_states(plain_model(model), batch), batch, head)


def logprobs_and_values(
    model: Model, batch: TokenBatch, head: nn.Linear, *, temperature: float = 1.0
) -> tuple[TokenLogprobs, TokenValues]:
    """Return `completion_logprobs` and `completion_values` of one pass through a shared model."""
    transformer = plain_model(model)
    hidden = batch_hidden_states(transformer, batch)
    logprobs = logprobs_of_hidden(transformer, hidden, batch, temperature=temperature)
    return logprobs, values_of_hidden(hidden, batch, head)


def values_of_hidden(hidden: Tensor, batch: TokenBatch, head: nn.Linear) -> TokenValues:
    """Return the values of a batch's hidden states `(R * T, E)`."""
    device = hidden.device
    last = torch.tensor([start + length - 1 for start, length in batch.branch_spans], device=device)
    places = torch.cat([batch.predictors.to(device), last])
    values = F.linear(hidden.index_select(0, places).float(), head.weight, head.bias).squeeze(-1)  # (N + B,)
    of_tokens, final = values.split([len(batch.predictors), len(last)])
    where = batch.rows.to(device), batch.columns.to(device)
    return TokenValues(values.new_zeros(batch.token_mask.shape).index_put(where, of_tokens), final)


def save_value_head(head: nn.Linear, directory: Path) -> None:
    """Write the head's weight `(1, E)` and bias `(1,)` beside its model."""
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in head.named_parameters()}
    save_file(tensors, directory / VALUE_HEAD, metadata={"format": "pt"})
