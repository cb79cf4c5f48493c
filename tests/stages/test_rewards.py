"""Rewards that fail, in a whole stage: what could not be scored teaches nothing, and what never works ends it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from posttrain.errors import RewardError, Stopped
from posttrain.rewards import REWARDS
from posttrain.runs import directory
from posttrain.runs.logs import read_rows
from posttrain.settings import DataSettings, GrpoSettings, SamplingSettings
from posttrain.stages import grpo as grpo_stage
from posttrain.stages.grpo import grpo
from tests.rewards.conftest import ChatServer, said, serve
from tests.stages.conftest import RunStage, metrics, model_settings, run_whole_and_killed, weights

__all__ = ["serve"]  # the fixture

PER_SAMPLE = """
def mine(completion):
    if sum(completion.encode()) % 4 == 3 and "42" not in completion:
        raise ValueError("cannot read it")
    return float(sum(completion.encode()) % 7)
"""


def settings_of(model: str, **options: Any) -> GrpoSettings:
    defaults: dict[str, Any] = {
        "model": model_settings(model),
        "data": DataSettings(rows=8),
        "sampling": SamplingSettings(max_completion_length=12),
        "prompts_per_step": 3,
        "num_generations": 4,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "save_steps": 1,
    }
    return GrpoSettings(**(defaults | options))


@pytest.fixture
def write_file(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        (tmp_path / "mine.py").write_text(text)
        return str(tmp_path / "mine.py")

    return write


def test_completions_on_which_the_reward_fails_are_as_if_they_had_none(
    model_directory: str, run_stage: RunStage, write_file: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = run_stage(
        grpo, settings_of(model_directory, reward_file=write_file(PER_SAMPLE), rewards={"mine": 1.0}), "failing"
    )

    def with_instead(value: float | None) -> Callable[..., list[float | None]]:
        def mine(completions: list[str], **_: Any) -> list[float | None]:
            sums = [sum(t.encode()) for t in completions]
            failed = [n % 4 == 3 and "42" not in t for n, t in zip(sums, completions, strict=True)]
            return [value if missing else float(n % 7) for n, missing in zip(sums, failed, strict=True)]

        return mine

    monkeypatch.setitem(REWARDS, "mine", with_instead(None))
    same = run_stage(grpo, settings_of(model_directory, rewards={"mine": 1.0}), "same")
    monkeypatch.setitem(REWARDS, "mine", with_instead(0.0))
    other = run_stage(grpo, settings_of(model_directory, rewards={"mine": 1.0}), "other")
    expected, zeros = weights(same), weights(other)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(failing).items())
    assert any(not torch.equal(weight, zeros[name]) for name, weight in weights(failing).items())
    rows = [row for file in sorted((failing.path / "rollouts").iterdir()) for row in pq.read_table(file).to_pylist()]
    unscored = [row for row in rows if row["reward"] is None]
    assert unscored
    assert all(row["advantage"] == 0.0 for row in unscored)
    for row in rows:
        group = [r for r in rows if (r["step"], r["prompt_id"]) == (row["step"], row["prompt_id"])]
        scored = [r["reward"] for r in group if r["reward"] is not None]
        if row["reward"] is not None and len(set(scored)) > 1:
            assert (row["advantage"] > 0) == (row["reward"] > sum(scored) / len(scored))
    counts = [row["rewards/mine/failed"] for row in metrics(failing)]
    assert sum(counts) == len(unscored)
    assert [row["rewards/mine/failed"] for row in metrics(same)] == [0, 0]
    told = [row["text"] for row in read_rows(failing.path / "events.jsonl") if row["event"] == "reward_failed"]
    assert len(told) == 1
    assert "raised ValueError: cannot read it (mine.py:4)" in told[0]


def test_a_killed_run_with_a_reward_file_ends_bit_identical(
    model_directory: str, run_stage: RunStage, write_file: Callable[[str], str]
) -> None:
    text = "def mine(completions):\n    return [float(sum(text.encode()) % 7) for text in completions]"
    rewards = {"mine": 1.0, "longer_than": 0.5}
    settings = settings_of(model_directory, reward_file=write_file(text), rewards=rewards, max_steps=3)
    run_whole_and_killed(run_stage, grpo, settings, kills=(2,))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("def mine(completions):\n    return [1 / 0]", r"reward mine raised ZeroDivisionError.*\(mine.py:2\)"),
        ("def mine(completions):\n    return 1.0", "reward mine must return 2 values.*got float 1.0"),
        ("import os\ndef mine(completions):\n    os._exit(0)", "reward mine ended its process, with exit code 0"),
        ("def mine(texts):\n    return [1.0]", "is not understood"),
    ],
)
def test_what_fails_at_once_ends_before_the_model_is_loaded(
    text: str,
    why: str,
    model_directory: str,
    run_stage: RunStage,
    write_file: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grpo_stage, "load_model", None)
    settings = settings_of(model_directory, reward_file=write_file(text), rewards={"mine": 1.0})
    with pytest.raises(RewardError, match=why) as caught:
        run_stage(grpo, settings, "run")
    assert caught.value.exit_code == 6


def test_what_does_not_stop_failing_ends_the_run_with_its_input(
    model_directory: str, run_stage: RunStage, write_file: Callable[[str], str]
) -> None:
    text = "def mine(completions):\n    assert '42' in completions[0]\n    return [1.0] * len(completions)"
    settings = settings_of(model_directory, reward_file=write_file(text), rewards={"mine": 1.0}, max_steps=5)
    with pytest.raises(RewardError, match=r"failed on \d+ of 12 completions.*AssertionError \(mine.py:2\)") as caught:
        run_stage(grpo, settings, "run")
    assert "3 batches in a row" in str(caught.value)


def test_a_stop_request_while_a_reward_hangs_saves_and_the_rest_is_the_same(
    model_directory: str,
    run_stage: RunStage,
    write_file: Callable[[str], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hanging = tmp_path / "hanging"
    file = write_file(
        f"""
