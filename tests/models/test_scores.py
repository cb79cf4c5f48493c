"""The score head: where it reads, how it starts, and that transformers and peft load it with the same scores."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from posttrain.data.trees import build_batch
from posttrain.errors import ModelError
from posttrain.models.lm import LoadedModel, load_model, load_reward_model
from posttrain.models.logprobs import plain_model
from posttrain.models.scores import add_score_head, completion_scores, save_reward_model
from posttrain.records import Branch, TokenTree
from posttrain.settings import ModelSettings

TREES = [
    TokenTree((5, 6, 7), (Branch((8, 9, 10, 2), (1, 1, 0, 1)), Branch((12, 2), (1, 1)))),
    TokenTree((20, 21), (Branch((31, 2), (1, 1)), Branch((34, 35, 36, 37, 2), (1,) * 5))),
]
FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3"]


def with_head(directory: Path, **options: Any) -> LoadedModel:
    settings = ModelSettings(name_or_path=str(directory), dtype="float32", device="cpu", **options)
    loaded = load_model(settings, seed=3)
    add_score_head(loaded, seed=3)
    return loaded


def scores_of(loaded: LoadedModel) -> torch.Tensor:
    return completion_scores(loaded.model, build_batch(TREES, layout=loaded.layout, pad_id=loaded.pad_id)).detach()


def reloaded_scores(model: Any, pad_id: int) -> torch.Tensor:
    """Return the scores that a loaded model gives to padded rows, by transformers' own forward."""
    assert model.config.get_text_config().pad_token_id == pad_id
    rows = [[*tree.prompt_ids, *branch.ids] for tree in TREES for branch in tree.branches]
    width = max(len(row) for row in rows)
    input_ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        return model.eval()(input_ids=input_ids, attention_mask=mask).logits.squeeze(-1)


