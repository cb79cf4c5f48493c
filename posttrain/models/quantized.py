"""Base weights in 4 bits by bitsandbytes, with adapters trained on top: QLoRA (Dettmers et al. 2023, arXiv 2305.14314).

Floor 1. NF4 with double quantisation: 4.13 bits for each weight of a linear layer inside the model; embeddings, norms
and head keep their precision. A weight leaves its 4 bits only for the time of a product, in the forward and once more
in the backward pass, and never gets an adapter merged into it.
"""

import importlib.util
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
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


def dense_weight(weight: Tensor) -> Tensor:
    """Return a weight as its product needs it: out of 4 bits in the dtype that it was loaded in, any other as it is."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state)


def leave_file(model: PreTrainedModel) -> None:
    """Copy what is not in 4 bits out of the mapped file, of which else all weights would stay in memory.

    Of Qwen2.5-0.5B's shape the process then holds 1.1 GB instead of 1.8 (1.6 with whole weights).
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if not hasattr(tensor, "quant_state"):
            tensor.data = tensor.data.clone()
    return_freed_memory()


def use_dense_products(model: PreTrainedModel) -> None:
    """Let the model's 4-bit layers compute by `DenseProduct`; names, weights and files stay bitsandbytes' own."""
    for module in model.modules():
        if hasattr(getattr(module, "weight", None), "quant_state"):
            module.__class__ = type(f"DenseProductOf{type(module).__name__}", (DenseProduct, type(module)), {})


class DenseProduct:
    """x W^T + bias. bitsandbytes' own forward would repack a weight on CPUs without gradient, for that use only."""

    weight: Any
    bias: Any

    def forward(self, x: Tensor) -> Tensor:
        """Return `(..., out)` of `(..., in)`, in the weight's own precision."""
        with torch.autocast(x.device.type, enabled=False):
            return cast(Tensor, _FrozenProduct.apply(x, self.weight, self.bias))


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight, ctx.dtype = weight, x.dtype  # frozen: nothing can change it before the backward pass
        dense = dense_weight(weight)
        return nn.functional.linear(x.to(dense.dtype), dense, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = (grad_out @ dense_weight(ctx.weight)).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        return grad_x, None, None
