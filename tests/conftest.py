"""Offline, single-threaded and quiet, what every test relies on; tiny random models; rows on disk; the command line."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

TWO_LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES: dict[str, Any] = {
    **TWO_LAYERS,
    "vocab_size": 64,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # far from uniform, so that a wrong layout shows
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "tie_word_embeddings": True},
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


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """Return `make(family, seed=0, **changes)`, a tiny random model of a family with transformers' eager attention."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

    def make(family: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
        config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES.get(family, {}), **changes})
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()

    return make


@pytest.fixture(scope="session")
def nano_tokenizer() -> "PreTrainedTokenizerFast":
    """Return a tokenizer of 400 tokens, trained on documents of the embedded task."""
    from posttrain.nano.corpus import MID_TRAINING_BLEND, documents
    from posttrain.nano.tokenizer import train_tokenizer

    return train_tokenizer(islice(documents(MID_TRAINING_BLEND, seed=0), 300), 400, 1024)


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Return `save(family, tokenizer, **changes)`, which writes a random two-layer model in the Hub's layout."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def save(
        family: str, tokenizer: "PreTrainedTokenizerFast", *, dtype: torch.dtype = torch.float32, **changes: Any
    ) -> str:
        sizes = {"vocab_size": 400, "intermediate_size": 64, "max_position_embeddings": 512}
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
        config = AutoConfig.for_model(family, **{**TWO_LAYERS, **sizes, **ends, **changes})
        torch.manual_seed(0)
        directory = tmp_path_factory.mktemp("models") / family
        AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        return str(directory)

    return save


@pytest.fixture(scope="session")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the directory of the embedded model with a random score head."""
    from posttrain.models.lm import load_model
    from posttrain.models.scores import add_score_head, save_reward_model
    from posttrain.settings import ModelSettings

    loaded = load_model(ModelSettings(dtype="float32", device="cpu"), seed=0)
    add_score_head(loaded, seed=0)
    directory = tmp_path_factory.mktemp("models") / "rm"
    save_reward_model(loaded, directory)
    return str(directory)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write rows as JSON lines and return the path as flags and settings take it."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def call(*arguments: str) -> int:
    """Run the command line in this process and return its exit code."""
    from posttrain.cli import main

    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code
