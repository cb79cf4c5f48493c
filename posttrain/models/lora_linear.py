"""peft's LoRA layer with its forward and its backward as one function each: fewer passes, and nothing kept twice.

Floor 1: the arithmetic of Hu et al. 2021, arXiv 2106.09685, in the dtype of the frozen layer's products. peft casts
the input to the adapter's float32 and autocast casts it back, for each layer, and both copies stay until the backward
pass.
"""

from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from posttrain.models.frozen import multiply, multiply_back, product_dtype


def fuse_adapters(model: PeftModel) -> None:
    """Let the LoRA layers on linear layers compute by `FusedLoraLinear`; names, weights and files stay peft's."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and isinstance(module.base_layer, nn.Linear):
            module.__class__ = type(f"Fused{type(module).__name__}", (FusedLoraLinear, type(module)), {})


class FusedLoraLinear:
    """x W^T + bias + scaling (x A^T) B^T, where one adapter is active; peft's own forward in every other case."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return `(..., out)` of `(..., in)` in the dtype of the frozen layer's products."""
        layer: Any = self
        active = [name for name in layer.active_adapters if name in layer.lora_A]
        plain = (
            not (args or kwargs or layer.disable_adapters or layer.merged)
            and len(active) == 1
            and active[0] not in layer.lora_variant
            and not any(parameter.requires_grad for parameter in layer.base_layer.parameters())
            and not (layer.training and isinstance(layer.lora_dropout[active[0]], nn.Dropout))
        )
        if not plain:
            own: Any = super()
            return cast(Tensor, own.forward(x, *args, **kwargs))
        base, lora_a, lora_b = layer.base_layer, layer.lora_A[active[0]].weight, layer.lora_B[active[0]].weight
        x = x.to(product_dtype(base))
        with torch.autocast(x.device.type, enabled=False):
            product = _LoraProduct.apply(x, base.weight, base.bias, lora_a, lora_b, layer.scaling[active[0]])
        return cast(Tensor, product)


class _LoraProduct(torch.autograd.Function):
    """The frozen weight, which may be narrower than x, gets no gradient; the input is kept once for both products."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (N, in)
        a, b = lora_a.to(x.dtype), (lora_b * scaling).to(x.dtype)  # (r, in), (out, r)
        inner = flat @ a.T  # (N, r)
        out = multiply(flat, weight, bias).addmm_(inner, b.T)
        ctx.save_for_backward(flat, inner, a, b)
        ctx.weight = weight  # frozen: nothing can change it before the backward pass
        ctx.scaling, ctx.adapter_dtype = scaling, lora_a.dtype
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        flat, inner, a, b = ctx.saved_tensors
        grad = grad_out.reshape(-1, grad_out.shape[-1])  # (N, out)
        grad_inner = grad @ b  # (N, r)
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = multiply_back(grad, ctx.weight).addmm_(grad_inner, a).view(*grad_out.shape[:-1], flat.shape[1])
        if ctx.needs_input_grad[3]:
            grad_a = (grad_inner.T @ flat).to(ctx.adapter_dtype)
        if ctx.needs_input_grad[4]:
            grad_b = (grad.T @ inner).to(ctx.adapter_dtype).mul_(ctx.scaling)
        return grad_x, None, None, grad_a, grad_b, None
