"""Adapters on a base in 4 bits: the mathematics of the same weights whole, and nothing ever written into them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from posttrain.data.trees import build_batch
from posttrain.engines.native import NativeEngine
from posttrain.errors import ModelError
from posttrain.models import quantized
from posttrain.models.frozen import dense_weight
from posttrain.models.lm import LoadedModel, export_merged, load_model, save_model
from posttrain.models.logprobs import completion_logprobs, plain_model
from posttrain.models.lora import folded_weights, reference
from posttrain.records import Branch, TokenTree
from posttrain.settings import EngineSettings, ModelSettings

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

TREES = [TokenTree((5, 6, 7, 8), (Branch((9, 10, 11), (1, 1, 1)), Branch((12, 2), (1, 1))))]
FAMILIES = {"qwen2": {}, "llama": {"attention_bias": True}, "gemma2": {}}
Save = Callable[..., Path]


def load(path: Path, *, seed: int = 3, trainable: bool = True, **settings) -> LoadedModel:
    defaults = {"dtype": "float32", "lora_r": 4, "load_in_4bit": True}
    return load_model(ModelSettings(name_or_path=str(path), **{**defaults, **settings}), seed=seed, trainable=trainable)


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def moved(loaded: LoadedModel) -> LoadedModel:
    """Move every trained weight at random, as an optimizer would."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained_parameters(loaded.model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return loaded


def logprobs(loaded: LoadedModel) -> Tensor:
    return completion_logprobs(loaded.model, build_batch(TREES, layout=loaded.layout)).logprobs


