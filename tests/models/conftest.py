"""Tiny random models of each family, and a tokenizer, written to disk the way the Hub lays them out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 64
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # far from uniform, so that a wrong layout shows
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {"head_dim": 8},
    "gemma2": {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 4,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mistral": {"sliding_window": 4},
    "phi3": {"sliding_window": 5},
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5},
    "cohere": {"logit_scale": 0.25},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48},
}


def tiny_model(family: str, **changes: Any) -> PreTrainedModel:
    options = {**SIZES, **FAMILIES.get(family, {}), **changes}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **options)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", *[f"w{index}" for index in range(VOCABULARY - 4)]]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    """Return a function that gives a tiny random model of a family, the same one each time."""
    return tiny_model


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a tiny model with its tokenizer to a directory, and gives the directory."""

    def save(family: str = "llama", name: str = "model", **changes: Any) -> Path:
        directory = tmp_path / name
        tiny_model(family, **changes).save_pretrained(directory)
        tiny_tokenizer().save_pretrained(directory)
        return directory

    return save
