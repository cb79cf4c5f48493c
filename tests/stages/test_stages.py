"""Whole stages on a tiny model: a killed and resumed run equals an uninterrupted one, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.runs.checkpoint import load_latest
from posttrain.runs.logs import read_rows
from posttrain.settings import (
    DataSettings,
    GrpoSettings,
    ModelSettings,
    PretrainSettings,
    SamplingSettings,
    SftSettings,
    StageSettings,
)
from posttrain.stages import optimize
from posttrain.stages.grpo import grpo
from posttrain.stages.pretrain import pretrain
from posttrain.stages.sft import sft
from tests.stages.conftest import RunStage, model_settings, run_whole_and_killed, weights


def sft_settings(directory: str, **options: Any) -> SftSettings:
    return SftSettings(
        model=model_settings(directory, **options),
        data=DataSettings(rows=10),
        rows_per_step=4,
        max_steps=6,
        learning_rate=1e-2,
        save_steps=2,
    )


def grpo_settings(directory: str, **options: Any) -> GrpoSettings:
    model_options = {key: options.pop(key) for key in ("lora_r",) if key in options}
    defaults: dict[str, Any] = {
        "model": model_settings(directory, **model_options),
        "data": DataSettings(rows=8),
        "rewards": {"math_answer": 1.0},
        "sampling": SamplingSettings(max_completion_length=12),
        "prompts_per_step": 3,
        "num_generations": 4,
        "max_steps": 5,
        "learning_rate": 1e-2,
        "save_steps": 2,
        "kl_coef": 0.1,  # so that there is a gradient though a random model never answers right
        "num_iterations": 2,
    }
    return GrpoSettings(**(defaults | options))


def pretrain_settings(directory: str) -> PretrainSettings:
    return PretrainSettings(
        model=ModelSettings(dtype="float32", device="cpu"),
        hidden_size=32,
        num_hidden_layers=1,
        intermediate_size=64,
        vocab_size=300,
        documents_per_step=4,
        max_steps=5,
        save_steps=2,
    )


STAGES = {
    "sft": (sft, sft_settings),
    "sft with an adapter": (sft, lambda directory: sft_settings(directory, lora_r=4, lora_dropout=0.2)),
    "grpo": (grpo, grpo_settings),
    "grpo with an adapter": (grpo, lambda directory: grpo_settings(directory, lora_r=4)),
    "pretrain": (pretrain, pretrain_settings),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_killed_run_ends_bit_identical(model_directory: str, run_stage: RunStage, name: str) -> None:
    stage, make_settings = STAGES[name]
    run_whole_and_killed(run_stage, stage, make_settings(model_directory), kills=(3, 4))


def test_the_test_above_sees_a_lost_optimizer(
    model_directory: str, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = sft_settings(model_directory)
    whole = run_stage(sft, settings, "whole")
    run_stage(sft, settings, "killed", kill_after=3)
    monkeypatch.setattr(optimize, "restore_optimizer", lambda *arguments: None)
    resumed = run_stage(sft, settings, "killed")
    expected = weights(whole)
    assert any(not torch.equal(weight, expected[key]) for key, weight in weights(resumed).items())


def test_sft_learns_its_rows_and_publishes_a_loadable_model(model_directory: str, run_stage: RunStage) -> None:
    settings = sft_settings(model_directory).model_copy(update={"max_steps": 30, "save_steps": 100})
    run = run_stage(sft, settings, "sft")
    losses = [row["loss"] for row in read_rows(run.path / "metrics.jsonl")]
    assert losses[-1] < losses[0] / 2
    model = AutoModelForCausalLM.from_pretrained(run.artifact)
    tokenizer = AutoTokenizer.from_pretrained(run.artifact)
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id]
    assert tokenizer.chat_template


def test_sft_counts_epochs_and_tokens(model_directory: str, run_stage: RunStage) -> None:
    settings = sft_settings(model_directory).model_copy(update={"max_steps": 0, "num_train_epochs": 2.0})
    rows = read_rows(run_stage(sft, settings, "sft").path / "metrics.jsonl")
    assert len(rows) == 5  # 2 epochs of 10 rows, 4 a step
    assert rows[-1]["epoch"] == pytest.approx(2.0)
    assert rows[-1]["num_tokens"] > rows[0]["num_tokens"] > 0


def test_grpo_on_policy_has_ratio_one_and_an_engine_that_agrees(model_directory: str, run_stage: RunStage) -> None:
    run = run_stage(grpo, grpo_settings(model_directory, num_iterations=1, max_steps=2), "grpo")
    for row in read_rows(run.path / "metrics.jsonl"):
        assert row["clip_ratio/low_mean"] == row["clip_ratio/high_mean"] == row["kl/old"] == 0.0
        assert row["kl/engine"] < 1e-9
        assert row["completions/max_length"] <= 12
        assert row["entropy"] > 1.0
    assert read_rows(run.path / "metrics.jsonl")[0]["kl"] == pytest.approx(0.0, abs=1e-6)


def test_grpo_without_signal_leaves_the_weights_alone(model_directory: str, run_stage: RunStage) -> None:
    run = run_stage(grpo, grpo_settings(model_directory, kl_coef=0.0, num_iterations=1, max_steps=2), "grpo")
    row = read_rows(run.path / "metrics.jsonl")[-1]
    assert row["frac_reward_zero_std"] == 1.0
    assert row["groups/failed"] == 3
    assert row["loss"] == row["grad_norm"] == 0.0
    before = load_file(Path(model_directory) / "model.safetensors")
    assert all(torch.equal(weight, before[key]) for key, weight in weights(run).items())


def test_grpo_rollouts_do_not_depend_on_how_many_are_decoded_at_a_time(
    model_directory: str, run_stage: RunStage
) -> None:
    import pyarrow.parquet as pq

    tables = []
    for width in (256, 5):
        settings = grpo_settings(model_directory, max_steps=1)
        settings = settings.model_copy(update={"engine": settings.engine.model_copy(update={"max_sequences": width})})
        run = run_stage(grpo, settings, f"width-{width}")
        tables.append(pq.read_table(run.path / "rollouts" / "step-00000001.parquet").to_pylist())
    assert len(tables[0]) == 12
    assert [row["completion_ids"] for row in tables[0]] == [row["completion_ids"] for row in tables[1]]


@pytest.mark.parametrize(("stage", "make_settings"), [(sft, sft_settings), (grpo, grpo_settings)])
def test_checkpoints_are_kept_within_the_limit(
    model_directory: str, run_stage: RunStage, stage: Any, make_settings: Callable[[str], StageSettings]
) -> None:
    run = run_stage(stage, make_settings(model_directory), "kept")
    assert len(list((run.path / "checkpoints").glob("step-*"))) == 2
    latest = load_latest(run.path / "checkpoints", notice=print)
    assert latest is not None
    assert latest.step == read_rows(run.path / "metrics.jsonl")[-1]["step"]
