"""A merged export is the model that was trained, says how far rounding moved it, and is refused where it is another."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.errors import ConfigError, ModelError
from posttrain.models import lm
from posttrain.models.lm import load_model, save_model
from posttrain.pipeline.export import export, report_lines
from posttrain.runs.artifact import verify_artifact
from posttrain.settings import ModelSettings
from tests.conftest import call


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage's directory with an adapter on the embedded base that moves it visibly."""
    stage = tmp_path_factory.mktemp("run") / "dpo"
    loaded = load_model(ModelSettings(dtype="float32", lora_r=4), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    (stage / "artifact").mkdir(parents=True)
    save_model(loaded, stage / "artifact")
    return stage


def test_the_merged_model_is_the_adapted_one(adapter: Path, tmp_path: Path) -> None:
    report = export(str(adapter), tmp_path / "merged", dtype="float32")
    assert report["kl"] < 1e-6
    assert report["kl_same_argmax"] == 1.0
    assert report["merged_adapter"]
    verify_artifact(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    base = load_model(ModelSettings(dtype="float32"), seed=0, trainable=False).model
    base.set_attn_implementation("eager")
    ids = tokenizer("What is 3 plus 4?", return_tensors="pt")["input_ids"]
    assert (merged(ids).logits - base(ids).logits).abs().max() > 0.01


def test_rounding_and_the_base_in_4_bits_are_told_apart(adapter: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    report = export(str(adapter), tmp_path / "merged", dtype="bfloat16", compare_4bit=True)
    assert 0 < report["kl"] < 0.01
    assert report["kl"] < report["kl_4bit"]
    text = "\n".join(report_lines(report))
    assert "the adapter merged into its base, in bfloat16" in text
    assert "nats a token from the adapter on its base in 4 bits" in text


def test_another_model_is_not_written(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = lm.folded_weights

    def spoiled(model):
        for name, tensor in real(model):
            yield name, tensor.neg() if name.endswith("down_proj.weight") else tensor

    monkeypatch.setattr(lm, "folded_weights", spoiled)
    with pytest.raises(ModelError, match="is not the one that was trained"):
        export(str(adapter), tmp_path / "merged", dtype="bfloat16")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        export(str(adapter), tmp_path / "merged", dtype="bfloat16")


def test_the_verb(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert call("export", str(adapter / "artifact"), "--out", str(tmp_path / "merged"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["out"] == str(tmp_path / "merged")
