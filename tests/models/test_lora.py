"""Adapters: saved and loaded, folded, merged, and switched off, all against plain transformers and peft."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from posttrain.data.trees import build_batch
from posttrain.errors import ModelError
from posttrain.models.lm import LoadedModel, export_merged, load_model, save_model
from posttrain.models.logprobs import completion_logprobs, plain_model
from posttrain.models.lora import folded_weights, frozen_copy, reference
from posttrain.records import Branch, TokenTree
from posttrain.settings import ModelSettings

TREES = [TokenTree((5, 6, 7, 8), (Branch((9, 10, 11), (1, 1, 1)), Branch((12, 2), (1, 1))))]
ROW = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
Save = Callable[..., Path]


def load(path: Path, **settings) -> LoadedModel:
    return load_model(ModelSettings(name_or_path=str(path), **{"dtype": "float32", "lora_r": 4, **settings}), seed=3)


def trainable_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def train(loaded: LoadedModel, seed: int = 0) -> LoadedModel:
    """Move every trained weight at random, as an optimizer would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable_parameters(loaded.model):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return loaded


def logprobs(loaded: LoadedModel) -> Tensor:
    with torch.no_grad():
        return completion_logprobs(loaded.model, build_batch(TREES, layout=loaded.layout)).logprobs


def of_plain(model: torch.nn.Module) -> Tensor:
    """Return the log-probs of the first branch by a model that transformers or peft loaded."""
    with torch.no_grad():
        return model(ROW).logits[0, 3:-1].float().log_softmax(-1).gather(1, ROW[0, 4:, None]).squeeze(1)


def test_a_fresh_adapter_is_float32_on_a_frozen_base_and_changes_nothing(saved: Save) -> None:
    loaded = load(saved(), dtype="bfloat16")
    trained = trainable_parameters(loaded.model)
    assert trained
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert {parameter.dtype for parameter in loaded.model.parameters() if not parameter.requires_grad} == {
        torch.bfloat16
    }
    with reference(loaded.model):
        base = logprobs(loaded)
    assert torch.equal(logprobs(loaded), base)