@pytest.mark.parametrize(
    ("family", "lora_r"),
    [(family, lora_r) for family in FAMILIES for lora_r in (0, 4)] + [("gpt2", 0)],  # its convolutions take no LoRA
)
def test_saved_scores_are_our_scores(saved: Callable[..., Path], tmp_path: Path, family: str, lora_r: int) -> None:
    base = saved(family)
    loaded = with_head(base, lora_r=lora_r)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if parameter.requires_grad and "norm" not in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    expected = scores_of(loaded)
    save_reward_model(loaded, tmp_path / "rm")
    pad_id = AutoTokenizer.from_pretrained(tmp_path / "rm").pad_token_id
    options = {"num_labels": 1, "pad_token_id": pad_id} if lora_r else {}
    load = partial(AutoModelForSequenceClassification.from_pretrained, dtype=torch.float32, **options)
    models = [load(tmp_path / "rm")]
    if lora_r:
        models.append(PeftModel.from_pretrained(load(base), str(tmp_path / "rm")))
    for model in models:
        torch.testing.assert_close(reloaded_scores(model, pad_id), expected, rtol=1e-3, atol=1e-4)
    assert expected.std() > 0.05
    loaded = load_reward_model(ModelSettings(name_or_path=str(tmp_path / "rm"), dtype="float32", device="cpu"))
    torch.testing.assert_close(scores_of(loaded), reloaded_scores(models[0], pad_id), rtol=1e-5, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not loaded.model.training
    with pytest.raises(ModelError, match="is a reward model"):
        load_model(ModelSettings(name_or_path=str(tmp_path / "rm"), device="cpu"), seed=0)


def test_the_score_is_read_at_the_last_token_alone(saved: Callable[..., Path]) -> None:
    """Not before it, and on nothing of another branch: the last hidden state of the row by itself."""
    loaded = with_head(saved())
    found = scores_of(loaded)
    plain = plain_model(loaded.model)
    plain.set_attn_implementation("eager")
    head = plain.get_submodule("score").weight
    for score, row in zip(found, [[*t.prompt_ids, *b.ids] for t in TREES for b in t.branches], strict=True):
        hidden = plain.base_model(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(score, hidden[-1] @ head[0], rtol=1e-4, atol=1e-5)
        assert not torch.isclose(score, hidden[-2] @ head[0], rtol=1e-2)


def test_the_head_starts_at_the_scale_of_one_over_the_root_of_its_width(saved: Callable[..., Path]) -> None:
    directory = saved(hidden_size=1024, num_attention_heads=4, num_hidden_layers=1)
    first, again = (plain_model(with_head(directory).model).get_submodule("score").weight.detach() for _ in range(2))
    assert torch.equal(first, again)
    assert first.std().item() * 1025**0.5 == pytest.approx(1.0, abs=0.1)
    assert first.dtype == torch.float32


@pytest.mark.parametrize(("tied", "frozen"), [(True, False), (False, True)])
def test_a_separate_vocabulary_head_is_not_trained(saved: Callable[..., Path], tied: bool, frozen: bool) -> None:
    loaded = with_head(saved(tie_word_embeddings=tied))
    assert loaded.model.get_output_embeddings().weight.requires_grad is not frozen
    trained = [name for name, parameter in loaded.model.named_parameters() if parameter.requires_grad]
    assert "score.weight" in trained
    scores = completion_scores(loaded.model, build_batch(TREES))
    scores.sum().backward()
    assert all(p.grad is not None for p in loaded.model.parameters() if p.requires_grad)


def test_the_head_is_float32_beside_a_bfloat16_base(saved: Callable[..., Path]) -> None:
    settings = ModelSettings(name_or_path=str(saved()), dtype="bfloat16", device="cpu", lora_r=4)
    loaded = load_model(settings, seed=0)
    add_score_head(loaded, seed=0)
    trained = {p.dtype for p in loaded.model.parameters() if p.requires_grad}
    assert trained == {torch.float32}
    assert completion_scores(loaded.model, build_batch(TREES)).dtype == torch.float32


def test_an_architecture_without_a_classifier_is_refused(saved: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="no sequence classification model for Cohere"):
        with_head(saved("cohere"))


# --- loading a saved one -------------------------------------------------------------------------------------------


def foreign(saved: Callable[..., Path], tmp_path: Path, family: str, *, num_labels: int = 1) -> Path:
    """Write a classification model as someone else would, with transformers alone; return its directory."""
    base = saved(family)
    config = AutoConfig.from_pretrained(base)
    config.num_labels = num_labels
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config)
    directory = tmp_path / "foreign"
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(base).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_scores_of_a_reward_model_of_transformers_and_peft_are_theirs(
    saved: Callable[..., Path], tmp_path: Path, family: str, adapted: bool
) -> None:
    directory = foreign(saved, tmp_path, family)
    theirs = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32)
    if adapted:
        torch.manual_seed(2)
        config = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        theirs = get_peft_model(theirs, config)
        with torch.no_grad():
            theirs.get_base_model().score.modules_to_save["default"].weight.mul_(-3.0)
        directory = tmp_path / "adapter"
        theirs.save_pretrained(directory)
    loaded = load_reward_model(ModelSettings(name_or_path=str(directory), dtype="float32", device="cpu"))
    expected = reloaded_scores(theirs, 0)
    torch.testing.assert_close(scores_of(loaded), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.05
    assert loaded.layout == "tree"


@pytest.mark.parametrize("lora_r", [0, 4])
def test_the_saved_head_stays_float32_beside_a_bfloat16_base(
    saved: Callable[..., Path], tmp_path: Path, lora_r: int
) -> None:
    trained = with_head(saved(), lora_r=lora_r)
    save_reward_model(trained, tmp_path / "rm")
    loaded = load_reward_model(ModelSettings(name_or_path=str(tmp_path / "rm"), dtype="bfloat16", device="cpu"))
    plain, was = plain_model(loaded.model), plain_model(trained.model)
    assert torch.equal(plain.get_submodule("score").weight, was.get_submodule("score").weight)
    assert plain.get_input_embeddings().weight.dtype == torch.bfloat16


def test_what_is_no_reward_model_is_refused(saved: Callable[..., Path], tmp_path: Path) -> None:
    def load(directory: Path) -> None:
        load_reward_model(ModelSettings(name_or_path=str(directory), dtype="float32", device="cpu"))

    with pytest.raises(ModelError, match="is a language model, which scores nothing") as caught:
        load(saved())
    assert caught.value.fix is not None
    assert "posttrain rm" in caught.value.fix
    with pytest.raises(ModelError, match="expected a linear head `score` with one output"):
        load(foreign(saved, tmp_path, "llama", num_labels=2))
    trained = with_head(saved(), lora_r=4)
    save_reward_model(trained, tmp_path / "rm")
    weights = tmp_path / "rm" / "adapter_model.safetensors"
    headless = {name: tensor for name, tensor in load_file(weights).items() if "score" not in name}
    save_file(headless, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="the adapter brings no score head"):
        load(tmp_path / "rm")
