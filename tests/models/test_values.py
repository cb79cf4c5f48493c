"""Value heads and the critic's adapter: what is read where, and that policy and critic do not disturb each other."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from posttrain.data.trees import build_batch
from posttrain.models.lm import LoadedModel, load_model
from posttrain.models.logprobs import completion_logprobs, plain_model
from posttrain.models.lora import add_critic_adapter, critic_active, folded_weights
from posttrain.models.values import (
    VALUE_HEAD,
    completion_values,
    logprobs_and_values,
    make_value_head,
    save_value_head,
)
from posttrain.records import Branch, TokenTree
from posttrain.settings import ModelSettings

TREES = [
    TokenTree((5, 6, 7), (Branch((8, 9, 10, 2), (1, 1, 0, 1)), Branch((12, 2), (1, 1)))),
    TokenTree((20, 21), (Branch((31, 2), (1, 1)), Branch((34, 35, 36, 37, 2), (1,) * 5))),
]


def load(directory: Path, **options: object) -> LoadedModel:
    settings = ModelSettings.model_validate(
        {"name_or_path": str(directory), "dtype": "float32", "device": "cpu", **options}
    )
    return load_model(settings, seed=3)


def batch_of(loaded: LoadedModel):
    return build_batch(TREES, layout=loaded.layout, pad_id=loaded.pad_id)


@pytest.mark.parametrize("layout", ["tree", "rows"])
def test_values_are_read_before_each_token_and_after_the_last(saved: Callable[..., Path], layout: str) -> None:
    loaded = load(saved(), layout=layout)
    head = make_value_head(loaded, seed=0)
    torch.nn.init.normal_(head.weight)
    torch.nn.init.constant_(head.bias, 0.25)
    with torch.no_grad():
        found = completion_values(loaded.model, batch_of(loaded), head)
        plain = plain_model(loaded.model)
        plain.set_attn_implementation("eager")
        rows = [(tree.prompt_ids, branch.ids) for tree in TREES for branch in tree.branches]
        for row, (prompt, completion) in enumerate(rows):
            ids = torch.tensor([[*prompt, *completion]])
            hidden = plain.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
            expected = (hidden @ head.weight[0] + 0.25)[len(prompt) - 1 :]
            torch.testing.assert_close(found.values[row, : len(completion)], expected[:-1], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found.final[row], expected[-1], rtol=1e-4, atol=1e-4)
            assert not found.values[row, len(completion) :].any()


def test_values_start_near_zero_and_every_seed_has_its_own(saved: Callable[..., Path]) -> None:
    loaded = load(saved())
    head = make_value_head(loaded, seed=0)
    assert completion_values(loaded.model, batch_of(loaded), head).values.abs().max() < 1.0
    assert torch.equal(head.weight, make_value_head(loaded, seed=0).weight)
    assert not torch.equal(head.weight, make_value_head(loaded, seed=1).weight)


def test_one_pass_gives_what_two_passes_give(saved: Callable[..., Path]) -> None:
    loaded = load(saved(), lora_r=4)
    head = make_value_head(loaded, seed=0)
    batch = batch_of(loaded)
    logprobs, values = logprobs_and_values(loaded.model, batch, head, temperature=0.7)
    torch.testing.assert_close(logprobs.logprobs, completion_logprobs(loaded.model, batch, temperature=0.7).logprobs)
    torch.testing.assert_close(values.values, completion_values(loaded.model, batch, head).values)


def test_the_critic_starts_as_the_policy_and_neither_moves_the_other(saved: Callable[..., Path]) -> None:
    loaded = load(saved(), lora_r=4)
    model = loaded.model
    assert isinstance(model, PeftModel)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    batch = batch_of(loaded)
    policy = completion_logprobs(model, batch).logprobs.detach()
    before = {name: tensor.clone() for name, tensor in folded_weights(model)}
    add_critic_adapter(model)
    with critic_active(model):
        torch.testing.assert_close(completion_logprobs(model, batch).logprobs, policy)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".critic." in name:
                    parameter.add_(0.5)
        assert not torch.allclose(completion_logprobs(model, batch).logprobs, policy)
    assert trained
    assert all(".critic." in name for name in trained)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        name.replace(".critic.", ".default.") for name in trained
    }
    torch.testing.assert_close(completion_logprobs(model, batch).logprobs, policy)
    assert all(torch.equal(tensor, before[name]) for name, tensor in folded_weights(model))


def test_gradients_of_the_critic_reach_its_own_weights_alone(saved: Callable[..., Path]) -> None:
    loaded = load(saved(), lora_r=4)
    model = loaded.model
    assert isinstance(model, PeftModel)
    add_critic_adapter(model)
    head = make_value_head(loaded, seed=0)
    with critic_active(model):
        completion_values(model, batch_of(loaded), head).values.sum().backward()
    assert head.weight.grad is not None
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert touched
    assert all(".critic." in name for name in touched)


def test_a_value_head_is_saved_whole(saved: Callable[..., Path], tmp_path: Path) -> None:
    head = make_value_head(load(saved()), seed=0)
    save_value_head(head, tmp_path)
    found = load_file(tmp_path / VALUE_HEAD)
    assert torch.equal(found["weight"], head.weight)
    assert torch.equal(found["bias"], head.bias)
