"""Frozen weights as they are stored: in bfloat16 under products in float32, or in 4 bits.

Floor 1. A float32 holds every bfloat16, so a base whose file has those needs no more memory than its file, on devices
too that multiply float32 alone: a product widens its weight for itself, in blocks that stay in the processor's cache
(1 to 3% of the time of a product of 1,024 or of 366 tokens). What the products give is what they gave on float32.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from posttrain.models.matmul import add_matmul, matmul

BLOCK = 2**22  # entries of a weight that are widened at a time


def keep_stored_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Let a frozen model compute in `dtype` on weights as they are stored; names, files and other modules stay.

    Weights in 4 bits, and those of plain linear layers and embeddings in a narrower dtype, are widened at each product.
    Every other parameter is cast to `dtype`.
    """
    widened = [module for module in model.modules() if type(module) in (nn.Linear, nn.Embedding)]
    elsewhere = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        if type(module) not in (nn.Linear, nn.Embedding) or name != "weight"
    }
    for parameter in model.parameters():
        if id(parameter) in elsewhere and not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.to(dtype)
    module: Any
    for module in widened:
        if is_narrower(module.weight.dtype, dtype):
            module.__class__ = FrozenLinear if type(module) is nn.Linear else FrozenEmbedding
            module.product_dtype = dtype
    for module in model.modules():
        if hasattr(getattr(module, "weight", None), "quant_state"):
            module.__class__ = type(f"Frozen{type(module).__name__}", (FrozenProduct, type(module)), {})
            module.product_dtype = module.weight.quant_state.dtype


def is_narrower(dtype: torch.dtype, other: torch.dtype) -> bool:
    """Say whether `other` holds every number of `dtype`, and more."""
    return dtype != other and torch.promote_types(dtype, other) == other


def product_dtype(linear: nn.Linear) -> torch.dtype:
    """Return the dtype in which a linear layer computes: its weight's, if that is not widened."""
    return getattr(linear, "product_dtype", linear.weight.dtype)


def frozen_linear(x: Tensor, linear: nn.Linear) -> Tensor:
    """Return what a linear layer whose weights are frozen makes of x, `(..., in)` to `(..., out)`."""
    with torch.autocast(x.device.type, enabled=False):
        return cast(Tensor, _Product.apply(x.to(product_dtype(linear)), linear.weight, linear.bias))


class FrozenProduct:
    """x W^T + bias in `product_dtype`. bitsandbytes' own forward would repack a weight on CPUs without gradient."""

    product_dtype: torch.dtype

    def forward(self, x: Tensor) -> Tensor:
        """Return `(..., out)` of `(..., in)`."""
        return frozen_linear(x, cast(nn.Linear, self))


class FrozenLinear(FrozenProduct, nn.Linear):
    """A linear layer whose weight is narrower than its products."""


class FrozenEmbedding(nn.Embedding):
    """An embedding whose weight is narrower than what it gives."""

    product_dtype: torch.dtype

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors `(..., E)` of ids `(...)`."""
        return super().forward(ids).to(self.product_dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight  # frozen: nothing can change it before the backward pass
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        return multiply_back(grad_out, ctx.weight) if ctx.needs_input_grad[0] else None, None, None


def dense_weight(weight: Tensor) -> Tensor:
    """Return a weight out of its 4 bits, in the dtype that it was loaded in; any other as it is."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias`, `(..., K)` to `(..., N)`, in x's dtype, without gradient; weight `(N, K)`."""
    flat, blocks = x.reshape(-1, x.shape[-1]), _blocks(weight, x.dtype)
    if len(blocks) == 1:
        out = matmul(flat, dense_weight(weight).to(x.dtype).T, bias)
    else:
        out = x.new_empty(len(flat), len(weight))
        for block in blocks:
            torch.mm(flat, weight[block].to(x.dtype).T, out=out[:, block])
        if bias is not None:
            out += bias
    return out.view(*x.shape[:-1], out.shape[-1])


def multiply_back(grad: Tensor, weight: Tensor, total: Tensor | None = None) -> Tensor:
    """Return `total + grad @ weight`, `(..., N)` to `(..., K)`, in grad's dtype, without gradient; weight `(N, K)`.

    `total` is overwritten with it.
    """
    flat, blocks = grad.reshape(-1, grad.shape[-1]), _blocks(weight, grad.dtype)
    if total is None and len(blocks) == 1:
        out = matmul(flat, dense_weight(weight).to(grad.dtype))
    else:
        out = grad.new_zeros(len(flat), weight.shape[1]) if total is None else total.view(len(flat), -1)
        for block in blocks:
            add_matmul(out, flat[:, block], dense_weight(weight)[block].to(grad.dtype))
    return out.view(*grad.shape[:-1], out.shape[-1])


def _blocks(weight: Tensor, dtype: torch.dtype) -> list[slice]:
    """Return which rows of a weight to widen at a time: all of them where there is nothing to widen."""
    if hasattr(weight, "quant_state") or weight.dtype == dtype:
        return [slice(None)]
    rows = max(1, BLOCK // weight.shape[1])
    return [slice(start, start + rows) for start in range(0, len(weight), rows)]
