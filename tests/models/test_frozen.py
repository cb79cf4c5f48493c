"""Weights as they are stored: what stays narrow, and that products in float32 are those on whole weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from posttrain.data.trees import build_batch
from posttrain.errors import ModelError
from posttrain.models import frozen
from posttrain.models.frozen import FrozenEmbedding, FrozenLinear, is_narrower, multiply, multiply_back
from posttrain.models.head import chunked_logprobs
from posttrain.models.lm import LoadedModel, export_merged, load_model, load_reward_model, save_model
from posttrain.models.logprobs import completion_logprobs, plain_model
from posttrain.models.lora import folded_weights, reference
from posttrain.models.stored import stored_dtypes
from posttrain.records import Branch, TokenTree
from posttrain.settings import ModelSettings

TREES = [TokenTree((5, 6, 7, 8), (Branch((9, 10, 11), (1, 1, 1)), Branch((12, 2), (1, 1))))]
FAMILIES = {
    "llama": {"attention_bias": True},
    "qwen2": {},
    "qwen3": {},
    "mistral": {},
    "gemma2": {},
    "gemma3_text": {},
    "phi3": {},
}
Save = Callable[..., Path]


def rounded(path: Path, *, keep: str = " ") -> Path:
    """Round the weights in a model's file to bfloat16, but those with `keep` in their names."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    save_file({k: v if keep in k else v.bfloat16() for k, v in tensors.items()}, file, metadata={"format": "pt"})
    return path


def widened(path: Path) -> Path:
    """Return another directory with the same weights in float32."""
    other = path.with_name(f"{path.name}-whole")
    shutil.copytree(path, other)
    tensors = {name: tensor.float() for name, tensor in load_file(path / "model.safetensors").items()}
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    return other


def load(path: Path, *, trainable: bool = True, **settings) -> LoadedModel:
    settings = {"dtype": "float32", "lora_r": 4, **settings}
    return load_model(ModelSettings(name_or_path=str(path), **settings), seed=3, trainable=trainable)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained_alike(*models: LoadedModel) -> None:
    """Give every trained weight the same random values in all models."""
    generator = torch.Generator().manual_seed(0)
    for parameters in zip(*(trained_parameters(loaded.model).values() for loaded in models), strict=True):
        values = 0.2 * torch.randn(parameters[0].shape, generator=generator)
        for parameter in parameters:
            parameter.data.copy_(values)


def logprobs(loaded: LoadedModel) -> Tensor:
    return completion_logprobs(loaded.model, build_batch(TREES, layout=loaded.layout)).logprobs


