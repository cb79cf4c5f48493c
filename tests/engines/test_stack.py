"""The stack of compiled layers: who gets it, that it decodes what the model does, and what a wrong one costs."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.engines import cache, products, stack
from posttrain.engines.cache import KeyValueCache
from posttrain.engines.layers import shorten_layers
from posttrain.engines.layouts import DecodeLayout, Grouping, PrefillLayout
from posttrain.engines.products import probe_logits
from posttrain.engines.stack import LayerStack, decoded_logits, stack_agrees
from posttrain.kernels.operations import compiled_kernels
from tests.engines.conftest import joined_model

STACKED, OTHERS = ["llama", "mistral", "qwen2", "qwen3"], ["gemma2", "gemma3", "granite"]
PROMPTS = [[11, 7, 5, 9, 3, 2, 30], [31, 32], [40]]
ROWS = [[20, 21, 22], [23], [24, 25, 26, 27], [28, 29, 33, 34, 35, 36, 37, 38]]  # own tokens, the last one new
SLOTS = [0, 2, 1, 0]

pytestmark = pytest.mark.skipif(
    compiled_kernels(torch.device("cpu"), torch.float32) is None, reason="no C++ compiler on this machine"
)


def short_model(family: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model = joined_model(family, dtype)
    shorten_layers(model)
    return model


def decoded(model: PreTrainedModel, step: Callable[[Tensor, DecodeLayout], Tensor]) -> Tensor:
    """Return the logits after the last own token of each row, of which `step` decodes one token of a row at a time."""
    device = torch.device("cpu")
    prompts, completions = KeyValueCache(), KeyValueCache()
    lengths = [len(prompt) for prompt in PROMPTS]
    prompts.reserve(len(PROMPTS), max(lengths))
    layout = PrefillLayout(prompts, lengths, range(len(PROMPTS)), device)
    ids = torch.tensor([[token for prompt in PROMPTS for token in prompt]])
    with torch.no_grad():
        model(input_ids=ids, position_ids=layout.positions[None], layout=layout, use_cache=False)
        grouping = Grouping(SLOTS, lengths, device)
        results = torch.empty(len(ROWS), model.config.vocab_size, dtype=model.dtype)
        for position in range(max(map(len, ROWS))):
            places = torch.tensor(
                [min(position, len(row) - 1) for row in ROWS]
            )  # those that are done repeat themselves
            completions.reserve(len(ROWS), position + 1)
            tokens = torch.tensor([row[place] for row, place in zip(ROWS, places.tolist(), strict=True)])
            results = step(tokens, DecodeLayout(prompts, completions, grouping, places))
    return results


def by_the_model(model: PreTrainedModel) -> Callable[[Tensor, DecodeLayout], Tensor]:
    def step(ids: Tensor, layout: DecodeLayout) -> Tensor:
        output = model(input_ids=ids[None], position_ids=layout.positions[None], layout=layout, use_cache=False)
        logits: Tensor = output.logits[0]
        return logits

    return step


@pytest.mark.parametrize("family", STACKED)
def test_it_decodes_what_the_model_does(family: str) -> None:
    model = short_model(family)
    assert stack_agrees(model)
    actual, expected = decoded(model, LayerStack(model).logits), decoded(model, by_the_model(model))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("family", STACKED)
def test_bfloat16_differs_by_rounding_only(family: str) -> None:
    exact = decoded(short_model(family), by_the_model(short_model(family)))
    model = short_model(family, torch.bfloat16)
    own = (decoded(model, by_the_model(model)) - exact).norm()
    assert (decoded(model, LayerStack(model).logits) - exact).norm() < 1.5 * own


def test_it_follows_caches_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "BLOCK", 3)
    model = short_model("llama")
    actual, expected = decoded(model, LayerStack(model).logits), decoded(model, by_the_model(model))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-5)


def test_angles_that_depend_on_the_longest_position() -> None:
    rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    models = [joined_model("llama", rope_parameters=rope_parameters, max_position_embeddings=6) for _ in range(2)]
    for model in models:  # two of them, for one remembers how far its angles have come
        shorten_layers(model)
    actual, expected = decoded(models[0], LayerStack(models[0]).logits), decoded(models[1], by_the_model(models[1]))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("family", OTHERS)
def test_layers_of_another_form_are_not_stacked(family: str) -> None:
    assert not stack_agrees(short_model(family))


def test_sizes_that_the_kernels_do_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "MAX_HEAD_SIZE", 8)
    assert not stack_agrees(short_model("llama"))


def test_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "compiled_kernels", lambda *_: None)
    assert not stack_agrees(short_model("llama"))


def test_a_stack_that_decodes_to_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = short_model("llama")
    right = LayerStack.logits
    monkeypatch.setattr(LayerStack, "logits", lambda self, ids, layout: right(self, ids, layout).flip(1))
    with caplog.at_level(logging.WARNING):
        assert not stack_agrees(model)
    assert "torch's operations serve" in caplog.text


def test_the_probe_decodes_the_last_row_of_the_other_probe() -> None:
    model = short_model("qwen2")
    torch.testing.assert_close(decoded_logits(model), probe_logits(model)[-1], rtol=1e-5, atol=1e-5)
