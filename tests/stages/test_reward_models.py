"""A trained reward model at work: its report beside its weights, and GRPO against it."""

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from posttrain.errors import ConfigError
from posttrain.models.lm import load_reward_model
from posttrain.rewards.learned import LearnedReward
from posttrain.runs.directory import StageRun
from posttrain.runs.logs import read_rows
from posttrain.runs.rollout_files import read_rollouts
from posttrain.settings import DataSettings, GrpoSettings, RmSettings, SamplingSettings
from posttrain.stages.grpo import grpo
from posttrain.stages.rm import rm
from tests.stages.conftest import RunStage, metrics, model_settings, noise_pairs, result, run_whole_and_killed


def trained_rm(directory: str, run_stage: RunStage, source: str = "nano_concise", **options: Any) -> StageRun:
    learn = {"rows_per_step": 8, "max_steps": 30, "learning_rate": 1e-2, "eval_fraction": 0.4}
    data = DataSettings(source=source, rows=120)
    settings = RmSettings(model=model_settings(directory, **options), data=data, **learn)
    return run_stage(rm, settings, f"rm-{source}")


def grpo_settings(directory: str, reward_model: str, **options: Any) -> GrpoSettings:
    defaults: dict[str, Any] = {
        "model": model_settings(directory),
        "data": DataSettings(rows=8),
        "rewards": {"reward_model": 1.0, "math_answer": 0.0},
        "reward_model": reward_model,
        "sampling": SamplingSettings(max_completion_length=12),
        "prompts_per_step": 3,
        "num_generations": 4,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "save_steps": 2,
    }
    return GrpoSettings(**(defaults | options))


def test_the_report_stands_beside_the_weights(model_directory: str, run_stage: RunStage) -> None:
    run = trained_rm(model_directory, run_stage)
    report = json.loads((run.artifact / "reward_model.json").read_text())
    summary = result(run)
    assert report["beats_chance"]
    assert summary == summary | report
    (finding, *_) = report["bias"]["findings"]
    assert finding.startswith("prefers shorter answers: -")
    assert finding.endswith("length and judgement are too close here to be told apart")
    events = {event["event"]: event["text"] for event in read_rows(run.path / "events.jsonl")}
    assert finding in events["bias"]
    assert events["measured"] == report["verdict"]


@pytest.mark.parametrize("lora_r", [0, 4])
def test_grpo_against_it_scores_as_it_does_and_ends_bit_identical_when_killed(
    model_directory: str, run_stage: RunStage, lora_r: int
) -> None:
    artifact = trained_rm(model_directory, run_stage, lora_r=lora_r).artifact
    settings = grpo_settings(model_directory, str(artifact))
    whole = run_whole_and_killed(run_stage, grpo, settings)
    rows = read_rollouts(whole.path / "rollouts" / "step-00000002.parquet")
    reward = LearnedReward(load_reward_model(model_settings(str(artifact))), max_tokens=4096)
    scores = reward(
        [row["prompt"] for row in rows],
        [row["completion"] for row in rows],
        truncated=[row["stop_reason"] == "length" for row in rows],
    )
    assert [row["rewards/reward_model"] for row in rows] == pytest.approx(scores, abs=1e-5)
    assert [row["reward"] for row in rows] == [row["rewards/reward_model"] for row in rows]  # the other only watches
    assert {row["rewards/math_answer"] for row in rows} == {0.0}
    assert "rewards/reward_model/mean" in metrics(whole)[0]
    assert not any(name in metrics(whole)[0] for name in ("groups/solved", "groups/failed"))


def test_a_policy_learns_what_the_reward_model_likes(model_directory: str, run_stage: RunStage) -> None:
    """The rise of the tiny policy's scores is far above the spread of the first steps' means."""
    artifact = trained_rm(model_directory, run_stage).artifact
    settings = grpo_settings(
        model_directory, str(artifact), max_steps=20, num_generations=8, prompts_per_step=8, learning_rate=2e-2
    )
    rewards = [row["reward"] for row in metrics(run_stage(grpo, settings, "learning"))]
    assert fmean(rewards[-4:]) > fmean(rewards[:4]) + 2 * stdev(rewards[:4])


def test_a_reward_model_no_better_than_chance_is_refused_unless_it_is_allowed(
    model_directory: str, run_stage: RunStage, tmp_path: Path
) -> None:
    learn = {"max_steps": 1, "learning_rate": 1e-6, "eval_fraction": 0.5}
    data = noise_pairs(tmp_path / "noise.jsonl", 60)
    artifact = run_stage(rm, RmSettings(model=model_settings(model_directory), data=data, **learn), "rm").artifact
    settings = grpo_settings(model_directory, str(artifact), max_steps=1)
    with pytest.raises(ConfigError, match=r"is no better than chance: .* do not train on it"):
        run_stage(grpo, settings, "weak")
    run = run_stage(grpo, settings.model_copy(update={"allow_weak_reward_model": True}), "weak")
    told = [event["text"] for event in read_rows(run.path / "events.jsonl") if event["event"] == "reward_model"]
    assert len(told) == 1
    assert "no better than chance" in told[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_model": None}, "reward_model names none"),
        ({"rewards": {"math_answer": 1.0}}, "its reward has no weight among math_answer"),
        ({"rewards": {"reward_model": 0.0}}, "at least one reward with a weight"),
        ({"rewards": {"reward_modle": 1.0}}, "unknown reward reward_modle. Did you mean reward_model?"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(
    model_directory: str, run_stage: RunStage, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        run_stage(grpo, grpo_settings(model_directory, **{"reward_model": "rm", **options}), "refused")