def test_the_seed_sets_the_adapter(saved: Save) -> None:
    settings = ModelSettings(name_or_path=str(saved()), dtype="float32", lora_r=4)
    first, again, other = (trainable_parameters(load_model(settings, seed=seed).model)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_adapters_get_the_gradients_of_separate_sequences(saved: Save) -> None:
    path = saved()
    found = []
    for layout in ("tree", "rows"):
        loaded = train(load(path, layout=layout))
        result = completion_logprobs(loaded.model, build_batch(TREES, layout=loaded.layout))
        result.logprobs.sum().backward()
        found.append([parameter.grad for parameter in trainable_parameters(loaded.model)])
    for tree, rows in zip(*found, strict=True):
        assert (tree - rows).abs().max() <= 1e-5 * rows.abs().max()


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
def test_a_saved_adapter_loads_in_peft(saved: Save, tmp_path: Path, family: str) -> None:
    path = saved(family)
    loaded = train(load(path))
    save_model(loaded, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(of_plain(adapted), logprobs(loaded)[0], rtol=1e-5, atol=1e-6)
    with adapted.disable_adapter():
        assert (of_plain(adapted) - logprobs(loaded)[0]).abs().max() > 0.01


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
def test_a_merged_export_loads_in_transformers(saved: Save, tmp_path: Path, family: str) -> None:
    loaded = train(load(saved(family)))
    export_merged(loaded, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", attn_implementation="eager")
    torch.testing.assert_close(of_plain(merged), logprobs(loaded)[0], rtol=1e-5, atol=1e-6)


def test_folding_leaves_the_base_bit_identical_and_gives_plain_names(saved: Save) -> None:
    path = saved()
    loaded = train(load(path, dtype="bfloat16"))
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    folded = dict(folded_weights(loaded.model))
    for _ in range(3):
        again = dict(folded_weights(loaded.model))
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.model.state_dict().items())
    assert all(torch.equal(tensor, folded[name]) for name, tensor in again.items())
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    assert [(name, tensor.shape, tensor.dtype) for name, tensor in folded.items()] == [
        (name, tensor.shape, tensor.dtype) for name, tensor in plain.named_parameters()
    ]
    changed = {name for name, tensor in plain.named_parameters() if not torch.equal(tensor, folded[name])}
    assert changed == {name for name in folded if name.endswith("proj.weight")}


def test_folded_weights_are_rounded_once_from_float32(saved: Save) -> None:
    loaded = train(load(saved(), dtype="bfloat16"))
    layer = plain_model(loaded.model).model.layers[0].self_attn.q_proj
    delta = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    expected = (layer.base_layer.weight.float() + delta).bfloat16()
    assert torch.equal(dict(folded_weights(loaded.model))["model.layers.0.self_attn.q_proj.weight"], expected)


def test_folded_weights_of_a_plain_model_are_its_own(saved: Save) -> None:
    loaded = load(saved(), lora_r=0)
    folded = dict(folded_weights(loaded.model))
    for name, parameter in loaded.model.named_parameters():
        assert folded[name].data_ptr() == parameter.data_ptr()


def test_the_reference_of_a_fresh_adapter_is_the_base(saved: Save) -> None:
    path = saved()
    loaded = train(load(path))
    trained = logprobs(loaded)
    base = load(path, lora_r=0)
    with reference(loaded.model):
        assert torch.equal(logprobs(loaded), logprobs(base))
    assert torch.equal(logprobs(loaded), trained)
    assert (trained - logprobs(base)).abs().max() > 0.01
    assert all(parameter.requires_grad for parameter in trainable_parameters(load(path).model))


def test_the_reference_of_a_continued_adapter_is_the_adapter_as_loaded(saved: Save, tmp_path: Path) -> None:
    first = train(load(saved()))
    save_model(first, tmp_path / "adapter")
    continued = load(tmp_path / "adapter", lora_r=0)
    assert torch.equal(logprobs(continued), logprobs(first))
    count = len(trainable_parameters(continued.model))
    assert count == len(trainable_parameters(first.model))
    train(continued, seed=1)
    with reference(continued.model):
        assert torch.equal(logprobs(continued), logprobs(first))
    assert (logprobs(continued) - logprobs(first)).abs().max() > 0.01
    assert len(trainable_parameters(continued.model)) == count
    save_model(continued, tmp_path / "second")
    assert not (tmp_path / "second" / "ref").exists()
    assert torch.equal(logprobs(load(tmp_path / "second", lora_r=0)), logprobs(continued))


def test_a_frozen_copy_stays_while_the_model_trains(saved: Save) -> None:
    loaded = load(saved(), lora_r=0)
    before = logprobs(loaded)
    frozen = frozen_copy(loaded.model)
    train(loaded)
    with torch.no_grad():
        assert torch.equal(completion_logprobs(frozen, build_batch(TREES)).logprobs, before)
    assert not trainable_parameters(frozen)


def test_an_adapter_for_evaluation_has_no_reference_and_trains_nothing(saved: Save, tmp_path: Path) -> None:
    first = train(load(saved()))
    save_model(first, tmp_path / "adapter")
    loaded = load_model(ModelSettings(name_or_path=str(tmp_path / "adapter"), dtype="float32"), seed=0, trainable=False)
    assert set(loaded.model.peft_config) == {"default"}
    assert not trainable_parameters(loaded.model)
    assert torch.equal(logprobs(loaded), logprobs(first))


def test_another_rank_than_the_adapters_is_refused(saved: Save, tmp_path: Path) -> None:
    save_model(load(saved()), tmp_path / "adapter")
    with pytest.raises(ModelError, match="has rank 4"):
        load(tmp_path / "adapter", lora_r=8)


def test_unknown_target_modules_are_refused(saved: Save) -> None:
    with pytest.raises(ModelError, match="no LoRA adapter fits"):
        load(saved(), lora_target_modules=["nothing"])


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]}]
)
def test_adapters_that_cannot_be_folded_are_refused(saved: Save, tmp_path: Path, options: dict) -> None:
    path = saved()
    config = LoraConfig(**{"target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **options})
    get_peft_model(AutoModelForCausalLM.from_pretrained(path), config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="other than LoRA on a linear layer"):
        load(tmp_path / "adapter", lora_r=0)


def test_a_continued_adapter_drops_out_what_the_settings_say_and_nothing_else(saved: Save, tmp_path: Path) -> None:
    save_model(load(saved(), lora_r=4, lora_dropout=0.5), tmp_path / "adapter")
    for rate in (0.0, 0.25):
        model = load(tmp_path / "adapter", lora_dropout=rate).model
        dropouts = {
            (name.rpartition(".")[2], module.p)
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Dropout) and ".lora_dropout." in name
        }
        assert dropouts == ({("default", 0.25)} if rate else set())
