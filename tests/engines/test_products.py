"""Joined linear layers: who is joined, that nothing else changes, and that calls in another way are noticed."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from posttrain.engines import products
from posttrain.engines.products import (
    CompiledLinear,
    JoinedLinear,
    LayerWeights,
    OneDnnLinear,
    PlainLinear,
    join_linears,
    joined_linear,
    probe_logits,
)
from posttrain.engines.weights import InferenceWeights
from posttrain.kernels.operations import compiled_kernels
from posttrain.models.attention import ATTENTION_NAME
from posttrain.models.devices import multiplies_bfloat16_fast
from tests.engines.conftest import FAMILIES


class Block(nn.Module):
    """Two layers on the input, one on their sum, one that is called twice, one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 32, bias=False), nn.Linear(64, 32)
        self.after, self.twice, self.never = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.after(torch.tanh(self.first(x) * self.second(x)))
        return self.twice(self.twice(hidden))


def joined(dtype: torch.dtype = torch.float32) -> tuple[Block, Block]:
    torch.manual_seed(0)
    block = Block().to(dtype).requires_grad_(False)
    copied = copy.deepcopy(block)
    products = join_linears(copied, lambda: copied(torch.ones(1, 64, dtype=dtype)))
    assert [list(product.names) for product in products] == [["first", "second"], ["after"]]
    assert type(copied.twice) is type(copied.never) is nn.Linear
    return block, copied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_joined_layers_compute_the_same(dtype: torch.dtype, rows: int) -> None:
    block, copied = joined(dtype)
    x = torch.randn(2, rows, 64).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(copied(x), block(x), rtol=tolerance, atol=tolerance)


CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_lie_as_the_fastest_product_wants_them(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def layout() -> type:
        _, copied = joined(dtype)
        assert isinstance(copied.first, JoinedLinear)
        return type(copied.first.product.whole)

    if compiled_kernels(CPU, dtype) is not None:
        assert layout() is CompiledLinear
    monkeypatch.setattr(products, "compiled_kernels", lambda *_: None)
    packs = dtype == torch.bfloat16 and multiplies_bfloat16_fast(CPU)
    assert layout() is (OneDnnLinear if packs else PlainLinear)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiled", [True, False])
def test_every_layout_computes_the_product(dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(products, "compiled_kernels", lambda *_: None)
    torch.manual_seed(0)
    x, weight, bias, other = (torch.randn(*shape).to(dtype) for shape in ((2, 5, 64), (48, 64), (48,), (2, 5, 48)))
    exact = nn.functional.linear(x.double(), weight.double(), bias.double())
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    layer = joined_linear([LayerWeights(weight, bias)], dtype)
    torch.testing.assert_close(layer(x).double(), exact, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(layer(x, other.clone()).double(), exact + other, rtol=tolerance, atol=2 * tolerance)


def test_different_inputs_are_noticed() -> None:
    _, copied = joined()
    copied.first(torch.ones(1, 64))
    with pytest.raises(AssertionError, match="first, second were joined"):
        copied.second(torch.ones(1, 64))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_tied_head_and_its_embedding_are_one_weight(
    dtype: torch.dtype, compiled: bool, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(products, "compiled_kernels", lambda *_: None)
    elif compiled_kernels(CPU, dtype) is None:
        pytest.skip("no C++ compiler on this machine")
    config = FAMILIES["qwen2"]()
    models = [AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION_NAME) for _ in "abc"]
    model, plain, other = (model.eval().requires_grad_(False) for model in models)
    model.load_state_dict(plain.state_dict())
    weights = InferenceWeights(model)
    weights.join()
    assert isinstance(model.lm_head.product.whole, CompiledLinear) is compiled
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(probe_logits(model), probe_logits(plain), rtol=tolerance, atol=tolerance)
    other.requires_grad_(not frozen)
    weights.load((name, weight, None) for name, weight in other.named_parameters())
    loaded = probe_logits(model)
    torch.testing.assert_close(loaded, probe_logits(other), rtol=tolerance, atol=tolerance)
    embedding = model.get_input_embeddings().weight
    assert (embedding.data_ptr() == other.get_input_embeddings().weight.data_ptr()) is frozen
    head = model.lm_head.product.whole
    if isinstance(head, CompiledLinear):
        assert embedding.data_ptr() in addresses(head)
    elif isinstance(head, PlainLinear):
        assert embedding.data_ptr() == head.weight.data_ptr()


def addresses(product: CompiledLinear) -> set[int]:
    return {kept.data_ptr() for kept in product.linear.kept if isinstance(kept, Tensor)}


@pytest.mark.skipif(compiled_kernels(CPU, torch.bfloat16) is None, reason="no C++ compiler on this machine")
@pytest.mark.parametrize(("dtype", "stored"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)])
def test_frozen_weights_are_read_where_they_are(dtype: torch.dtype, stored: torch.dtype) -> None:
    frozen = torch.randn(32, 64).to(stored)
    trained, spread, wide = frozen.clone().requires_grad_(), torch.randn(64, 32).to(stored).T, frozen.double()
    for weight, shared in ((frozen, True), (trained, False), (spread, False)):
        joined_layer = joined_linear([LayerWeights(weight)], dtype)
        assert isinstance(joined_layer, CompiledLinear)
        assert (weight.data_ptr() in addresses(joined_layer)) is shared
    mixed = joined_linear([LayerWeights(frozen), LayerWeights(wide)], dtype)
    assert isinstance(mixed, CompiledLinear)
    assert (frozen.data_ptr() in addresses(mixed)) is (dtype == stored), "one dtype for all of a product"
