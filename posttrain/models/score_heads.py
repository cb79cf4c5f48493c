"""The score head of a saved reward model: found in its files, kept in float32, and checked to be one.

Floor 1: transformers' classification models name it `score`; an adapter brings its own in its file.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from posttrain.errors import ModelError
from posttrain.models.files import ADAPTER_WEIGHTS, HEAD, SAVED_HEAD


def expect_head(config: PretrainedConfig, *, from_adapter: bool) -> set[str]:
    """Let transformers load the score head in float32, whatever the rest is; return the weights that may be missing.

    Where an adapter brings the head, that of its base is random and of one output. Raises ModelError for an
    architecture that transformers cannot classify with.
    """
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        raise ModelError(f"transformers has no sequence classification model for {config.model_type}")
    classifier: Any = AutoModelForSequenceClassification._model_mapping[type(config)]
    classifier._keep_in_fp32_modules_strict = {*(classifier._keep_in_fp32_modules_strict or ()), HEAD}
    if not from_adapter:
        return set()
    config.num_labels = 1
    return {f"{HEAD}.weight"}


def saved_head(adapter: Path) -> nn.Linear:
    """Return the score head of an adapter, in float32; raise ModelError where its file has none."""
    saved = load_file(adapter / ADAPTER_WEIGHTS)
    if SAVED_HEAD not in saved:
        raise ModelError(f"{adapter / ADAPTER_WEIGHTS} has no {SAVED_HEAD}: the adapter brings no score head")
    weight = saved[SAVED_HEAD].float()
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    head.weight = nn.Parameter(weight)
    return head


def check_head(plain: PreTrainedModel, name: str) -> None:
    """Raise ModelError for a classification model that gives something else than one score."""
    head = getattr(plain, HEAD, None)
    if not isinstance(head, nn.Linear) or head.out_features != 1 or head.bias is not None:
        raise ModelError(f"{name} is no reward model: expected a linear head `{HEAD}` with one output")
