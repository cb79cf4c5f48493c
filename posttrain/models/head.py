"""Log-probs and entropies over the vocabulary, in chunks of tokens, without ever holding all logits.

Floor 1: pure tensors; knows no model. Memory grows with chunk x V, not with N x V (V is 151,936 for Qwen2.5): a
log-prob is one number for each token, so its gradient for the hidden state, one row `(E,)`, is computed beside it
while the chunk's softmax is at hand, and the backward pass only scales it. Gradients of a trained head, and of the
entropy, take the chunk's logits once more. Products run in `hidden`'s dtype, or in autocast's where it is on;
everything after them, and the sums over chunks, in float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from posttrain.kernels.operations import LANES, Kernels, compiled_kernels
from posttrain.models.frozen import is_narrower, multiply, multiply_back

# Logits in a chunk. Where torch's operations pass over them, a CPU with a frozen head is faster while a chunk stays in
# its cache; a trained head adds its whole gradient once a chunk, and a GPU and the compiled kernels want large products
# (512 tokens of SmolLM2-135M's head in bf16, 2 cores with AMX: 214 ms by torch's operations, 165 with large chunks;
# 112 by the kernels, 179 with small ones).
CHUNK_ELEMENTS, CACHED_CHUNK_ELEMENTS = 2**24, 2**22


@dataclass(frozen=True, slots=True)
class _LogitTransform:
    """What becomes of `hidden @ weight.T + bias` before the softmax: scale, soft cap, temperature."""

    temperature: float
    softcap: float | None
    scale: float

    def forward(self, products: Tensor) -> Tensor:
        """Return the logits `(n, V)`: the products themselves, or, where something is to do, float32."""
        if self.softcap is None and self.scale == self.temperature:
            return products
        logits = products.to(_wide(products.dtype))
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits if self.temperature == 1.0 else logits.div_(self.temperature)

    def backward(self, grad_logits: Tensor, logits: Tensor) -> Tensor:
        """Turn the gradient of the logits into that of the products, in place."""
        if self.softcap is not None:
            saturation = logits * (self.temperature / self.softcap)
            grad_logits.mul_(1.0 - saturation * saturation)
        return grad_logits if self.factor == 1.0 else grad_logits.mul_(self.factor)

    @property
    def factor(self) -> float:
        """Logits over products, without a soft cap."""
        return self.scale / self.temperature


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
    hidden, weight and bias. `chunk_size` is in tokens; None takes CHUNK_ELEMENTS / V or CACHED_CHUNK_ELEMENTS / V.
    """
    assert temperature > 0, "log-probs need a temperature above 0"
    if torch.is_autocast_enabled(hidden.device.type):
        compute_dtype = torch.get_autocast_dtype(hidden.device.type)
    else:
        compute_dtype = hidden.dtype
    transform = _LogitTransform(temperature, softcap, scale)
    kernels = _kernels(hidden.device, compute_dtype, weight, transform)
    cached = hidden.device.type == "cpu" and not weight.requires_grad and kernels is None
    chunk_size = chunk_size or max(1, (CACHED_CHUNK_ELEMENTS if cached else CHUNK_ELEMENTS) // len(weight))
    needs_jacobian = torch.is_grad_enabled() and hidden.requires_grad
    return _ChunkedLogprobs.apply(
        hidden, weight, bias, targets, transform, compute_dtype, chunk_size, needs_jacobian, kernels
    )


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
        needs_jacobian: bool,
        kernels: Kernels | None,
    ) -> tuple[Tensor, Tensor]:
        wide = _wide(compute_dtype)
        logprobs = torch.empty(len(targets), dtype=wide, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        jacobian = torch.empty_like(hidden, dtype=compute_dtype) if needs_jacobian else None
        head = _cast(weight, bias, compute_dtype)
        # Each chunk fills the same memory: fresh pages would cost more than the arithmetic.
        rows = min(chunk_size, len(targets)) if kernels is None else 0
        log_softmaxes = hidden.new_empty(rows, len(weight), dtype=wide)
        all_probs = torch.empty_like(log_softmaxes)
        for chunk in _chunks(len(targets), chunk_size):
            if kernels is not None:
                products = multiply(hidden[chunk].to(compute_dtype), *head)
                logprobs[chunk], entropy[chunk] = kernels.score_targets(
                    products, targets[chunk], factor=transform.factor, gradient=jacobian is not None
                )
                if jacobian is not None:
                    torch.neg(multiply_back(products, head[0]), out=jacobian[chunk])
                continue
            chunk_targets = targets[chunk, None]
            log_softmax, probs = log_softmaxes[: len(chunk_targets)], all_probs[: len(chunk_targets)]  # (n, V)
            logits = _logits(hidden[chunk].to(compute_dtype), head, transform)
            torch.log_softmax(logits, dim=-1, dtype=wide, out=log_softmax)
            torch.exp(log_softmax, out=probs)
            logprobs[chunk] = log_softmax.gather(1, chunk_targets).squeeze(1)
            entropy[chunk] = -log_softmax.mul_(probs).sum(-1)
            if jacobian is not None:
                grad_products = transform.backward(_probs_minus_target(probs, targets[chunk]), logits).to(compute_dtype)
                torch.neg(multiply_back(grad_products, head[0]), out=jacobian[chunk])
        ctx.save_for_backward(hidden, weight, bias, targets, jacobian)
        ctx.transform, ctx.compute_dtype, ctx.chunk_size = transform, compute_dtype, chunk_size
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, jacobian = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        wide = _wide(ctx.compute_dtype)
        grad_hidden = torch.zeros_like(hidden, dtype=wide) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if needs_weight else None
        grad_bias = torch.zeros_like(bias, dtype=_wide(bias.dtype)) if needs_bias else None
        if grad_hidden is not None and grad_logprobs is not None:
            grad_hidden += jacobian * grad_logprobs[:, None]
        # Everything else needs the softmax once more; with a frozen head and no entropy in the loss, nothing is left.
        again = grad_entropy is not None or (grad_logprobs is not None and (needs_weight or needs_bias))
        head = _cast(weight, bias, ctx.compute_dtype) if again else (weight, bias)
        for chunk in _chunks(len(targets) if again else 0, ctx.chunk_size):
            inputs = hidden[chunk].to(ctx.compute_dtype)
            logits = _logits(inputs, head, ctx.transform)
            log_softmax = torch.log_softmax(logits, dim=-1, dtype=wide)
            grad_products = torch.zeros_like(log_softmax)
            if grad_entropy is not None:
                of_entropy = _entropy_gradient(log_softmax).mul_(grad_entropy[chunk, None])
                grad_products += ctx.transform.backward(of_entropy, logits)
                if grad_hidden is not None:
                    grad_hidden[chunk] += multiply_back(grad_products.to(ctx.compute_dtype), head[0])
            if grad_logprobs is not None:
                of_logprobs = _probs_minus_target(log_softmax.exp_(), targets[chunk]).mul_(-grad_logprobs[chunk, None])
                grad_products += ctx.transform.backward(of_logprobs, logits)
            if grad_bias is not None:
                grad_bias += grad_products.sum(0)
            if grad_weight is not None:
                grad_weight += grad_products.to(ctx.compute_dtype).T @ inputs
        return (
            None if grad_hidden is None else grad_hidden.to(hidden.dtype),
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            *[None] * 6,
        )


def _kernels(device: torch.device, dtype: torch.dtype, weight: Tensor, transform: _LogitTransform) -> Kernels | None:
    """Return the kernels that serve such products, where the logits are a multiple of them."""
    if transform.softcap is not None or len(weight) % LANES:
        return None
    return compiled_kernels(device, dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return float32, or float64 where everything is."""
    return torch.promote_types(dtype, torch.float32)


def _cast(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return the head in the dtype of its products; a narrower weight stays, and is widened by each."""
    return weight if is_narrower(weight.dtype, dtype) else weight.to(dtype), None if bias is None else bias.to(dtype)


def _chunks(length: int, size: int) -> Iterator[slice]:
    """Yield slices of at most `size`, as even as they can be: each streams the whole head once."""
    count = -(-length // size)
    bounds = [length * index // count for index in range(count + 1)] if count else [0]
    return (slice(start, end) for start, end in pairwise(bounds))


def _logits(inputs: Tensor, head: tuple[Tensor, Tensor | None], transform: _LogitTransform) -> Tensor:
    with torch.autocast(inputs.device.type, enabled=False):
        return transform.forward(multiply(inputs, *head))


def _probs_minus_target(probs: Tensor, targets: Tensor) -> Tensor:
    """Turn the probabilities `(n, V)` into the gradient of -log p(target) for the logits, in place."""
    return probs.scatter_add_(1, targets[:, None], probs.new_full((len(targets), 1), -1.0))


def _entropy_gradient(log_softmax: Tensor) -> Tensor:
    """Return the gradient `(n, V)` of the entropy for the logits."""
    probs = log_softmax.exp()
    entropy = -torch.linalg.vecdot(probs, log_softmax)
    return (log_softmax + entropy[:, None]).mul_(probs).neg_()
