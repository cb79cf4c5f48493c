"""Log-probs and entropies over the vocabulary, in chunks of tokens, without ever holding all logits.

Floor 1: pure tensors; knows no model. The backward pass computes each chunk's logits again, so memory grows with
chunk x V, not with N x V (V is 151,936 for Qwen2.5). Products run in `hidden`'s dtype, or in autocast's where it is
on; everything after them, and the sum over chunks of the weight's gradient, in float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 2**24  # logits in a chunk: 64 MiB in float32


@dataclass(frozen=True, slots=True)
class _LogitTransform:
    """What becomes of `hidden @ weight.T + bias` before the softmax: scale, soft cap, temperature."""

    temperature: float
    softcap: float | None
    scale: float

    def forward(self, products: Tensor) -> Tensor:
        """Return the logits `(n, V)` in float32; wide products are overwritten."""
        logits = products.to(_wide(products.dtype))
        if self.scale != 1.0:
            logits = logits.mul_(self.scale)
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits if self.temperature == 1.0 else logits.div_(self.temperature)

    def backward(self, grad_logits: Tensor, logits: Tensor) -> Tensor:
        """Return the gradient of the products from that of the logits."""
        if self.softcap is not None:
            saturation = logits * (self.temperature / self.softcap)
            grad_logits = grad_logits * (1.0 - saturation * saturation)
        factor = self.scale / self.temperature
        return grad_logits if factor == 1.0 else grad_logits * factor


def chunked_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the log-prob of each target `(N,)` and the entropy in nats `(N,)` of its distribution, in float32.

    hidden `(N, E)`, weight `(V, E)`, bias `(V,)`, targets `(N,)` in [0, V). The logits are
    `softcap * tanh(scale * (hidden @ weight.T + bias) / softcap) / temperature`. Both results have gradients for
    hidden, weight and bias. `chunk_size` is in tokens; None takes 2**24 / V.
    """
    assert temperature > 0, "log-probs need a temperature above 0"
    if torch.is_autocast_enabled(hidden.device.type):
        compute_dtype = torch.get_autocast_dtype(hidden.device.type)
    else:
        compute_dtype = hidden.dtype
    chunk_size = chunk_size or max(1, CHUNK_ELEMENTS // len(weight))
    transform = _LogitTransform(temperature, softcap, scale)
    return _ChunkedLogprobs.apply(hidden, weight, bias, targets, transform, compute_dtype, chunk_size)


class _ChunkedLogprobs(torch.autograd.Function):
    """log p(target) and entropy; with p = softmax(z): d log p_t / dz = 1_t - p, dH / dz = -p (log p + H)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: _LogitTransform,
        compute_dtype: torch.dtype,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.transform, ctx.compute_dtype, ctx.chunk_size = transform, compute_dtype, chunk_size
        ctx.set_materialize_grads(False)
        logprobs = torch.empty(len(targets), dtype=_wide(compute_dtype), device=hidden.device)
        entropy = torch.empty_like(logprobs)
        head = _cast(weight, bias, compute_dtype)
        for chunk in _chunks(len(targets), chunk_size):
            logits = _logits(hidden[chunk].to(compute_dtype), head, transform)  # (n, V)
            normalizer = torch.logsumexp(logits, dim=-1)
            logprobs[chunk] = logits.gather(1, targets[chunk, None]).squeeze(1) - normalizer
            probs = torch.exp(logits - normalizer[:, None])
            entropy[chunk] = normalizer - torch.linalg.vecdot(probs, logits)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=_wide(bias.dtype)) if needs_bias else None
        head = _cast(weight, bias, ctx.compute_dtype)
        for chunk in _chunks(len(targets), ctx.chunk_size):
            inputs = hidden[chunk].to(ctx.compute_dtype)
            logits = _logits(inputs, head, ctx.transform)
            grad_logits = _grad_logits(
                logits,
                targets[chunk],
                None if grad_logprobs is None else grad_logprobs[chunk],
                None if grad_entropy is None else grad_entropy[chunk],
            )
            grad_products = ctx.transform.backward(grad_logits, logits)
            if grad_bias is not None:
                grad_bias += grad_products.sum(0)
            grad_products = grad_products.to(ctx.compute_dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = (grad_products @ head[0]).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += grad_products.T @ inputs
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *[None] * 4,
        )


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return float32, or float64 where everything is."""
    return torch.promote_types(dtype, torch.float32)


def _cast(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def _chunks(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _logits(inputs: Tensor, head: tuple[Tensor, Tensor | None], transform: _LogitTransform) -> Tensor:
    with torch.autocast(inputs.device.type, enabled=False):
        return transform.forward(torch.nn.functional.linear(inputs, *head))


def _grad_logits(logits: Tensor, targets: Tensor, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> Tensor:
    """Return the gradient `(n, V)` of the logits from those of log-probs and entropies `(n,)`, in float32."""
    log_softmax = torch.log_softmax(logits, dim=-1)
    probs = log_softmax.exp()
    if grad_logprobs is None:
        grad = torch.zeros_like(probs)
    else:
        grad = probs * -grad_logprobs[:, None]
        grad.scatter_add_(1, targets[:, None], grad_logprobs[:, None])
    if grad_entropy is not None:
        entropy = -torch.linalg.vecdot(probs, log_softmax)
        grad.sub_(log_softmax.add_(entropy[:, None]).mul_(probs).mul_(grad_entropy[:, None]))
    return grad
