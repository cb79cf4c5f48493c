"""Attention by matrix products against torch's kernel: values and gradients, grouped heads, and when it is taken."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.models import masked_attention as module
from posttrain.models.masked_attention import causal_mask, grouped_bias, masked_attention

HEADS, KV_HEADS, QUERIES, KEYS, SIZE = 4, 2, 5, 8, 6


def tensors(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, HEADS, QUERIES, SIZE, generator=generator, dtype=dtype).requires_grad_()
    key = torch.randn(3, KV_HEADS, KEYS, SIZE, generator=generator, dtype=dtype).requires_grad_()
    value = torch.randn(3, KV_HEADS, KEYS, SIZE, generator=generator, dtype=dtype).requires_grad_()
    mask = torch.rand(3, QUERIES, KEYS, generator=generator) > 0.4
    mask[..., 0] = True
    return query, key, value, mask


def reference(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None], scale=0.3, enable_gqa=True)


@pytest.mark.parametrize("kept", [True, False])
def test_values_and_gradients_are_torchs(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kept:
        monkeypatch.setattr(module, "MAX_KEPT_SCORES", 0)
    results = []
    for ours in (False, True):
        query, key, value, mask = tensors()
        if ours:
            bias = grouped_bias(mask, HEADS // KV_HEADS, query.dtype)
            out = masked_attention(query, key, value, bias, scaling=0.3)
            assert ("_ProductAttention" in str(out.grad_fn.next_functions)) == kept
        else:
            out = reference(query, key, value, mask)
        (out * torch.arange(SIZE)).sum().backward()
        results.append([out, query.grad, key.grad, value.grad])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_another_mask_gives_another_result() -> None:
    query, key, value, mask = tensors()
    bias = grouped_bias(mask.roll(1, dims=1), HEADS // KV_HEADS, query.dtype)
    got = masked_attention(query, key, value, bias, scaling=0.3)
    assert not torch.allclose(got, reference(query, key, value, mask), atol=1e-3)


def test_gradients_by_finite_differences() -> None:
    query, key, value, mask = tensors(torch.float64)
    bias = grouped_bias(mask, HEADS // KV_HEADS, query.dtype)
    assert torch.autograd.gradcheck(lambda *inputs: masked_attention(*inputs, bias, scaling=0.3), (query, key, value))


@pytest.mark.parametrize("window", [None, 3])
def test_causal_with_and_without_gradients(window: int | None) -> None:
    query, key, value, _ = tensors()
    key, value = key[:, :, :QUERIES], value[:, :, :QUERIES]
    mask = causal_mask(QUERIES, window=window).expand(3, -1, -1)
    bias = None if window is None else grouped_bias(mask, HEADS // KV_HEADS, query.dtype)
    expected = reference(query, key, value, mask)
    torch.testing.assert_close(masked_attention(query, key, value, bias, scaling=0.3), expected)
    with torch.no_grad():
        torch.testing.assert_close(masked_attention(query, key, value, bias, scaling=0.3), expected)


def test_bfloat16_is_the_same_with_and_without_gradients() -> None:
    query, key, value, mask = tensors()
    query, key, value = ((30 * tensor).bfloat16() for tensor in (query, key, value))
    bias = grouped_bias(mask, HEADS // KV_HEADS, query.dtype)
    with_gradients = masked_attention(query, key, value, bias, scaling=0.3)
    with torch.no_grad():
        assert torch.equal(masked_attention(query, key, value, bias, scaling=0.3), with_gradients)


def test_bfloat16_gradients_survive_a_common_offset() -> None:
    gradients = []
    for dtype in (torch.float64, torch.bfloat16):
        generator = torch.Generator().manual_seed(0)
        shapes = ((1, 2, 16, 8), (1, 2, 16, 8), (1, 2, 16, 8))
        # Values with an offset: their gradient of the softmax is a small difference of large numbers.
        query, key, value = (
            (torch.randn(shape, generator=generator) + offset).bfloat16().to(dtype).requires_grad_()
            for shape, offset in zip(shapes, (0, 0, 1), strict=True)
        )
        out = masked_attention(query, key, value, None, scaling=0.3)
        (out * torch.linspace(-1, 1, 8, dtype=dtype)).sum().backward()
        gradients.append(query.grad.double())
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()


def test_a_bias_made_for_inference_serves_training() -> None:
    module._small_causal_bias.cache_clear()
    with torch.inference_mode():
        masked_attention(*(torch.ones(1, 1, 4, 2) for _ in range(3)), None, scaling=1.0, softcap=2.0)
    query = torch.ones(1, 1, 4, 2, requires_grad=True)
    masked_attention(query, torch.ones(1, 1, 4, 2), torch.ones(1, 1, 4, 2), None, scaling=1.0).sum().backward()
    assert query.grad is not None
