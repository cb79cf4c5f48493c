"""peft's LoRA layer with its forward and its backward as one function each: fewer passes, and nothing kept twice.

Floor 1: the arithmetic of Hu et al. 2021, arXiv 2106.09685, in the dtype of the frozen layer's products. peft casts
the input to the adapter's float32 and autocast casts it back, for each layer, and both copies stay until the backward
pass.
"""

from typing import Any, NamedTuple, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from posttrain.models.frozen import frozen_linear, multiply, multiply_back, product_dtype


def fuse_adapters(model: PeftModel) -> None:
    """Let the LoRA layers on linear layers compute by `FusedLoraLinear`; names, weights and files stay peft's."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and isinstance(module.base_layer, nn.Linear):
            module.__class__ = type(f"Fused{type(module).__name__}", (FusedLoraLinear, type(module)), {})


class FusedLoraLinear:
    """x W^T + bias + scaling (x A^T) B^T, where one adapter is active; peft's own forward in every other case."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return `(..., out)` of `(..., in)` in the dtype of the frozen layer's products."""
        own: Any = super()
        if args or kwargs:
            return cast(Tensor, own.forward(x, *args, **kwargs))
        if _active_adapter(self) is not None:
            return project(x, self)[0]
        layer: Any = self
        if layer.disable_adapters and not layer.merged and _is_frozen(layer.base_layer):
            return frozen_linear(x, layer.base_layer)
        return cast(Tensor, own.forward(x))


def project(x: Tensor, *layers: Any) -> tuple[Tensor, ...]:
    """Return what each of some linear layers makes of the same input, `(..., in)` to `(..., out)` each.

    Where all are `FusedLoraLinear` with one adapter active, the products that read the input are made once for all:
    x [A1^T A2^T ...], its gradient, and that of the A's.
    """
    adapters = [adapter for layer in layers if (adapter := _active_adapter(layer)) is not None]
    dtypes = {product_dtype(adapter.base) for adapter in adapters}
    if len(adapters) < len(layers) or len(dtypes) > 1:
        return tuple(layer(x) for layer in layers)
    weights = [weight for adapter in adapters for weight in (adapter.lora_a, adapter.lora_b)]
    with torch.autocast(x.device.type, enabled=False):
        products = _LoraProducts.apply(x.to(dtypes.pop()), adapters, *weights)
    return cast(tuple[Tensor, ...], products)


class _Adapter(NamedTuple):
    """The one active adapter of a frozen layer."""

    base: Any
    lora_a: Tensor  # (r, in)
    lora_b: Tensor  # (out, r)
    scaling: float


def _active_adapter(layer: Any) -> _Adapter | None:
    """Return the adapter that is to be computed beside a layer; None where that is not all there is to it."""
    if not isinstance(layer, FusedLoraLinear):
        return None
    lora: Any = layer
    active = [name for name in lora.active_adapters if name in lora.lora_A]
    plain = (
        not (lora.disable_adapters or lora.merged)
        and len(active) == 1
        and active[0] not in lora.lora_variant
        and _is_frozen(lora.base_layer)
        and not (lora.training and isinstance(lora.lora_dropout[active[0]], nn.Dropout))
    )
    if not plain:
        return None
    name = active[0]
    return _Adapter(lora.base_layer, lora.lora_A[name].weight, lora.lora_B[name].weight, lora.scaling[name])


def _is_frozen(layer: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in layer.parameters())


class _LoraProducts(torch.autograd.Function):
    """The frozen weights, which may be narrower than x, get no gradient; the input is kept once for all products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, adapters: list[_Adapter], *_: Tensor) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])  # (N, in)
        a = torch.cat([adapter.lora_a.to(x.dtype) for adapter in adapters])  # (R, in), of all ranks
        bs = [(adapter.lora_b * adapter.scaling).to(x.dtype) for adapter in adapters]  # (out, r)
        inner = flat @ a.T  # (N, R)
        ctx.save_for_backward(flat, inner, a, *bs)
        ctx.adapters = adapters  # their frozen weights cannot change before the backward pass
        parts = inner.split([b.shape[1] for b in bs], dim=1)
        products = (
            multiply(flat, adapter.base.weight, adapter.base.bias).addmm_(part, b.T)
            for adapter, part, b in zip(adapters, parts, bs, strict=True)
        )
        return tuple(product.view(*x.shape[:-1], product.shape[-1]) for product in products)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outs: Tensor) -> tuple[Tensor | None, ...]:
        flat, inner, a, *bs = ctx.saved_tensors
        grads = [grad_out.reshape(-1, grad_out.shape[-1]) for grad_out in grad_outs]  # (N, out)
        grad_inner = torch.cat([grad @ b for grad, b in zip(grads, bs, strict=True)], dim=1)  # (N, R)
        grad_x: Tensor | None = None
        if ctx.needs_input_grad[0]:
            for grad, adapter in zip(grads, ctx.adapters, strict=True):
                grad_x = multiply_back(grad, adapter.base.weight, grad_x)
            assert grad_x is not None
            grad_x = grad_x.addmm_(grad_inner, a).view(*grad_outs[0].shape[:-1], flat.shape[1])
        ranks = [b.shape[1] for b in bs]
        grad_as = (grad_inner.T @ flat).split(ranks)
        of_weights: list[Tensor] = []
        for grad, part, grad_a, adapter in zip(grads, inner.split(ranks, dim=1), grad_as, ctx.adapters, strict=True):
            grad_b = (grad.T @ part).to(adapter.lora_b.dtype).mul_(adapter.scaling)
            of_weights += grad_a.to(adapter.lora_a.dtype), grad_b
        return grad_x, None, *of_weights
