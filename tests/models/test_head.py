"""The chunked head against the naive one: values, gradients, and that its memory is a chunk's."""

import pytest
import torch
from torch import Tensor

from posttrain.models.head import chunked_logprobs


def naive_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    logits = torch.nn.functional.linear(hidden, weight, bias) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_softmax = torch.log_softmax(logits / temperature, dim=-1)
    logprobs = log_softmax.gather(1, targets[:, None]).squeeze(1)
    return logprobs, -(log_softmax.exp() * log_softmax).sum(-1)


def tensors(dtype: torch.dtype = torch.float32, vocab: int = 11) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(vocab, 5, generator=generator, dtype=dtype).requires_grad_()
    bias = torch.randn(vocab, generator=generator, dtype=dtype).requires_grad_()
    return hidden, weight, bias, torch.randint(vocab, (7,), generator=generator)


OPTIONS = [
    {},
    {"temperature": 0.7},
    {"softcap": 2.0, "temperature": 1.3},
    {"scale": 0.125},
    {"scale": 2.0, "softcap": 3.0},
]


@pytest.mark.parametrize("vocab", [11, 32])  # the compiled kernels serve the second
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("chunk_size", [1, 3, 7, None])
def test_values_and_gradients_equal_the_naive_head(options: dict, chunk_size: int | None, vocab: int) -> None:
    results = []
    for function, extra in ((naive_logprobs, {}), (chunked_logprobs, {"chunk_size": chunk_size})):
        hidden, weight, bias, targets = tensors(vocab=vocab)
        logprobs, entropy = function(hidden, weight, targets, bias=bias, **options, **extra)
        (logprobs * torch.arange(1, 8) - 0.3 * entropy).sum().backward()
        results.append([logprobs, entropy, hidden.grad, weight.grad, bias.grad])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_by_finite_differences(options: dict) -> None:
    hidden, weight, bias, targets = tensors(torch.float64)

    def function(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return chunked_logprobs(hidden, weight, targets, bias=bias, chunk_size=3, **options)

    assert torch.autograd.gradcheck(function, (hidden, weight, bias))


def test_frozen_weight_gets_no_gradient() -> None:
    hidden, weight, _, targets = tensors()
    logprobs, _ = chunked_logprobs(hidden, weight.detach(), targets)
    logprobs.sum().backward()
    assert hidden.grad is not None
    assert not chunked_logprobs(hidden.detach(), weight.detach(), targets)[0].requires_grad


def test_no_tokens() -> None:
    hidden, weight, _, targets = tensors()
    logprobs, entropy = chunked_logprobs(hidden[:0], weight, targets[:0])
    (logprobs.sum() + entropy.sum()).backward()
    assert logprobs.shape == entropy.shape == (0,)
    assert weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.parametrize("vocab", [11, 32])
def test_bfloat16_products_and_float32_results(vocab: int) -> None:
    hidden, weight, _, targets = tensors(torch.bfloat16, vocab)
    logprobs, entropy = chunked_logprobs(hidden, weight, targets)
    logits = (hidden @ weight.T).float()
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze(1))
    assert logprobs.dtype == entropy.dtype == torch.float32
    logprobs.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("vocab", [11, 32])
def test_autocast_computes_in_its_dtype_and_keeps_float32_gradients(vocab: int) -> None:
    hidden, weight, _, targets = tensors(vocab=vocab)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs, _ = chunked_logprobs(hidden, weight, targets)
    logprobs.sum().backward()
    logits = (hidden.bfloat16() @ weight.bfloat16().T).float()
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze(1))
    assert weight.grad.dtype == torch.float32


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def test_no_tensor_outgrows_a_chunk() -> None:
    hidden = torch.randn(400, 4, requires_grad=True)
    weight, targets = torch.randn(300, 4), torch.randint(300, (400,))
    with LargestTensor() as chunked:
        chunked_logprobs(hidden, weight, targets, chunk_size=10)[0].sum().backward()
    with LargestTensor() as naive:
        naive_logprobs(hidden, weight, targets)[0].sum().backward()
    assert chunked.largest == 10 * 300
    assert naive.largest == 400 * 300
