"""PPO as a whole stage on a tiny model: exact resume, what each part does, and what may not matter."""

import json
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from posttrain.algorithms.controllers import KlController, RunningMoments
from posttrain.errors import ConfigError
from posttrain.models.values import VALUE_HEAD
from posttrain.rewards import REWARDS
from posttrain.runs.checkpoint import load_latest
from posttrain.runs.logs import read_rows
from posttrain.settings import (
    AdaptiveKlSettings,
    CriticSettings,
    DataSettings,
    PpoSettings,
    SamplingSettings,
)
from posttrain.stages import actor_critic
from posttrain.stages import ppo as stage
from posttrain.stages.ppo import ppo
from tests.stages.conftest import RunStage, metrics, model_settings, run_whole_and_killed, weights


def ppo_settings(directory: str, **options: Any) -> PpoSettings:
    model_options = {key: options.pop(key) for key in ("lora_r",) if key in options}
    defaults: dict[str, Any] = {
        "model": model_settings(directory, **model_options),
        "data": DataSettings(rows=8),
        "rewards": {"varied": 1.0},
        "sampling": SamplingSettings(max_completion_length=12),
        "prompts_per_step": 3,
        "num_generations": 2,
        "max_steps": 5,
        "learning_rate": 1e-2,
        "save_steps": 2,
        "kl_coef": 0.1,
        "num_ppo_epochs": 2,
        "num_mini_batches": 2,
        "adaptive_kl": AdaptiveKlSettings(target=1.0, horizon=50),
        "reward_scaling": "standardize",
        "missing_eos_penalty": 1.0,
    }
    return PpoSettings(**(defaults | options))


