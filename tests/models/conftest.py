"""The tiny models with a tokenizer, written to disk the way the Hub lays them out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 64


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", *[f"w{index}" for index in range(VOCABULARY - 4)]]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


@pytest.fixture
def saved(tmp_path: Path, make_model: Callable[..., PreTrainedModel]) -> Callable[..., Path]:
    """Return a function that writes a tiny model with its tokenizer to a directory, and gives the directory."""

    def save(family: str = "llama", name: str = "model", **changes: Any) -> Path:
        directory = tmp_path / name
        make_model(family, **changes).save_pretrained(directory)
        tiny_tokenizer().save_pretrained(directory)
        return directory

    return save
