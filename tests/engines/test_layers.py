"""Short decoder layers: who gets them, that they compute what transformers' layers do, and what a wrong one costs."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.engines import layers
from posttrain.engines.layers import ShortDecoderLayer, shorten_layers
from posttrain.models.attention import TreeLayout
from tests.engines.conftest import joined_model

SHORT, OWN = ["llama", "mistral", "qwen2", "qwen3"], ["gemma2", "gemma3", "granite"]
IDS = torch.tensor([[11, 7, 5, 9, 3, 2, 30, 31, 32, 33]])
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 4, 5, 6]])  # a prompt of four tokens with two branches of three


def tree_logits(model: PreTrainedModel) -> Tensor:
    layout = TreeLayout([(0, 4)], [(4, 3), (7, 3)], [0, 0])
    with torch.no_grad():
        output = model(input_ids=IDS, position_ids=POSITIONS, layout=layout, use_cache=False)
    logits: Tensor = output.logits.float()
    return logits


def num_short(model: PreTrainedModel) -> int:
    return sum(isinstance(module, ShortDecoderLayer) for module in model.modules())


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("family", SHORT)
def test_short_layers_compute_what_transformers_layers_do(
    family: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(layers, "compiled_kernels", lambda *_: None)
    model = joined_model(family)
    expected = tree_logits(model)
    names = [name for name, _ in model.named_parameters()]
    shorten_layers(model)
    assert num_short(model) == 2
    torch.testing.assert_close(tree_logits(model), expected, rtol=1e-5, atol=1e-5)
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize("family", SHORT)
def test_bfloat16_differs_by_rounding_only(family: str) -> None:
    exact, model = tree_logits(joined_model(family)), joined_model(family, torch.bfloat16)
    own = (tree_logits(model) - exact).norm()
    shorten_layers(model)
    assert num_short(model) == 2
    assert (tree_logits(model) - exact).norm() < 1.5 * own


@pytest.mark.parametrize("family", OWN)
def test_layers_of_another_form_stay(family: str) -> None:
    model = joined_model(family)
    shorten_layers(model)
    assert num_short(model) == 0


def test_another_activation_stays() -> None:
    model = joined_model("llama")
    model.config.hidden_act = "gelu"
    shorten_layers(model)
    assert num_short(model) == 0


def unturned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return heads.clone()


def turned_back(heads: Tensor, cos: Tensor, sin: Tensor, rotate: Callable[..., Tensor] = layers._rotate) -> Tensor:
    return rotate(heads, cos, -sin).flip(0)


@pytest.mark.parametrize("fault", [unturned, turned_back])
def test_layers_that_compute_something_else_are_not_taken(
    fault: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = joined_model("llama")
    expected = tree_logits(model)
    monkeypatch.setattr(layers, "_rotate", fault)
    with caplog.at_level(logging.WARNING):
        shorten_layers(model)
    assert num_short(model) == 0
    assert "keeps its own" in caplog.text
    assert torch.equal(tree_logits(model), expected)
