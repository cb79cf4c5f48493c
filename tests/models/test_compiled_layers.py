"""Compiled norms and MLPs against transformers' own: values, gradients, names, and the cases that they leave to it."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import MistralConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralMLP

from posttrain.kernels.operations import compiled_kernels
from posttrain.models import compiled_layers
from posttrain.models.attention import ATTENTION_NAME, RowsLayout
from posttrain.models.compiled_layers import CompiledAttention, CompiledMLP, CompiledNorm, compile_layers, rotated

SIZE, INNER = 32, 48

needs_kernels = pytest.mark.skipif(
    compiled_kernels(torch.device("cpu"), torch.float32) is None, reason="no C++ compiler on this machine"
)


class Block(nn.Module):
    """A norm with an uneven weight and an MLP, both of transformers."""

    def __init__(self, activation: str = "silu") -> None:
        super().__init__()
        self.norm = LlamaRMSNorm(SIZE, eps=1e-3)
        self.mlp = MistralMLP(MistralConfig(hidden_size=SIZE, intermediate_size=INNER, hidden_act=activation))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.norm(x))
        return out


def pair(dtype: torch.dtype = torch.float32, activation: str = "silu") -> tuple[Block, Block]:
    torch.manual_seed(0)
    own = Block(activation).to(dtype)
    own.norm.weight.data.uniform_(0.5, 1.5)
    own.norm.weight.requires_grad_(False)
    compiled = copy.deepcopy(own)
    compile_layers(compiled)
    return own, compiled


def results(block: Block, x: Tensor) -> list[Tensor]:
    """Return the output and the gradients of input and weights."""
    x = x.clone().requires_grad_()
    out = block(x)
    (out * torch.linspace(-1, 1, SIZE).to(out.dtype)).sum().backward()
    return [out, x.grad, *(parameter.grad for parameter in block.mlp.parameters())]


@pytest.mark.parametrize("shape", [(2, 5, SIZE), (7, SIZE), (1, 1, SIZE)])
def test_values_and_gradients_are_transformers(shape: tuple[int, ...]) -> None:
    own, compiled = pair()
    assert isinstance(compiled.norm, CompiledNorm)
    assert isinstance(compiled.mlp, CompiledMLP)
    x = torch.randn(shape) * 3
    for expected, got in zip(results(own, x), results(compiled, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    compiled.norm.variance_epsilon *= 2  # negative control
    assert not torch.allclose(results(compiled, x)[0], results(own, x)[0], rtol=1e-5, atol=1e-5)


def test_bfloat16_is_no_further_from_the_truth() -> None:
    exact, _ = pair(torch.float64)
    x = torch.randn(4, 9, SIZE).bfloat16()
    truth = results(exact, x.double())
    own, compiled = (results(block, x) for block in pair(torch.bfloat16))
    for right, theirs, ours in zip(truth, own, compiled, strict=True):
        assert (ours.double() - right).norm() <= 1.2 * (theirs.double() - right).norm()


@needs_kernels
def test_they_keep_their_inputs_alone() -> None:
    kept: dict[bool, int] = {}
    x = torch.randn(64, SIZE).bfloat16().requires_grad_()
    for is_compiled, block in enumerate(pair(torch.bfloat16)):
        saved: list[Tensor] = []
        block.mlp.requires_grad_(False)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            block(x)
        own = {id(parameter) for parameter in block.parameters()}
        kept[bool(is_compiled)] = sum(
            {t.data_ptr(): t.numel() * t.element_size() for t in saved if id(t) not in own}.values()
        )
    assert kept[True] < 0.75 * kept[False]  # the inputs of the linear layers stay on both sides


def test_names_weights_and_classes_stay() -> None:
    own, compiled = pair()
    assert list(compiled.state_dict()) == list(own.state_dict())
    assert isinstance(compiled.norm, LlamaRMSNorm)
    assert isinstance(compiled.mlp, MistralMLP)


def test_a_trained_norm_gets_its_gradient() -> None:
    own, compiled = pair()
    x = torch.randn(2, 3, SIZE)
    for block in (own, compiled):
        block.norm.weight.requires_grad_(True)
    frozen = results(pair()[1], x)[0]
    assert torch.equal(results(compiled, x)[0], frozen), "whether a weight is trained changes no value"
    results(own, x)
    torch.testing.assert_close(compiled.norm.weight.grad, own.norm.weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["another activation", "two dtypes", "float64", "no compiler"])
def test_other_cases_are_transformers_own(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, compiled = pair(activation="gelu" if case == "another activation" else "silu")
    x = torch.randn(3, SIZE)
    if case == "two dtypes":
        own.norm.bfloat16()
        compiled.norm.bfloat16()
    if case == "float64":
        own.double()
        compiled.double()
        x = x.double()
    if case == "no compiler":
        monkeypatch.setattr(compiled_layers, "compiled_kernels", lambda *_: None)
    for expected, got in zip(results(own, x), results(compiled, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_whole_model_computes_the_same(family: str, make_model) -> None:  # type: ignore[no-untyped-def]
    model: PreTrainedModel = make_model(family, hidden_size=32, intermediate_size=48).eval()
    ids = torch.arange(12).view(2, 6)
    expected = model(input_ids=ids).logits
    compile_layers(model)
    names = {type(module).__name__ for module in model.modules()}
    assert any("CompiledNorm" in name for name in names)
    assert any("CompiledMLP" in name for name in names)
    model.requires_grad_(False)
    torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("size", [16, 32])  # of a head: the kernels serve multiples of 32
def test_attention_computes_the_same(family: str, size: int, make_model) -> None:  # type: ignore[no-untyped-def]
    changes = {"sliding_window": 3} if family in ("mistral", "llama") else {}  # which a Llama's file may have, unused
    model: PreTrainedModel = make_model(family, head_dim=size, **changes)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)  # biases are 0 at first, and scores nearly equal
    ids, mask = torch.arange(14).view(2, 7), torch.ones(2, 7, dtype=torch.long)
    expected = model(input_ids=ids, attention_mask=mask).logits
    expected.logsumexp(-1).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    model.set_attn_implementation(ATTENTION_NAME)
    compile_layers(model)
    assert sum(isinstance(module, CompiledAttention) for module in model.modules()) == model.config.num_hidden_layers
    got = model(input_ids=ids, layout=RowsLayout(), use_cache=False).logits
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    got.logsumexp(-1).sum().backward()
    for of_own, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, of_own, rtol=1e-4, atol=1e-5)


def test_attention_with_a_cache_is_transformers_own(make_model) -> None:  # type: ignore[no-untyped-def]
    model: PreTrainedModel = make_model("llama")
    ids = torch.arange(6).view(1, 6)
    expected = model(input_ids=ids).logits
    compile_layers(model)
    cache = model(input_ids=ids[:, :4], use_cache=True).past_key_values
    got = model(input_ids=ids[:, 4:], past_key_values=cache).logits
    torch.testing.assert_close(got, expected[:, 4:], rtol=1e-5, atol=1e-5)


def test_one_row_of_angles_turns_a_batch() -> None:
    states, angles = torch.randn(3, 5, 2, 32), torch.rand(1, 5, 16).repeat(1, 1, 2)
    whole = rotated(states, *(each.expand(3, -1, -1) for each in (angles.cos(), angles.sin())))
    torch.testing.assert_close(rotated(states, angles.cos(), angles.sin()), whole, rtol=1e-5, atol=1e-5)
