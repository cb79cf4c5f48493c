"""The frozen reference policy of a stage, and its log-probs of whole completions, computed or kept on disk.

Floor 5. An adapter's reference is the base under it, or a frozen copy of the adapter that it continues; full
fine-tuning copies the model.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor

from posttrain.algorithms.preferences import sequence_logprobs
from posttrain.data.trees import in_order
from posttrain.models.frozen import dense_weight
from posttrain.models.lm import LoadedModel
from posttrain.models.logprobs import completion_logprobs, plain_model
from posttrain.models.lora import POLICY_ADAPTER, REFERENCE_ADAPTER, frozen_copy, reference
from posttrain.records import TokenTree
from posttrain.runs import durable
from posttrain.runs.tensor_files import load_tensors, tensor_chunks
from posttrain.stages.optimize import forward_all

ROWS_AT_A_TIME = 64  # rendered together while the cache is filled


class Reference:
    """The policy as it was when this was made."""

    def __init__(self, loaded: LoadedModel) -> None:
        model = loaded.model
        self._loaded = loaded if isinstance(model, PeftModel) else replace(loaded, model=frozen_copy(model))

    @contextmanager
    def active(self) -> Iterator[LoadedModel]:
        """Give the reference as a model to call inside the context, without gradients."""
        with as_reference(self._loaded) as loaded:
            yield loaded

    def sequence_logprobs(self, trees: Sequence[TokenTree], max_tokens: int) -> Tensor:
        """Return the summed log-probs `(B,)` of the branches' trained tokens under the reference, on the CPU."""
        with self.active() as loaded:
            return evaluate_sequences(loaded, trees, max_tokens)


@contextmanager
def as_reference(loaded: LoadedModel) -> Iterator[LoadedModel]:
    """Give a model that was not trained yet as its own reference: with the adapter it was loaded with, or none."""
    if not isinstance(loaded.model, PeftModel):
        yield loaded
        return
    with reference(loaded.model):
        yield loaded


@torch.no_grad()
def evaluate_sequences(loaded: LoadedModel, trees: Sequence[TokenTree], max_tokens: int) -> Tensor:
    """Return the summed log-probs `(B,)` of the branches' trained tokens, on the CPU, without gradients."""
    passes = forward_all(loaded, trees, max_tokens, completion_logprobs, whole_trees=True)
    sums = in_order(
        (micro_batch, sequence_logprobs(tokens.logprobs, batch.completion_mask)[0].cpu())
        for micro_batch, batch, tokens in passes
    )
    return torch.stack(sums)


def cached_sequence_logprobs(
    loaded: LoadedModel,
    trees: Mapping[str, TokenTree],
    cache: Path,
    max_tokens: int,
    *,
    on_progress: Callable[[], None],
) -> dict[str, Tensor]:
    """Return the reference's summed log-probs of every tree's branches, from a file in `cache` or into one.

    The model must not be trained yet. The file's name is a hash of the reference's weights, configuration and precision
    and of every token, so that another model, template or maximum length never finds it. `on_progress` is called
    between batches.
    """
    file = cache / f"{_cache_key(loaded, trees)}.safetensors"
    counts = {row_id: len(tree.branches) for row_id, tree in trees.items()}
    sums = _read(file, sum(counts.values()))
    if sums is None:
        parts = []
        with as_reference(loaded):
            for rows in _batched(list(trees), ROWS_AT_A_TIME):
                on_progress()
                parts.append(evaluate_sequences(loaded, [trees[row_id] for row_id in rows], max_tokens))
        sums = torch.cat(parts)
        durable.make_directory(cache)
        durable.write_file(file, b"".join(tensor_chunks({"ref_logprobs": sums})))
    return dict(zip(counts, sums.split(list(counts.values())), strict=True))


def _read(file: Path, expected: int) -> Tensor | None:
    """Return the sums in a file; None where there is none, or a damaged one."""
    if not file.is_file():
        return None
    try:
        sums = load_tensors(file)["ref_logprobs"]
    except (SafetensorError, KeyError):
        return None
    return sums if sums.shape == (expected,) else None


def _cache_key(loaded: LoadedModel, trees: Mapping[str, TokenTree]) -> str:
    plain, model = plain_model(loaded.model), loaded.model
    digest = hashlib.blake2b(f"{loaded.dtype}{plain.config.to_json_string()}".encode(), digest_size=16)
    if isinstance(model, PeftModel) and REFERENCE_ADAPTER in model.peft_config:
        adapter = model.peft_config[REFERENCE_ADAPTER].to_dict()
        digest.update(json.dumps(adapter, sort_keys=True, default=sorted).encode())  # its target_modules are a set
    for name, parameter in plain.named_parameters():
        if f".{POLICY_ADAPTER}." not in name:
            digest.update(name.encode())
            weight = dense_weight(parameter).detach().cpu().contiguous()
            digest.update(weight.reshape(-1).view(torch.uint8).numpy().data)
    for row_id, tree in trees.items():
        digest.update(f"{row_id}{tree}".encode())
    return digest.hexdigest()


def _batched(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))
