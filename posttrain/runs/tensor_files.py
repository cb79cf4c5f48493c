"""Tensors to and from safetensors files, streamed one by one so that a save needs no second copy of the model.

Floor 1: knows tensors, not models. The layout is that of the safetensors specification (8-byte header length, JSON
header, data); its own writer holds the file handle itself, and so could be neither hashed nor faulted on the way.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def tensor_chunks(tensors: Mapping[str, Tensor]) -> Iterator[memoryview | bytes]:
    """Yield the bytes of a safetensors file; widest dtypes first, so that every tensor is aligned."""
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    yield len(encoded).to_bytes(8, "little") + encoded
    for name in names:
        if tensors[name].numel():
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            yield flat.view(torch.uint8).numpy().data


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return a file's tensors in memory of their own, on the CPU."""
    return load_file(path, backend="pread")