def dtypes(loaded: LoadedModel) -> dict[str, torch.dtype]:
    return {name: parameter.dtype for name, parameter in plain_model(loaded.model).named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_and_gradients_are_those_on_whole_weights(saved: Save, family: str) -> None:
    path = rounded(saved(family, **FAMILIES[family]))
    narrow, whole = load(path), load(widened(path))
    assert torch.bfloat16 in dtypes(narrow).values()
    assert set(dtypes(whole).values()) == {torch.float32}
    trained_alike(narrow, whole)
    for loaded in (narrow, whole):
        logprobs(loaded).sum().backward()
    torch.testing.assert_close(logprobs(narrow), logprobs(whole), rtol=1e-6, atol=1e-6)
    gradients = [{name: p.grad for name, p in trained_parameters(loaded.model).items()} for loaded in (narrow, whole)]
    for name, gradient in gradients[1].items():
        assert (gradients[0][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name
    with reference(narrow.model), reference(whole.model):
        torch.testing.assert_close(logprobs(narrow), logprobs(whole), rtol=1e-6, atol=1e-6)


def test_dropout_on_adapters_goes_through_the_same_weights(saved: Save) -> None:
    path = rounded(saved("llama"))
    found = []
    for each in (path, widened(path)):
        loaded = load(each, lora_dropout=0.5)
        trained_alike(loaded)
        torch.manual_seed(1)
        found.append(logprobs(loaded).detach())
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


def test_linear_layers_and_embedding_stay_narrow_and_nothing_else(saved: Save) -> None:
    found = dtypes(load(rounded(saved("qwen2")), trainable=False))
    narrow = {name for name, dtype in found.items() if dtype == torch.bfloat16}
    assert narrow == {name for name in found if name.endswith(("proj.weight", "embed_tokens.weight"))}
    assert {dtype for name, dtype in found.items() if name not in narrow} == {torch.float32}  # norms and biases


def test_what_is_more_than_a_plain_embedding_is_widened(saved: Save) -> None:
    found = dtypes(load(rounded(saved("gemma2")), trainable=False))  # its embedding is scaled, and its head is tied
    assert found["model.embed_tokens.weight"] == torch.float32
    assert found["model.layers.0.mlp.up_proj.weight"] == torch.bfloat16


@pytest.mark.parametrize("keep", ["model.norm", "q_proj"])
def test_one_weight_in_float32_keeps_all_so(saved: Save, keep: str) -> None:
    path = rounded(saved("llama"), keep=keep)
    assert stored_dtypes(str(path), None) == {"BF16", "F32"}
    assert set(dtypes(load(path)).values()) == {torch.float32}


def test_sharded_files_are_read_too(saved: Save, tmp_path: Path) -> None:
    path = rounded(saved("llama"))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    sharded = tmp_path / "sharded"
    shutil.copytree(path, sharded, ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(sharded, max_shard_size="20KB")
    assert len(json.loads((sharded / "model.safetensors.index.json").read_text())["weight_map"]) > 2
    assert stored_dtypes(str(sharded), None) == {"BF16"}
    torch.testing.assert_close(logprobs(load(sharded)), logprobs(load(path)))


def test_a_name_that_cannot_be_fetched_has_no_dtypes() -> None:
    assert stored_dtypes("nobody/nothing", None) == set()


def test_a_damaged_file_is_a_clear_error(saved: Save) -> None:
    path = rounded(saved("llama"))
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    assert stored_dtypes(str(path), None) == set()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(path)


def test_other_products_are_as_before(saved: Save) -> None:
    path = rounded(saved("llama"))
    assert set(dtypes(load(path, lora_r=0)).values()) == {torch.float32}  # trained in full
    loaded = load(path, dtype="bfloat16", trainable=False)
    assert set(dtypes(loaded).values()) == {torch.bfloat16}
    assert not any(isinstance(module, FrozenLinear | FrozenEmbedding) for module in loaded.model.modules())


def test_a_saved_adapter_comes_back_bit_by_bit(saved: Save, tmp_path: Path) -> None:
    loaded = load(rounded(saved("qwen2")))
    trained_alike(loaded)
    save_model(loaded, tmp_path / "adapter")
    again = load(tmp_path / "adapter", trainable=False)
    assert torch.equal(logprobs(again), logprobs(loaded))
    assert torch.bfloat16 in dtypes(again).values()


def test_folding_and_export_are_those_of_whole_weights(saved: Save, tmp_path: Path) -> None:
    path = rounded(saved("llama"))
    narrow, whole = load(path), load(widened(path))
    trained_alike(narrow, whole)
    expected = dict(folded_weights(whole.model))
    for name, tensor in folded_weights(narrow.model):
        assert torch.equal(tensor.float(), expected[name]), name
    export_merged(narrow, tmp_path / "merged")
    exported = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in exported.items())


def test_the_score_head_of_a_narrow_reward_model_stays_float32(saved: Save, tmp_path: Path) -> None:
    path = saved("llama")
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    model.save_pretrained(tmp_path / "rm")
    for file in path.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "rm")
    rounded(tmp_path / "rm", keep="score")
    loaded = load_reward_model(ModelSettings(name_or_path=str(tmp_path / "rm"), dtype="float32"))
    found = dtypes(loaded)
    assert found["score.weight"] == torch.float32
    assert found["model.layers.0.mlp.up_proj.weight"] == torch.bfloat16
    with safe_open(tmp_path / "rm" / "model.safetensors", "pt") as stored:
        assert torch.equal(plain_model(loaded.model).score.weight, stored.get_tensor("score.weight"))


@pytest.mark.parametrize("block", [1, 5 * 24, 2**22])
@pytest.mark.parametrize("bias", [False, True])
def test_blocks_are_the_whole_product(monkeypatch: pytest.MonkeyPatch, block: int, bias: bool) -> None:
    monkeypatch.setattr(frozen, "BLOCK", block)
    torch.manual_seed(0)
    x, grad, weight = torch.randn(2, 7, 24), torch.randn(2, 7, 18), torch.randn(18, 24).bfloat16()
    added = torch.randn(18) if bias else None
    torch.testing.assert_close(multiply(x, weight, added), nn.functional.linear(x, weight.float(), added))
    torch.testing.assert_close(multiply_back(grad, weight), grad @ weight.float())
    assert multiply(x[:, :0], weight, added).shape == (2, 0, 18)


@pytest.mark.parametrize("vocab", [11, 32])  # the compiled kernels serve the second
def test_a_narrow_head(monkeypatch: pytest.MonkeyPatch, vocab: int) -> None:
    monkeypatch.setattr(frozen, "BLOCK", 4 * 16)
    torch.manual_seed(0)
    weight, targets, bias = torch.randn(vocab, 16).bfloat16(), torch.randint(vocab, (9,)), torch.randn(vocab)
    start, found = torch.randn(9, 16), []
    for head in (weight, weight.float()):
        hidden = start.clone().requires_grad_()
        of_targets, entropy = chunked_logprobs(hidden, head, targets, bias=bias, temperature=0.8, chunk_size=4)
        (of_targets * torch.arange(9) - 0.3 * entropy).sum().backward()
        found.append((of_targets.detach(), entropy.detach(), hidden.grad))
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


def test_which_dtypes_are_narrower() -> None:
    assert is_narrower(torch.bfloat16, torch.float32)
    assert is_narrower(torch.float16, torch.float32)
    assert not is_narrower(torch.float32, torch.bfloat16)
    assert not is_narrower(torch.float32, torch.float32)
    assert not is_narrower(torch.float16, torch.bfloat16)
