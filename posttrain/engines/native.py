"""The engine that runs wherever torch runs: transformers' own model code over a cache that shares prompts.

Floor 2. Each distinct prompt is computed once, and its keys and values serve all its branches. One token is decoded
for all live sequences at a time; those that end leave, and waiting ones enter (continuous batching).
"""

import copy
from collections.abc import Callable, MutableMapping, Sequence

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from posttrain.engines import Interrupted
from posttrain.engines.decoding import Decoding, Tree
from posttrain.engines.endings import Endings
from posttrain.engines.layers import shorten_layers
from posttrain.engines.rows import Branch
from posttrain.engines.stack import LayerStack, stack_agrees
from posttrain.engines.weights import InferenceWeights
from posttrain.errors import DataError, ModelError
from posttrain.models.lm import LoadedModel
from posttrain.models.logprobs import Model
from posttrain.models.lora import unfolded_weights
from posttrain.models.support import prepare_attention
from posttrain.records import Completion, Prompt
from posttrain.settings import EngineSettings, SamplingSettings


class NativeEngine:
    """Generates with the policy's frozen weights and copies of those that are trained; see `engines.Engine`."""

    def __init__(
        self, policy: LoadedModel, settings: EngineSettings, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Take the weights of `policy`; frozen ones are shared where they can be, and the model is not kept."""
        self._tokenizer, self._eos_ids = policy.tokenizer, policy.eos_ids
        self._max_sequences = settings.max_sequences
        self._should_stop = should_stop
        with no_init_weights():
            # A copy of the config, because from_config writes the attention's name into the one it gets.
            config = copy.deepcopy(policy.model.config)
            config.__dict__.pop("quantization_config", None)  # the copy's weights are whole
            model = AutoModelForCausalLM.from_config(config, dtype=policy.dtype, attn_implementation="eager")
        model.tie_weights()
        model.compute_dtype = policy.dtype
        self._model: PreTrainedModel | None = model.to(policy.device).eval().requires_grad_(False)
        self._weights: InferenceWeights | None = InferenceWeights(model)
        self._weights.adopt(unfolded_weights(policy.model))
        if prepare_attention(model, "tree") != "tree":
            raise ModelError(f"the native engine shares prompts between completions, and {type(model).__name__} cannot")
        self._weights.join()
        self.load_weights(policy.model)
        shorten_layers(model)
        self._stacks = stack_agrees(model)

    def load_weights(self, model: Model) -> None:
        """Take the weights of `model` with its adapters; caches live only within one `generate`."""
        self._open_model()
        assert self._weights is not None
        self._weights.load(unfolded_weights(model))

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingSettings,
        *,
        num_samples: int,
        seeds: Sequence[Sequence[int]],
        done: MutableMapping[tuple[int, int], Completion] | None = None,
    ) -> list[list[Completion]]:
        """Return `num_samples` completions of each prompt; see `engines.Engine.generate`."""
        model = self._open_model()
        _check_request(prompts, sampling, model)
        completions = {} if done is None else done
        trees: dict[tuple[int, ...], Tree] = {}
        for prompt_index, (prompt, prompt_seeds) in enumerate(zip(prompts, seeds, strict=True)):
            assert len(prompt_seeds) == num_samples, "a seed for each completion"
            branches = [Branch(prompt_index, index, seed) for index, seed in enumerate(prompt_seeds)]
            if waiting := [branch for branch in branches if (prompt_index, branch.sample_index) not in completions]:
                trees.setdefault(prompt.ids, Tree(prompt.ids)).waiting.extend(waiting)
        endings = Endings(self._tokenizer, self._eos_ids, sampling, model.device)
        num_rows = max(1, min(self._max_sequences, sum(len(tree.waiting) for tree in trees.values())))
        stack = LayerStack(model) if self._stacks else None  # made anew: it points to the weights of now
        decoding = Decoding(model, stack, list(trees.values()), endings, sampling, num_rows)
        while decoding.unfinished:
            if self._should_stop():
                raise Interrupted("the engine was asked to stop")
            for branch, completion in decoding.advance():
                completions[branch.prompt_index, branch.sample_index] = completion
        return [[completions[prompt, sample] for sample in range(num_samples)] for prompt in range(len(prompts))]

    def close(self) -> None:
        """Free the weights."""
        self._model = self._weights = None

    def _open_model(self) -> PreTrainedModel:
        if self._model is None:
            raise ModelError("the engine is closed")
        return self._model


def _check_request(prompts: Sequence[Prompt], sampling: SamplingSettings, model: PreTrainedModel) -> None:
    """Refuse prompts that the model cannot complete: DataError for bad ids, ModelError beyond its context."""
    config = model.config.get_text_config()
    context: int | None = getattr(config, "max_position_embeddings", None)
    for prompt in prompts:
        if not prompt.ids:
            raise DataError(f"prompt {prompt.id}: expected at least one token, and it has none")
        if not 0 <= min(prompt.ids) <= max(prompt.ids) < config.vocab_size:
            raise DataError(
                f"prompt {prompt.id}: expected token ids below {config.vocab_size}, and got {max(prompt.ids)}"
            )
        room = sampling.max_completion_length if context is None else context - len(prompt.ids)
        if room < sampling.max_completion_length:
            raise ModelError(
                f"prompt {prompt.id}: its {len(prompt.ids)} tokens and a max_completion_length of "
                f"{sampling.max_completion_length} exceed the model's context of {context}",
                fix=f"max_completion_length = {room}" if room > 0 else None,
            )
