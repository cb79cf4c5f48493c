"""peft's LoRA layer with its forward and its backward as one function each: fewer passes, and nothing kept twice.

Floor 1: the arithmetic of Hu et al. 2021, arXiv 2106.09685, in the dtype of the frozen weight. peft casts the input to
the adapter's float32 and autocast casts it back, for each layer, and both copies stay until the backward pass.
"""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def fuse_adapters(model: PeftModel) -> None:
    """Let the plain LoRA layers of the model compute by `FusedLoraLinear`; names, weights and files stay peft's."""
    for module in model.modules():
        if type(module) is LoraLinear and type(module.base_layer) is nn.Linear:
            module.__class__ = FusedLoraLinear


class FusedLoraLinear(LoraLinear):
    """x W^T + bias + scaling (x A^T) B^T, where one adapter is active; peft's own forward in every other case."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return `(..., out)` of `(..., in)` in the frozen weight's dtype."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        plain = (
            not (args or kwargs or self.disable_adapters or self.merged)
            and len(active) == 1
            and active[0] not in self.lora_variant
            and not any(parameter.requires_grad for parameter in self.base_layer.parameters())
            and not (self.training and isinstance(self.lora_dropout[active[0]], nn.Dropout))
        )
        if not plain:
            return super().forward(x, *args, **kwargs)
        base = self.base_layer
        assert isinstance(base, nn.Linear)
        lora_a, lora_b = self.lora_A[active[0]].weight, self.lora_B[active[0]].weight
        with torch.autocast(x.device.type, enabled=False):
            return _LoraProduct.apply(
                x.to(base.weight.dtype), base.weight, base.bias, lora_a, lora_b, self.scaling[active[0]]
            )


class _LoraProduct(torch.autograd.Function):
    """The frozen weight gets no gradient, and the input is kept once for both products."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, scaling: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # (N, in)
        a, b = lora_a.to(weight.dtype), (lora_b * scaling).to(weight.dtype)  # (r, in), (out, r)
        inner = flat @ a.T  # (N, r)
        out = nn.functional.linear(flat, weight, bias).addmm_(inner, b.T)
        ctx.save_for_backward(flat, inner, weight, a, b)
        ctx.scaling, ctx.adapter_dtype = scaling, lora_a.dtype
        return out.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        flat, inner, weight, a, b = ctx.saved_tensors
        grad = grad_out.reshape(-1, grad_out.shape[-1])  # (N, out)
        grad_inner = grad @ b  # (N, r)
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_inner, a).view(*grad_out.shape[:-1], weight.shape[1])
        if ctx.needs_input_grad[3]:
            grad_a = (grad_inner.T @ flat).to(ctx.adapter_dtype)
        if ctx.needs_input_grad[4]:
            grad_b = (grad.T @ inner).to(ctx.adapter_dtype).mul_(ctx.scaling)
        return grad_x, None, None, grad_a, grad_b, None
