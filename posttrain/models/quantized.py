"""Base weights in 4 bits by bitsandbytes, with adapters trained on top: QLoRA (Dettmers et al. 2023, arXiv 2305.14314).

Floor 1. NF4 with double quantisation: 4.13 bits for each weight of a linear layer inside the model; embeddings, norms
and head keep their precision. A weight leaves its 4 bits only for the time of a product, in the forward and once more
in the backward pass, and never gets an adapter merged into it.
"""

import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel

from posttrain.errors import ModelError
from posttrain.models.devices import return_freed_memory


def quantization_options(
    config: PretrainedConfig, source: str, dtype: torch.dtype, device: torch.device, *, wanted: bool
) -> dict[str, Any]:
    """Return what transformers' loader must be told to keep a model in 4 bits on its device, where that is wanted.

    Raises ModelError for weights that are stored quantised and not wanted so, or by another method; and where
    bitsandbytes is missing.
    """
    stored = getattr(config, "quantization_config", None)
    if stored is not None:
        _check_stored(dict(stored), source, wanted=wanted)
    if not wanted:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("load_in_4bit needs bitsandbytes", fix='pip install "posttrain[4bit]"')
    options: dict[str, Any] = {"device_map": {"": str(device)}}  # else transformers takes a GPU where there is one
    if stored is None:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return options


def _check_stored(stored: dict[str, Any], source: str, *, wanted: bool) -> None:
    if stored.get("load_in_4bit") and wanted:
        return
    method = "bitsandbytes' 4 bits" if stored.get("load_in_4bit") else stored.get("quant_method", "an unknown method")
    raise ModelError(
        f"the weights of {source} are stored quantised, by {method}, and cannot be trained or folded as such",
        fix="model.load_in_4bit = true  # with an adapter" if stored.get("load_in_4bit") else None,
    )


def leave_file(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Copy what is not in 4 bits, in `dtype`, out of the mapped file, of which else all weights would stay in memory.

    Of Qwen2.5-0.5B's shape the process then holds 1.1 GB instead of 1.8 (1.6 with whole weights).
    """
    for buffer in model.buffers():
        buffer.data = buffer.data.clone()
    for parameter in model.parameters():
        if not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.to(dtype, copy=True)
    return_freed_memory()
