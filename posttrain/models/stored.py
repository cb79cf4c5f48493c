"""In which dtype a model's files hold its weights, and what loading it in that one must not change.

Floor 1: reads the headers of safetensors files, on disk or on the Hub, and no weight.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import cached_file

from posttrain.models.files import HEAD, INDEX, WEIGHTS, locate, read_json


def frozen_dtype(name: str, revision: str | None, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype to keep frozen weights in: that of their products, or of their files where that is exact."""
    if device.type != "cpu" or dtype != torch.float32:
        return dtype
    return torch.bfloat16 if stored_dtypes(name, revision) == {"BF16"} else dtype


def stored_dtypes(name: str, revision: str | None) -> set[str]:
    """Return the dtypes, in safetensors' names, that the files of a model's weights have, but for a score head's.

    Of a name on the Hub the files are fetched. An empty set where that cannot be done, a file is damaged, or there is
    none: loading the model says what is wrong.
    """
    dtypes = set()
    try:
        for file in _weight_files(str(locate(name) or name), revision):
            with safe_open(file, framework="pt") as tensors:
                names = [key for key in tensors.keys() if not key.startswith(f"{HEAD}.")]  # noqa: SIM118
                dtypes |= {tensors.get_slice(key).get_dtype() for key in names}
    except (OSError, SafetensorError):
        return set()
    return dtypes


def _weight_files(source: str, revision: str | None) -> list[str]:
    options: dict[str, Any] = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    whole = cached_file(source, WEIGHTS, **options)
    if whole is not None:
        return [whole]
    index = cached_file(source, INDEX, **options)
    shards = set() if index is None else set(read_json(Path(index)).get("weight_map", {}).values())
    found = [cached_file(source, shard, **options) for shard in sorted(shards)]
    return [shard for shard in found if shard is not None]


def restore_buffers(model: PreTrainedModel, config: PretrainedConfig) -> None:
    """Give a model that was loaded in bfloat16 the buffers of a float32 one, such as the scale of Gemma's embedding."""
    rounded = [name for name, buffer in model.named_buffers() if buffer.dtype == torch.bfloat16]
    if rounded:
        with no_init_weights():
            whole = type(model)(copy.deepcopy(config))
        for name in rounded:
            model.get_buffer(name).data = whole.get_buffer(name).data
