"""The model that completions are measured against, and their log-probs under it and under the evaluated model.

Floor 4: forward passes of our own over prompt trees, at temperature 1 and over the whole vocabulary, whatever the
engine sampled with. What the numbers estimate stands in `distance.py`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel

from posttrain.algorithms.tokens import masked_mean, masked_sum
from posttrain.data.trees import MicroBatch, build_batch, cut_micro_batches, in_order
from posttrain.errors import ConfigError
from posttrain.models.files import base_of_adapter, is_adapter, locate
from posttrain.models.lm import LoadedModel, load_model
from posttrain.models.logprobs import completion_logprobs
from posttrain.models.lora import reference
from posttrain.records import Branch, Completion, Prompt, TokenTree
from posttrain.settings import ModelSettings

MAX_TOKENS = 4096  # of one forward pass: sets memory, not the result


@dataclass(frozen=True, slots=True)
class Distance:
    """What a model and its reference say of a completion, in nats; the fields are columns of the samples' table."""

    policy_logprob: float  # sum over the completion's tokens
    ref_logprob: float
    entropy: float  # of the model, mean over the tokens


class ReferenceModel:
    """What a model's completions are measured against: a model of its own, or the base under an adapter, switched off.

    With `own` there are two models in memory; without it the base is there once. Raises ConfigError for a reference
    that has other tokens.
    """

    def __init__(self, evaluated: LoadedModel, own: LoadedModel | None) -> None:
        if own is not None and own.tokenizer.get_vocab() != evaluated.tokenizer.get_vocab():
            sizes = f"{len(evaluated.tokenizer)} and {len(own.tokenizer)}"
            raise ConfigError(f"no KL between models of different tokens: they have {sizes}, and not the same ones")
        self._evaluated, self._own = evaluated, own

    def distances(
        self, prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], *, max_tokens: int = MAX_TOKENS
    ) -> list[Distance]:
        """Return the distance of every completion, prompt by prompt in one flat list."""
        trees = [
            TokenTree(prompt.ids, tuple(Branch(one.ids, (1,) * len(one.ids)) for one in group))
            for prompt, group in zip(prompts, completions, strict=True)
        ]
        return self.of_trees(trees, max_tokens=max_tokens)

    def of_trees(self, trees: Sequence[TokenTree], *, max_tokens: int = MAX_TOKENS) -> list[Distance]:
        """Return the distance of every branch, tree by tree in one flat list."""
        logprobs, entropies = sums_and_entropies(self._evaluated, trees, max_tokens)
        ref_logprobs = logprobs
        if self._own is not self._evaluated:
            with self._active() as frozen:
                ref_logprobs, _ = sums_and_entropies(frozen, trees, max_tokens)
        return [Distance(*of_one) for of_one in zip(logprobs, ref_logprobs, entropies, strict=True)]

    @contextmanager
    def _active(self) -> Iterator[LoadedModel]:
        if self._own is not None:
            yield self._own
            return
        assert isinstance(self._evaluated.model, PeftModel), "only an adapter has a base to be measured against"
        with reference(self._evaluated.model):
            yield self._evaluated


def open_reference(named: ModelSettings, evaluated: LoadedModel, settings: ModelSettings) -> ReferenceModel:
    """Return the reference that is named, for a model loaded by `settings`; nothing is loaded twice."""
    if named.name_or_path == settings.name_or_path:
        return ReferenceModel(evaluated, evaluated)
    if is_base(named.name_or_path, settings.name_or_path):
        return ReferenceModel(evaluated, None)
    return ReferenceModel(evaluated, load_model(named, seed=0, trainable=False))


def is_base(name: str, adapter: str) -> bool:
    """Return whether a model is the base under another, which is an adapter; both by directory or name."""
    directory = locate(adapter)
    if directory is None or not is_adapter(directory):
        return False
    base = base_of_adapter(directory)
    one, other = locate(name), locate(base)
    return name == base if one is None or other is None else one.resolve() == other.resolve()


@torch.no_grad()
def sums_and_entropies(
    loaded: LoadedModel, trees: Sequence[TokenTree], max_tokens: int
) -> tuple[list[float], list[float]]:
    """Return the log-prob of every branch, summed over its tokens, and the mean entropy of these, in nats."""
    found: list[tuple[MicroBatch, list[list[float]]]] = []
    for micro_batch in cut_micro_batches(trees, max_tokens, layout=loaded.layout):
        batch = build_batch(micro_batch.trees, layout=loaded.layout, pad_id=loaded.pad_id).to(loaded.device)
        tokens, mask = completion_logprobs(loaded.model, batch), batch.token_mask.cpu()
        sums = masked_sum(tokens.logprobs.cpu().double(), mask, dim=-1)
        means = masked_mean(tokens.entropy.cpu().double(), mask, dim=-1)
        found.append((micro_batch, torch.stack([sums, means], dim=-1).tolist()))
    ordered = in_order(found)
    return [logprob for logprob, _ in ordered], [entropy for _, entropy in ordered]