@pytest.fixture(autouse=True)
def varied_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that differs between the completions of a random model."""
    monkeypatch.setitem(REWARDS, "varied", lambda completions, **columns: [len(text) / 10 for text in completions])


KINDS = {
    "an adapter": {"lora_r": 4},
    "a model": {"critic": CriticSettings(warmup_steps=2, learning_rate=1e-3)},
    "the policy's trunk": {"lora_r": 4, "critic": CriticSettings(kind="shared")},
    "whole weights shared": {"critic": CriticSettings(kind="shared"), "bootstrap_truncated": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_ends_bit_identical(model_directory: str, run_stage: RunStage, kind: str) -> None:
    run = run_whole_and_killed(run_stage, ppo, ppo_settings(model_directory, **KINDS[kind]), kills=(3, 4))
    rows = metrics(run)
    assert len({row["kl_coef"] for row in rows}) > 1  # the controller moved, so that its loss would show


@pytest.mark.parametrize("lost", ["controller", "moments", "critic-updater"])
def test_the_test_above_sees_lost_state(
    model_directory: str, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    settings = ppo_settings(model_directory, lora_r=4)
    whole = run_stage(ppo, settings, "whole")
    run_stage(ppo, settings, "killed", kill_after=3)
    if lost == "controller":
        monkeypatch.setattr(stage, "KlController", lambda *_, **__: KlController(0.1, 1.0, 50))
    elif lost == "moments":
        monkeypatch.setattr(stage, "RunningMoments", lambda **_: RunningMoments())
    else:
        monkeypatch.setattr(
            actor_critic.ActorCritic, "restore", lambda self, checkpoint: self._policy.restore(checkpoint)
        )
    resumed = run_stage(ppo, settings, "killed")
    assert metrics(resumed) != metrics(whole)


def test_the_result_does_not_depend_on_micro_batches(model_directory: str, run_stage: RunStage) -> None:
    found = []
    for budget in (4096, 60):
        settings = ppo_settings(model_directory, lora_r=4, max_steps=2, max_tokens_per_micro_batch=budget)
        found.append(weights(run_stage(ppo, settings, f"budget-{budget}")))
    for name, weight in found[0].items():
        assert torch.allclose(found[1][name], weight, rtol=1e-3, atol=1e-5), name


def test_on_policy_ratio_is_one_and_engine_reference_and_critic_agree_at_the_start(
    model_directory: str, run_stage: RunStage
) -> None:
    settings = ppo_settings(model_directory, lora_r=4, max_steps=1, num_ppo_epochs=1, num_mini_batches=1)
    (row,) = metrics(run_stage(ppo, settings, "ppo"))
    assert row["clip_ratio/low_mean"] == row["clip_ratio/high_mean"] == 0.0
    assert row["kl/old"] == pytest.approx(0.0, abs=1e-9)
    assert row["kl/engine"] < 1e-9
    assert row["kl/sequence"] == pytest.approx(0.0, abs=1e-5)
    assert abs(row["values/mean"]) < 0.2  # the head starts near zero
    assert row["value/grad_norm"] > 0
    assert row["updates"] == 1


def test_reference_is_the_base_and_the_kl_grows_with_training(model_directory: str, run_stage: RunStage) -> None:
    rows = metrics(run_stage(ppo, ppo_settings(model_directory, lora_r=4, max_steps=4), "ppo"))
    assert rows[0]["kl/sequence"] == pytest.approx(0.0, abs=1e-5)
    assert abs(rows[-1]["kl/sequence"]) > 1e-4
    for row in rows:
        assert row["objective/rlhf_reward"] == pytest.approx(
            row["objective/scores"] - row["kl_coef"] * row["kl/sequence"]
        )


def test_during_the_warmup_only_the_critic_learns(model_directory: str, run_stage: RunStage) -> None:
    settings = ppo_settings(model_directory, lora_r=4, critic=CriticSettings(warmup_steps=2), max_steps=3)
    run = run_stage(ppo, settings, "ppo")
    rows = metrics(run)
    assert all("loss" not in row and row["value/grad_norm"] > 0 for row in rows[:2])
    assert rows[1]["kl/sequence"] == pytest.approx(0.0, abs=1e-5)
    assert rows[2]["kl/sequence"] == pytest.approx(0.0, abs=1e-5)
    assert "loss" in rows[2]


def test_the_critic_learns_the_returns(model_directory: str, run_stage: RunStage) -> None:
    """Nearly every completion is cut off, so that the score is the penalty: a value that can be learned."""
    settings = ppo_settings(
        model_directory,
        lora_r=4,
        max_steps=12,
        rewards={"math_answer": 1.0},
        kl_coef=0.0,
        adaptive_kl=AdaptiveKlSettings(),
        reward_scaling="none",
        num_mini_batches=1,
        num_ppo_epochs=4,
        critic=CriticSettings(value_clip=None, warmup_steps=11),
        sampling=SamplingSettings(max_completion_length=4),
    )
    rows = metrics(run_stage(ppo, settings, "ppo"))
    assert rows[-1]["returns/mean"] < -0.8
    assert abs(rows[0]["values/mean"]) < 0.2
    assert rows[-1]["values/mean"] == pytest.approx(rows[-1]["returns/mean"], abs=0.2)


def test_target_kl_ends_the_passes_and_the_schedule_keeps_to_the_steps(
    model_directory: str, run_stage: RunStage
) -> None:
    settings = ppo_settings(
        model_directory, lora_r=4, num_ppo_epochs=4, target_kl=1e-6, lr_scheduler_type="linear", max_steps=3
    )
    rows = metrics(run_stage(ppo, settings, "ppo"))
    assert all(1 < row["updates"] < 8 for row in rows)
    planned = 3 * 8
    first = [row["learning_rate"] for row in rows]
    # The mean over a step's updates lies between the rates of its first and last planned ones.
    for step, rate in enumerate(first):
        assert 1e-2 * (1 - (8 * step + 8) / planned) < rate <= 1e-2 * (1 - 8 * step / planned)


def test_unscorable_completions_train_nothing(
    model_directory: str, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REWARDS, "varied", lambda completions, **columns: [None] * len(completions))
    settings = ppo_settings(model_directory, lora_r=4, max_steps=2)
    run = run_stage(ppo, settings, "ppo")
    assert all(row["unscorable"] == 1.0 and row["loss"] == row["grad_norm"] == 0.0 for row in metrics(run))
    assert not any(weight.any() for name, weight in weights(run).items() if "lora_B" in name)


def test_policy_and_critic_are_saved_apart(model_directory: str, run_stage: RunStage) -> None:
    run = run_stage(ppo, ppo_settings(model_directory, lora_r=4, max_steps=2), "ppo")
    base = AutoModelForCausalLM.from_pretrained(model_directory)
    PeftModel.from_pretrained(base, run.artifact)
    names = {file.name for file in (run.artifact / "critic").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", VALUE_HEAD} <= names
    policy, critic = (
        load_file(folder / "adapter_model.safetensors") for folder in (run.artifact, run.artifact / "critic")
    )
    assert policy.keys() == critic.keys()
    assert any(not torch.equal(policy[name], critic[name]) for name in policy)
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_directory), run.artifact / "critic")


def test_a_critic_of_its_own_and_a_shared_one_are_saved(model_directory: str, run_stage: RunStage) -> None:
    own = run_stage(ppo, ppo_settings(model_directory, max_steps=1), "own")
    assert {"model.safetensors", VALUE_HEAD} <= {file.name for file in (own.artifact / "critic").iterdir()}
    AutoModelForCausalLM.from_pretrained(own.artifact / "critic")
    shared = ppo_settings(model_directory, max_steps=1, critic=CriticSettings(kind="shared"))
    run = run_stage(ppo, shared, "shared")
    assert [file.name for file in (run.artifact / "critic").iterdir()] == [VALUE_HEAD]


def test_a_base_under_adapters_never_moves(model_directory: str, run_stage: RunStage) -> None:
    run = run_stage(ppo, ppo_settings(model_directory, lora_r=4), "ppo")
    checkpoint = load_latest(run.path / "checkpoints", notice=print)
    assert checkpoint is not None
    of_policy, of_critic = checkpoint.tensors("weights"), checkpoint.tensors("critic-weights")
    assert all(".lora_" in name and ".default." in name for name in of_policy)
    assert all(".critic." in name or name.startswith("value_head.") for name in of_critic)


def test_an_adapter_for_the_critic_needs_one_of_the_policy(model_directory: str, run_stage: RunStage) -> None:
    settings = ppo_settings(model_directory, critic=CriticSettings(kind="adapter"))
    with pytest.raises(ConfigError, match=r"critic\.kind = adapter needs a policy with an adapter"):
        run_stage(ppo, settings, "ppo")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"critic": CriticSettings(kind="shared", warmup_steps=1)}, "in one update"),
        ({"critic": CriticSettings(kind="shared", learning_rate=1e-3)}, "at its learning_rate"),
        ({"critic": CriticSettings(kind="adapter", name_or_path="x")}, "is for critic.kind = model"),
        ({"critic": CriticSettings(warmup_steps=5)}, "leave none of 5 steps"),
        ({"kl_coef": 0.0}, "from 0 none leads away"),
        ({"num_mini_batches": 4}, "a step has 3 prompts"),
        ({"sampling": SamplingSettings(temperature=0.0)}, "ppo learns from different completions"),
        ({"sampling": SamplingSettings(top_p=0.9)}, "ppo trains on the whole vocabulary"),
        ({"rewards": {"varied": 0.0}}, "ppo needs at least one reward"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    model_directory: str, run_stage: RunStage, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_stage(ppo, ppo_settings(model_directory, **options), "ppo")


def test_rollouts_and_metrics_are_on_disk(model_directory: str, run_stage: RunStage) -> None:
    import pyarrow.parquet as pq

    run = run_stage(ppo, ppo_settings(model_directory, lora_r=4, max_steps=1), "ppo")
    table = pq.read_table(run.path / "rollouts" / "step-00000001.parquet").to_pylist()
    assert len(table) == 6
    assert json.loads((run.path / "result.json").read_text())["summary"]["steps"] == 1
    assert {"time/generate", "time/score", "time/evaluate", "time/update"} <= read_rows(run.path / "metrics.jsonl")[
        0
    ].keys()
