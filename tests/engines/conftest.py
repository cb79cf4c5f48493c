"""Tiny random models of six families, with a byte-level tokenizer, and engines over them."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from posttrain.engines import ENGINES, Engine
from posttrain.engines.weights import InferenceWeights
from posttrain.models.attention import ATTENTION_NAME
from posttrain.models.lm import LoadedModel
from posttrain.records import Prompt
from posttrain.settings import EngineSettings

VOCAB_SIZE = 64
CONTEXT = 128
EOS_IDS = (1, 2)
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
MIXED_LAYERS = ["sliding_attention", "full_attention"]
FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SHAPE),
    "qwen2": lambda: Qwen2Config(**SHAPE | {"tie_word_embeddings": True}),
    "qwen3": lambda: Qwen3Config(**SHAPE),
    "gemma2": lambda: Gemma2Config(
        **SHAPE,
        sliding_window=6,
        layer_types=MIXED_LAYERS,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=4.0,
        query_pre_attn_scalar=16,
    ),
    "gemma3": lambda: Gemma3TextConfig(**SHAPE, sliding_window=6, layer_types=MIXED_LAYERS, query_pre_attn_scalar=16),
    "mistral": lambda: MistralConfig(**SHAPE, sliding_window=6),
    "granite": lambda: GraniteConfig(**SHAPE, logits_scaling=2.0, attention_multiplier=0.5),
}


def joined_model(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """Return a tiny model with joined linear layers, whose norms and biases are not those of a fresh one.

    `changes` are those of its config.
    """
    torch.manual_seed(0)
    config = FAMILIES[family]()
    config.update(changes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=ATTENTION_NAME, dtype=dtype).eval()
    for name, parameter in model.named_parameters():  # norms of 1 and biases of 0 would hide that they are left out
        if parameter.ndim == 1:
            parameter.data.uniform_(0.5, 1.5) if "norm" in name else parameter.data.normal_()
    model.requires_grad_(False)
    InferenceWeights(model).join()
    return model


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Single letters, pairs of letters, a space, and the two bytes of "é"."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    merges = list(pairwise(letters))
    tokens = ["<pad>", "<eos>", "<eot>", "<odd>", *letters, *("".join(pair) for pair in merges), "Ġ", "Ã", "©"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", additional_special_tokens=["<eot>", "<odd>"]
    )


@pytest.fixture
def make_policy(tokenizer: PreTrainedTokenizerFast) -> Callable[..., LoadedModel]:
    """Return `make(family, seed=0, eos_ids=EOS_IDS)`, a random policy whose own forward is transformers' eager one."""

    def make(family: str, *, seed: int = 0, eos_ids: tuple[int, ...] = EOS_IDS) -> LoadedModel:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(FAMILIES[family](), attn_implementation="eager").eval()
        return LoadedModel(
            model=model,
            tokenizer=tokenizer,
            device=torch.device("cpu"),
            dtype=torch.float32,
            eos_ids=frozenset(eos_ids),
            pad_id=0,
            layout="tree",
        )

    return make


@pytest.fixture(params=sorted(ENGINES))
def make_engine(request: pytest.FixtureRequest) -> Callable[..., Engine]:
    """Return `make(policy, max_sequences=64, should_stop=...)`, for every engine there is."""

    def make(
        policy: LoadedModel, *, max_sequences: int = 64, should_stop: Callable[[], bool] = lambda: False
    ) -> Engine:
        settings = EngineSettings(name=request.param, max_sequences=max_sequences)
        return ENGINES[request.param](policy, settings, should_stop)

    return make


@pytest.fixture(scope="session")
def prompts() -> list[Prompt]:
    """Five random prompts of uneven lengths, the shortest a single token."""
    generator = torch.Generator().manual_seed(0)
    return [
        Prompt(
            id=f"prompt-{index}",
            ids=tuple(torch.randint(4, VOCAB_SIZE, (length,), generator=generator).tolist()),
            content="",
            columns={},
        )
        for index, length in enumerate([9, 1, 14, 4, 7])
    ]
