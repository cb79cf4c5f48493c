"""Kept policies and the frontier through them, on a tiny model: loadable, resumable, at the right distance."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.errors import ConfigError, DataError
from posttrain.models.lm import load_model
from posttrain.runs.artifact import MANIFEST
from posttrain.runs.directory import StageRun
from posttrain.runs.policies import kept_policies
from posttrain.runs.rollout_files import read_rollouts
from posttrain.settings import (
    DataSettings,
    DpoSettings,
    FrontierSettings,
    GrpoSettings,
    PpoSettings,
    RewardOptions,
    SamplingSettings,
    SftSettings,
)
from posttrain.settings.rewards import LongerThanOptions
from posttrain.stages.dpo import dpo
from posttrain.stages.frontier import frontier_stage
from posttrain.stages.grpo import grpo
from posttrain.stages.ppo import ppo
from posttrain.stages.sft import sft
from tests.stages.conftest import RunStage, model_settings

REWARDS = {  # half of a random model's completions are longer
    "rewards": {"longer_than": 1.0, "math_answer": 0.0},
    "reward_options": RewardOptions(longer_than=LongerThanOptions(characters=30)),
}


def training(directory: str, settings: type[GrpoSettings] | type[PpoSettings], **options: Any) -> Any:
    common: dict[str, Any] = {
        "model": model_settings(directory, lora_r=4),
        "data": DataSettings(rows=8),
        **REWARDS,
        "sampling": SamplingSettings(max_completion_length=12),
        "prompts_per_step": 3,
        "num_generations": 4,
        "max_steps": 5,
        "learning_rate": 2e-2,
        "kl_coef": 0.1,
        "save_steps": 2,
        "keep_policy_steps": 2,
    }
    return settings(**(common | options))


def frontier_settings(directory: str, policies: Path, **options: Any) -> FrontierSettings:
    common: dict[str, Any] = {
        "model": model_settings(directory),
        "policies": str(policies),
        "data": DataSettings(rows=6, split="test"),
        **REWARDS,
        "sampling": SamplingSettings(max_completion_length=12),
        "num_samples": 3,
    }
    return FrontierSettings(**(common | options))


def content(run: StageRun) -> dict[str, Any]:
    return json.loads((run.artifact / "frontier.json").read_text())


def same_files(one: Path, other: Path) -> bool:
    """Return whether two policies are the same model; the seal tells its step or stage."""
    names = sorted(file.name for file in one.iterdir())
    return names == sorted(file.name for file in other.iterdir()) and all(
        (one / name).read_bytes() == (other / name).read_bytes() for name in names if name != MANIFEST
    )


def of_rows(directory: str, settings: type[SftSettings] | type[DpoSettings], **options: Any) -> Any:
    common = {"model": model_settings(directory, lora_r=4), "rows_per_step": 2, "max_steps": 5, "learning_rate": 1e-2}
    return settings(**common, save_steps=2, keep_policy_steps=2, **options)


STAGES: dict[str, tuple[Callable[..., None], Callable[[str], Any]]] = {
    "grpo": (grpo, lambda directory: training(directory, GrpoSettings)),
    "ppo": (ppo, lambda directory: training(directory, PpoSettings)),
    "sft": (sft, lambda directory: of_rows(directory, SftSettings, data=DataSettings(rows=8))),
    "dpo": (
        dpo,
        lambda directory: of_rows(directory, DpoSettings, data=DataSettings(source="nano_preferences", rows=8)),
    ),
}


@pytest.mark.parametrize("name", STAGES)
def test_a_killed_run_keeps_the_same_policies(name: str, model_directory: str, run_stage: RunStage) -> None:
    stage, make_settings = STAGES[name]
    settings = make_settings(model_directory)
    whole = run_stage(stage, settings, "whole")
    for step in (3, 4):
        run_stage(stage, settings, "killed", kill_after=step)
    resumed = run_stage(stage, settings, "killed")
    expected, found = kept_policies(whole.path), kept_policies(resumed.path)
    assert list(found) == list(expected) == [2, 4, 5]
    assert all(same_files(found[step], expected[step]) for step in expected)
    assert not same_files(found[2], found[4])
    weights = [load_file(path / "adapter_model.safetensors") for path in (found[5], resumed.artifact)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    load_model(model_settings(str(found[2])), seed=0, trainable=False)


@pytest.fixture
def trained(model_directory: str, run_stage: RunStage) -> StageRun:
    return run_stage(grpo, training(model_directory, GrpoSettings), "grpo")


def test_every_policy_is_a_point_and_the_start_is_the_first(
    model_directory: str, trained: StageRun, run_stage: RunStage
) -> None:
    run = run_stage(frontier_stage, frontier_settings(model_directory, trained.path), "frontier")
    found = content(run)
    assert [point["step"] for point in found["points"]] == [0, 2, 4, 5]
    assert found["points"][0]["kl"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert found["points"][-1]["kl"]["mean"] != 0.0
    assert [chosen["n"] for chosen in found["best_of_n"]] == [1, 2, 3]
    assert found["policies"]["0"] == model_directory
    assert (found["proxy"], found["gold"]) == (REWARDS["rewards"], "nano")
    samples = read_rollouts(run.path / "rollouts" / "step-00000004.parquet")
    assert len(samples) == 6 * 3
    ratios = [row["policy_logprob"] - row["ref_logprob"] for row in samples]
    assert found["points"][3]["kl"]["mean"] == pytest.approx(sum(ratios) / len(ratios))
    for row in samples:
        assert row["policy_logprob"] / row["num_tokens"] == pytest.approx(row["logprob"], abs=1e-4)


def test_a_killed_frontier_resumes_after_its_last_policy(
    model_directory: str, trained: StageRun, run_stage: RunStage
) -> None:
    settings = frontier_settings(model_directory, trained.path, gold="math_answer")
    whole = run_stage(frontier_stage, settings, "whole")
    for policies in (1, 3):
        run_stage(frontier_stage, settings, "killed", kill_after=policies)
    assert content(run_stage(frontier_stage, settings, "killed")) == content(whole)
    assert content(whole)["gold"] == "math_answer"


def test_policies_trained_whole_have_the_start_beside_them(model_directory: str, run_stage: RunStage) -> None:
    settings = training(model_directory, GrpoSettings, model=model_settings(model_directory), max_steps=2)
    trained = run_stage(grpo, settings, "grpo")
    found = content(run_stage(frontier_stage, frontier_settings(model_directory, trained.path), "frontier"))
    assert found["points"][0]["kl"]["mean"] == 0.0
    assert found["points"][1]["kl"]["mean"] != 0.0


def test_a_reward_normalised_in_its_group_is_summed_as_it_is(
    model_directory: str, trained: StageRun, run_stage: RunStage
) -> None:
    """Within a group it has the mean 0 whatever the policy."""
    plain = frontier_settings(model_directory, trained.path)
    normalised = plain.model_copy(update={"reward_combination": "normalized_sum"})
    found = [content(run_stage(frontier_stage, settings, name)) for settings, name in ((plain, "a"), (normalised, "b"))]
    assert found[0]["points"] == found[1]["points"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rewards": {}}, ConfigError, "frontier needs at least one reward with a weight"),
        ({"gold": "r1_zero"}, ConfigError, "gold = r1_zero is none of the rewards"),
        ({"sampling": SamplingSettings(top_p=0.9)}, ConfigError, r"sampling.top_p = 0.9\n  fix: --sampling.top_p 1.0"),
        ({"sampling": SamplingSettings(temperature=0.7)}, ConfigError, "sampling.temperature = 0.7"),
        ({"task": "prompts", "data": DataSettings(source="x.jsonl")}, ConfigError, "gold names none of them"),
        ({"task": "mmlu"}, ConfigError, "compares given answers by log-prob, and a frontier needs samples"),
        ({"policies": "nowhere"}, DataError, "nowhere keeps no policies"),
    ],
)
def test_what_cannot_be_is_told_before_a_model_is_loaded(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path, run_stage: RunStage
) -> None:
    settings = frontier_settings("no such model", tmp_path).model_copy(update=options)
    with pytest.raises(error, match=message):
        run_stage(frontier_stage, settings, "frontier")
