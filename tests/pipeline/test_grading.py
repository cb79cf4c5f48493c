"""`posttrain grade` and `posttrain rescore`: verdicts with their reasons, and the flips of stored completions."""

import json
from pathlib import Path

import pytest

from posttrain.errors import DataError
from posttrain.pipeline.grading import rescore, rescore_report
from posttrain.runs.rollout_files import write_rollouts
from tests.conftest import call, write_rows


def rollout(completion: str, gold: str | None, **scores: float | None) -> dict:
    return {"completion": completion, "gold": gold, "stop_reason": "eos", "prompt_id": "p", "reward": 0.0} | {
        f"rewards/{name}": score for name, score in scores.items()
    }


def store(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True)
    write_rollouts(file, rows)


def test_a_pair_is_graded_with_its_rule_and_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("grade", "so </think> <answer>x > 2</answer>", "(2,\\infty)", "--profile", "r1_zero") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("right")
    assert "by r1_zero at 20-25" in shown
    assert call("grade", "0.333", "\\frac13", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["reason"], found["gold_form"]) == ("wrong", "the values differ", "frac 13")


def test_a_file_is_graded_row_by_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"response": "\\boxed{1/2}", "answer": "0.5"}, {"completion": "\\boxed{2}", "solution": "\\boxed{3}"}]
    assert call("grade", write_rows(tmp_path / "rows.jsonl", rows), "--profile", "boxed") == 0
    assert "2 graded: 1 right, 1 wrong, 0 could_not_grade" in capsys.readouterr().out
    assert call("grade", write_rows(tmp_path / "other.jsonl", [{"response": "1", "label": "1"}])) == 3
    assert "expected a column response or completion or prediction and a column" in capsys.readouterr().err


def test_what_a_model_wrote_reaches_no_terminal_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("grade", "\x1b[31m42", "42") == 0
    assert "\x1b" not in capsys.readouterr().out


def test_stored_rollouts_are_graded_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right, tower = "so </think> <answer>\\sqrt8</answer>", "so </think> <answer>9^{9^{9^9}}</answer>"
    rows = [
        rollout(right, "2\\sqrt2", r1_zero=0.0, math_answer=1.0),
        rollout(tower, "4", r1_zero=0.0, math_answer=0.0),
        rollout(right, None, r1_zero=None, math_answer=None),
        rollout(right, " ", r1_zero=None, math_answer=None),
    ]
    store(tmp_path / "grpo" / "rollouts" / "step-00000001.parquet", rows)
    report = rescore_report(tmp_path, rescore(tmp_path))
    counts = {"completions": 3, "right_before": 0, "right_now": 1, "could_not_grade": 2, "flips": 1}
    assert report["rewards"]["r1_zero"] == counts
    assert [flip["extracted"] for flip in report["flips"]] == ["\\sqrt8"]
    assert call("rescore", str(tmp_path)) == 0
    shown = capsys.readouterr().out
    assert "r1_zero: 3 completions, 0 right before, 1 now, 1 flips, 2 could not be graded" in shown
    assert "0.0 -> 1.0, `\\sqrt8` for `2\\sqrt2`: equal by decimals at two precisions" in shown


def test_an_evaluation_is_graded_again_as_it_was_graded(tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    sample = {"completion": "it is 42", "gold": "42", "stop_reason": "eos", "strict": False, "lenient": True}
    other = {"completion": "\\boxed{0.50}", "gold": "1/2", "stop_reason": "eos", "strict": False, "lenient": False}
    store(artifact / "samples.parquet", [sample, other])
    (artifact / "summary.json").write_text(json.dumps({"strict_profile": "boxed"}))
    report = rescore_report(tmp_path, rescore(tmp_path))
    assert [(flip["reward"], flip["before"], flip["after"]) for flip in report["flips"]] == [
        ("strict", 0.0, 1.0),
        ("lenient", 0.0, 1.0),
    ]


def test_what_cannot_be_graded_again_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no graded completions"):
        rescore(tmp_path)
    row = rollout("4", "4", r1_zero=0.0)
    del row["gold"]
    store(tmp_path / "rollouts" / "step-00000001.parquet", [row])
    with pytest.raises(DataError, match="no column gold"):
        rescore(tmp_path)


def test_an_evaluation_without_grades_is_not_graded(tmp_path: Path) -> None:
    store(tmp_path / "artifact" / "samples.parquet", [{"completion": " A", "gold": "pear", "stop_reason": ""}])
    (tmp_path / "artifact" / "summary.json").write_text(json.dumps({"strict_profile": None}))
    with pytest.raises(DataError, match="has no graded completions"):
        rescore(tmp_path)
