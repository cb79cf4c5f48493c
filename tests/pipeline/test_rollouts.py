"""`posttrain rollouts`: which completions of which step, in which order, and how they are printed."""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ConfigError, DataError
from posttrain.pipeline.rollouts import WHERE, holds, in_order, printable, rollout_lines, rollouts_of
from posttrain.runs.rollout_files import write_rollouts
from tests.conftest import call


def rollout(step: int, sample: int, **more: Any) -> dict[str, Any]:
    row = {"step": step, "prompt_id": "0123456789abcdef", "sample": sample, "prompt": "2+2?", "messages": None}
    row |= {
        "completion": f" {sample}",
        "reward": float(sample),
        "rewards/r1_zero": float(sample == 2),
        "answered": True,
    }
    return row | {"advantage": 0.5, "length": 9 - sample, "stop_reason": "eos", "completion_ids": [1, 2], **more}


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """Return a stage's directory with the rollouts of two steps."""
    (tmp_path / "rollouts").mkdir()
    rows = [rollout(40, sample) for sample in range(4)]
    rows.append(rollout(40, 4, stop_reason="length", answered=False, completion=" 1\x1b[2J\n1", reward=None))
    rows.append(rollout(40, 5, completion=" 3", **{"rewards/r1_zero": None}))
    write_rollouts(tmp_path / "rollouts" / "step-00000040.parquet", rows)
    write_rollouts(tmp_path / "rollouts" / "step-00000007.parquet", [rollout(7, 0)])
    return tmp_path


@pytest.mark.parametrize(
    ("name", "samples"),
    [
        ("truncated", [4]),
        ("no_answer", [4]),
        ("right", [2]),
        ("wrong", [0, 1, 3]),
        ("unscorable", [4]),
        ("repeated", [3, 5]),
    ],
)
def test_kinds(stage: Path, name: str, samples: list[int]) -> None:
    assert name in WHERE
    assert [row["sample"] for row in rollouts_of(stage, 40) if holds(row, [name])] == samples


def test_orders(stage: Path) -> None:
    rows = rollouts_of(stage, None)
    assert [row["sample"] for row in in_order(rows, "worst")] == [0, 1, 2, 3, 5]  # one has no reward
    assert [row["sample"] for row in in_order(rows, "best")] == [5, 3, 2, 1, 0]
    assert [row["sample"] for row in in_order(rows, "longest")] == [0, 1, 2, 3, 4, 5]
    assert in_order(rows, None) == rows


def test_a_rollout_is_printed_with_its_numbers_and_without_commands_to_the_terminal(stage: Path) -> None:
    lines = list(rollout_lines(rollouts_of(stage, 40)[4]))
    assert lines == [
        "step 40  prompt 0123456789ab  sample 4  reward -  advantage 0.5  r1_zero 0",
        "  5 tokens, ended by length",
        "  prompt:",
        "    2+2?",
        "  completion:",
        "     1\\x1b[2J",
        "    1",
    ]
    assert "2 times among its prompt's" in list(rollout_lines(rollouts_of(stage, 40)[3]))[1]
    assert printable("é\t\r\u202e中") == "é\\t\\r\\u202e中"


def test_mistakes(stage: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has rollouts of the steps 7 to 40, not of 8") as caught:
        rollouts_of(stage, 8)
    assert caught.value.fix == "--step 40"
    with pytest.raises(DataError, match="has no rollouts: expected the directory of a GRPO or PPO stage"):
        rollouts_of(tmp_path / "rollouts", None)
    with pytest.raises(ConfigError, match="no kind of rollout 'cut'; there are truncated, no_answer"):
        holds({}, ["cut"])
    write_rollouts(stage / "rollouts" / "step-00000041.parquet", [{"id": "a", "response": "b"}])
    with pytest.raises(DataError, match="has no rollouts with rewards"):
        rollouts_of(stage, None)


def test_the_verb(stage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("rollouts", str(stage), "--best", "2", "--where", "wrong") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 of 3 completions that are wrong"
    assert [line for line in lines if line.startswith("step")] == [
        "step 40  prompt 0123456789ab  sample 3  reward 3  advantage 0.5  r1_zero 0",
        "step 40  prompt 0123456789ab  sample 1  reward 1  advantage 0.5  r1_zero 0",
    ]
    assert call("rollouts", str(stage), "--step", "7", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["completion"] == " 0"
    assert "completion_ids" not in row
    assert call("rollouts", str(stage), "--best", "2", "--worst", "1") == 2
    assert "--worst and --best are different orders" in capsys.readouterr().err
    assert call("rollouts", str(stage), "--where", "cut") == 2