def on_whole_weights(loaded: LoadedModel, path: Path) -> LoadedModel:
    """Return the same adapter on a plain base that holds the weights which the 4 bits stand for."""
    whole = load(path, load_in_4bit=False)
    with reference(loaded.model):
        weights = dict(folded_weights(loaded.model))
    with torch.no_grad():
        for name, parameter in plain_model(whole.model).named_parameters():
            if ".lora_" not in name:
                parameter.copy_(weights[name.replace(".base_layer.", ".")])
    whole.model.load_state_dict(trained_parameters(loaded.model), strict=False)
    return whole


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_and_gradients_are_those_on_the_whole_weights(saved: Save, family: str) -> None:
    path = saved(family, **FAMILIES[family])
    loaded = moved(load(path))
    whole = on_whole_weights(loaded, path)
    gradients = []
    for model in (loaded, whole):
        logprobs(model).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in trained_parameters(model.model).items()})
    torch.testing.assert_close(logprobs(loaded), logprobs(whole), rtol=1e-5, atol=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[1].items():
        assert (gradients[0][name] - gradient).abs().max() <= 1e-4 * gradient.abs().max(), name
    with reference(loaded.model), reference(whole.model):
        torch.testing.assert_close(logprobs(loaded), logprobs(whole), rtol=1e-5, atol=1e-5)
    assert (logprobs(loaded) - logprobs(moved(load(path, load_in_4bit=False)))).abs().max() > 0.01


def test_linear_layers_alone_lie_in_4_bits(saved: Save) -> None:
    plain = plain_model(load(saved("qwen2"), dtype="bfloat16", lora_target_modules=["q_proj"]).model)
    packed = {name for name, parameter in plain.named_parameters() if parameter.dtype == torch.uint8}
    layers = {name for name, module in plain.named_modules() if type(module).__name__.startswith("Frozen")}
    assert packed == {f"{name}.weight" for name in layers}
    assert len(packed) == 2 * 7
    others = {parameter.dtype for name, parameter in plain.named_parameters() if name not in packed}
    assert others == {torch.bfloat16, torch.float32}  # frozen, and the adapter's
    bits = sum(plain.get_parameter(name).numel() for name in packed) * 8
    assert bits == 4 * sum(dense_weight(plain.get_parameter(name)).numel() for name in packed)


def test_the_file_does_not_stay_in_memory(saved: Save) -> None:
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        pytest.skip("this system does not list a process's mapped files")
    path = saved("qwen2")
    loaded = load(path)
    assert str(path) not in maps.read_text()
    whole = load(path, load_in_4bit=False)
    assert str(path) in maps.read_text()  # which transformers maps
    assert loaded.model is not whole.model


def test_evaluating_between_updates_changes_no_gradient(saved: Save) -> None:
    path = saved("qwen2")
    gradients = []
    for evaluates in (False, True):
        loaded = moved(load(path, dtype="bfloat16"))
        if evaluates:
            loaded.model.eval()
            with torch.no_grad(), reference(loaded.model):
                logprobs(loaded)
            loaded.model.train()
        logprobs(loaded).sum().backward()
        gradients.append([parameter.grad for parameter in trained_parameters(loaded.model).values()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert any(gradient.any() for gradient in gradients[0])


def test_training_writes_nothing_into_the_4_bits(saved: Save) -> None:
    loaded = load(saved("qwen2"))
    before = {name: parameter.clone() for name, parameter in loaded.model.named_parameters()}
    optimizer = torch.optim.AdamW(trained_parameters(loaded.model).values(), lr=0.1)
    logprobs(loaded).sum().backward()
    optimizer.step()
    NativeEngine(loaded, EngineSettings()).close()
    changed = {name for name, now in loaded.model.named_parameters() if not torch.equal(now, before[name])}
    assert changed
    assert changed <= set(trained_parameters(loaded.model))


def test_an_adapter_reloads_in_4_bits_and_whole(saved: Save, tmp_path: Path) -> None:
    path = saved("qwen2")
    loaded = moved(load(path))
    save_model(loaded, tmp_path / "adapter")
    again = load(tmp_path / "adapter", lora_r=0)
    assert torch.equal(logprobs(again), logprobs(loaded))
    evaluated = load(tmp_path / "adapter", trainable=False)
    assert torch.equal(logprobs(evaluated), logprobs(loaded))
    whole = load(tmp_path / "adapter", lora_r=0, load_in_4bit=False)
    base = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    by_peft = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = torch.tensor([[*TREES[0].prompt_ids, *TREES[0].branches[0].ids]])
    with torch.no_grad():
        expected = by_peft(ids).logits[0, 3:-1].log_softmax(-1).gather(1, ids[0, 4:, None]).squeeze(1)
    torch.testing.assert_close(logprobs(whole)[0], expected, rtol=1e-5, atol=1e-5)
    assert (logprobs(whole) - logprobs(loaded)).abs().max() > 1e-3


def test_the_engine_samples_from_the_policy_that_is_trained(saved: Save) -> None:
    loaded = moved(load(saved("qwen2")))
    engine = NativeEngine(loaded, EngineSettings())
    weights = dict(folded_weights(loaded.model))
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    names = {name for name, _ in engine._model.named_parameters()} if engine._model is not None else set()
    assert names <= set(weights)


def test_a_merge_out_of_4_bits_is_refused(saved: Save, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="merged into the base as it was"):
        export_merged(load(saved()), tmp_path / "merged")


def test_every_weight_cannot_be_trained_in_4_bits(saved: Save) -> None:
    with pytest.raises(ModelError, match="trains an adapter on frozen weights, and lora_r is 0"):
        load(saved(), lora_r=0)


def test_without_bitsandbytes_the_extra_is_named(saved: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="load_in_4bit needs bitsandbytes"):
        load(saved())


def test_weights_stored_in_4_bits_are_loaded_only_as_such(saved: Save, tmp_path: Path) -> None:
    path = saved("qwen2")
    loaded = load(path, trainable=False, lora_r=0)
    stored = tmp_path / "stored"
    plain_model(loaded.model).save_pretrained(stored)
    loaded.tokenizer.save_pretrained(stored)
    assert torch.equal(logprobs(load(stored)), logprobs(load(path)))
    with pytest.raises(ModelError, match="stored quantised, by bitsandbytes' 4 bits"):
        load(stored, load_in_4bit=False)
    config = json.loads((stored / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (stored / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="stored quantised, by gptq"):
        load(stored)
