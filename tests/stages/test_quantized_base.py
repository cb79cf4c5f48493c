"""Every stage on a base in 4 bits: it learns, a killed run ends bit-identical, and its artifact loads both ways."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from posttrain.data.pairs import render_preference
from posttrain.data.sources import load_rows
from posttrain.models.lm import load_model
from posttrain.rewards import REWARDS
from posttrain.settings import (
    DataSettings,
    DpoSettings,
    GrpoSettings,
    ModelSettings,
    RmSettings,
    SamplingSettings,
    SftSettings,
    StageSettings,
)
from posttrain.stages.dpo import dpo
from posttrain.stages.grpo import grpo
from posttrain.stages.reference import cached_sequence_logprobs
from posttrain.stages.rm import rm
from posttrain.stages.sft import sft
from tests.stages.conftest import RunStage, run_whole_and_killed, weights

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

TRAINED: dict[str, Any] = {"max_steps": 4, "learning_rate": 1e-2, "save_steps": 2}


@pytest.fixture(scope="module")
def qwen(save_model: Callable[..., str], nano_tokenizer: PreTrainedTokenizerFast) -> str:
    return save_model("qwen2", nano_tokenizer, dtype=torch.bfloat16, tie_word_embeddings=True)


def four_bits(directory: str, **options: Any) -> ModelSettings:
    options = {"lora_r": 4, "load_in_4bit": True, **options}
    return ModelSettings(name_or_path=directory, dtype="bfloat16", device="cpu", **options)


def stage_settings(directory: str) -> dict[str, tuple[Callable[..., None], StageSettings]]:
    pairs = {"data": DataSettings(source="nano_preferences", rows=10), "rows_per_step": 4}
    model = {"model": four_bits(directory)}
    rollouts = {
        "data": DataSettings(rows=8),
        "rewards": {"length": 1.0},
        "sampling": SamplingSettings(max_completion_length=12),
        "prompts_per_step": 3,
        "num_generations": 4,
        "kl_coef": 0.1,
        "num_iterations": 2,
    }
    return {
        "sft": (sft, SftSettings(**model, **TRAINED, data=DataSettings(rows=10), rows_per_step=4)),
        "rm": (rm, RmSettings(**model, **TRAINED, **pairs)),
        "dpo": (dpo, DpoSettings(**model, **TRAINED, **pairs)),
        "grpo": (grpo, GrpoSettings(**model, **TRAINED, **rollouts)),
    }


@pytest.mark.parametrize("name", ["sft", "rm", "dpo", "grpo"])
def test_a_killed_run_ends_bit_identical(
    qwen: str, run_stage: RunStage, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REWARDS, "length", lambda completions, **_: [len(text) for text in completions])
    stage, settings = stage_settings(qwen)[name]
    run = run_whole_and_killed(run_stage, stage, settings)
    assert any(tensor.any() for key, tensor in weights(run).items() if "lora_B" in key)


def test_the_adapter_of_dpo_loads_in_4_bits_and_whole(qwen: str, run_stage: RunStage) -> None:
    stage, settings = stage_settings(qwen)["dpo"]
    artifact = run_stage(stage, settings, "dpo").artifact
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    logits = []
    for in_4bit in (True, False):
        ours = load_model(four_bits(str(artifact), load_in_4bit=in_4bit, lora_r=0), seed=0, trainable=False)
        ours.model.set_attn_implementation("eager")
        logits.append(ours.model(ids).logits)
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(qwen, dtype=torch.bfloat16), artifact)
    assert (logits[1] - by_peft(ids).logits).abs().max() < 0.05 * logits[1].abs().max()
    assert 0 < (logits[0] - logits[1]).abs().max() < logits[1].abs().max()


def test_kept_logprobs_know_the_scales_of_the_blocks(qwen: str, tmp_path: Path) -> None:
    """Two bases, one of them the double of the other in one layer, have the same 4 bits."""
    rows = load_rows(DataSettings(source="nano_preferences", rows=2), seed=0)
    found = []
    for factor in (1.0, 2.0):
        directory = tmp_path / str(factor)
        base = AutoModelForCausalLM.from_pretrained(qwen)
        with torch.no_grad():
            base.model.layers[0].mlp.down_proj.weight.mul_(factor)
        base.save_pretrained(directory)
        AutoTokenizer.from_pretrained(qwen).save_pretrained(directory)
        loaded = load_model(four_bits(str(directory)), seed=0)
        trees = {row.id: render_preference(row, loaded.tokenizer) for row in rows}
        found.append(cached_sequence_logprobs(loaded, trees, tmp_path / "cache", 4096, on_progress=lambda: None))
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert json.dumps([sums.tolist() for sums in found[0].values()]) != json.dumps(
        [sums.tolist() for sums in found[1].values()]
    )