import pathlib, time
calls = 0
def mine(completions):
    global calls
    calls += 1
    if calls == 3 and not pathlib.Path({str(hanging)!r}).exists():
        pathlib.Path({str(hanging)!r}).touch()
        time.sleep(600)
    return [float(sum(text.encode()) % 7) for text in completions]
"""
    )
    settings = settings_of(model_directory, reward_file=file, rewards={"mine": 1.0}, save_steps=50)
    hanging.touch()
    whole = run_stage(grpo, settings, "whole")
    hanging.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(directory, "stop_request", lambda: "SIGTERM" if hanging.exists() else None)
        with pytest.raises(Stopped, match="saved up to step 1"):
            run_stage(grpo, settings, "stopped")
    resumed = run_stage(grpo, settings, "stopped")
    expected = weights(whole)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(resumed).items())


def test_normalised_and_gated_rewards_train(
    model_directory: str, run_stage: RunStage, write_file: Callable[[str], str]
) -> None:
    file = write_file(
        "def a(completions):\n    return [float(sum(t.encode()) % 7) for t in completions]\n"
        "def b(completions):\n    return [1000.0 * (len(t) % 3) for t in completions]\n"
    )
    common = {"reward_file": file, "rewards": {"a": 1.0, "b": 1.0}, "max_steps": 1}
    run = run_stage(grpo, settings_of(model_directory, reward_combination="normalized_sum", **common), "normalised")
    (row,) = metrics(run)
    assert row["reward"] == pytest.approx(0.0, abs=1e-6)
    assert "groups/solved" not in row
    assert row["rewards/b/mean"] > 10
    gated = settings_of(model_directory, reward_combination="gated", reward_gate="a", **common)
    run = run_stage(grpo, gated, "gated")
    for row in pq.read_table(run.path / "rollouts" / "step-00000001.parquet").to_pylist():
        paid = row["rewards/a"] + row["rewards/b"] if row["rewards/a"] > 0 else 0.0
        assert row["reward"] == paid


def test_a_judge_is_asked_once_for_each_completion_over_a_resume(
    model_directory: str, run_stage: RunStage, serve: Callable[..., ChatServer]
) -> None:
    def answer(body: dict[str, Any], number: int) -> Any:
        return 200, said(json.dumps({"score": sum(body["messages"][1]["content"].encode()) % 10})), {}

    server = serve(answer)
    judge = {"base_url": server.url, "model": "m", "max_calls": 100}
    settings = settings_of(model_directory, rewards={"judge": 1.0}, reward_options={"judge": judge})
    run_stage(grpo, settings, "judged", kill_after=2)
    asked = len(server.requests)
    run = run_stage(grpo, settings, "judged")
    assert len(server.requests) == asked
    assert len(read_rows(run.path / "judge.jsonl")) == asked
    assert metrics(run)[0]["rewards/judge/std"] > 0
