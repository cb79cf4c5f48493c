"""The data verbs: what a source is good for, how its rows look to a stage, and pairs out of a run's completions."""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.sources import load_rows
from posttrain.errors import DataError
from posttrain.pipeline.data_checks import STAGE_KINDS, check_rows, report_lines, show_rows
from posttrain.runs.rollout_files import read_rollouts, write_rollouts
from posttrain.settings import DataSettings
from posttrain.stages.pairs import best_and_worst, make_pairs, write_pairs
from tests.conftest import call, write_rows

GOOD = {"prompt": "2+2?", "chosen": " 4", "rejected": " 5"}
SAME = {"prompt": "1+1?", "chosen": " 2", "rejected": " 2 "}
BROKEN = {"prompt": "0+1?", "chosen": " 1"}


def written(folder: Path, *rows: dict[str, Any]) -> str:
    return write_rows(folder / "pairs.jsonl", rows)


def test_check_counts_every_row(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, SAME, BROKEN, GOOD)
    report = check_rows(DataSettings(source=path), stage="dpo", model="nano")
    assert (report["usable"], report["malformed"], report["kinds"]) == (1, 1, {"preference": 1})
    assert {fault: (found["rows"], found["left_out"]) for fault, found in report["faults"].items()} == {
        "chosen and rejected are the same": (1, True),
        "duplicate row": (1, True),
        "missing column": (1, False),
    }
    assert report["usable"] + sum(found["rows"] for found in report["faults"].values()) == 4
    assert report["tokens"]["shortest"] == report["tokens"]["longest"] > 3
    text = "\n".join(report_lines(report))
    assert f"{path}:3" in text
    assert "1 malformed: missing column" in text


def test_check_counts_what_the_filters_leave_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, GOOD, {"prompt": "Why?", "chosen": "I'm sorry, but I can't do that.", "rejected": "So."})
    assert call("data", "check", path, "--stage", "dpo", "--filters.refusals", "true", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["usable"], report["malformed"], list(report["faults"])) == (1, 0, ["refusal"])
    assert report["faults"]["refusal"]["left_out"]
    assert report["faults"]["refusal"]["first"] == [f"{path}:2 (I'm sorry, but I can't do that.)"]
    assert call("data", "check", path, "--stage", "dpo", "--json") == 0
    assert json.loads(capsys.readouterr().out)["usable"] == 2


def test_check_counts_one_side_of_a_held_out_split(tmp_path: Path) -> None:
    path = written(tmp_path, *(GOOD | {"prompt": f"2+{n}?"} for n in range(50)))
    sides = [
        check_rows(DataSettings(source=path, held_out=0.3, split=split), stage="dpo") for split in ("train", "test")
    ]
    assert sum(side["usable"] for side in sides) == 50
    assert all(side["usable"] and not side["faults"] for side in sides)
    assert sides[1]["source"] == f"{path} (test, 0.3 held out)"


def test_check_refuses_rows_that_the_stage_cannot_use(tmp_path: Path) -> None:
    path = written(tmp_path, {"prompt": "2+2?"})
    with pytest.raises(DataError, match="rm needs preference pairs"):
        check_rows(DataSettings(source=path), stage="rm")
    assert check_rows(DataSettings(source=path), stage="grpo")["usable"] == 1


@pytest.mark.parametrize("stage", STAGE_KINDS)
def test_check_of_the_embedded_rows(stage: str) -> None:
    source = "nano_preferences" if stage in ("rm", "dpo") else "nano"
    report = check_rows(DataSettings(source=source, rows=20), stage=stage, model="nano")
    assert (report["usable"], report["faults"], report["tokens"]["over_max_length"]) == (20, {}, 0)


def test_show_marks_what_is_trained(tmp_path: Path) -> None:
    lines = list(show_rows(DataSettings(source=written(tmp_path, GOOD)), stage="dpo", model="nano", count=3))
    assert lines[0].endswith("tokens")
    assert sum("trained" in line for line in lines) == 2
    prompts = list(show_rows(DataSettings(source="nano"), stage="grpo", model="nano", count=2))
    assert sum(line.startswith("nano/train:row") for line in prompts) == 2
    assert any(line.startswith("  column answer:") for line in prompts)


def test_few_shot_examples_are_shown_and_measured(tmp_path: Path) -> None:
    for split, numbers in {"train": range(4), "test": range(4, 6)}.items():
        rows = [{"question": f"{n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in numbers]
        write_rows(tmp_path / f"{split}.jsonl", rows)
    data = DataSettings(source="gsm8k", path=str(tmp_path), split="test")
    few = data.model_copy(update={"num_fewshot": 2})
    plain, longer = (check_rows(each, stage="grpo", model="nano") for each in (data, few))
    assert plain["usable"] == longer["usable"] == 2
    assert longer["tokens"]["shortest"] > plain["tokens"]["longest"]
    shown = "\n".join(show_rows(few, stage="grpo", model="nano", count=1))
    assert shown.count("+ 1?") == 4  # two examples, the question, and its column


def test_the_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, GOOD, BROKEN)
    assert call("data", "check", path, "--stage", "dpo") == 3
    captured = capsys.readouterr()
    assert "1 malformed: missing column" in captured.out
    assert "dpo would refuse it" in captured.err
    assert call("data", "check", path, "--stage", "dpo", "--max_bad_rows", "1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["usable"] == 1
    assert call("data", "show", "nano", "-n", "1") == 0
    assert "trained" in capsys.readouterr().out
    assert call("data", "check", path, "--splt", "test") == 2
    assert "did you mean split?" in capsys.readouterr().err


def rollout(reward: float | None, completion: str, prompt: str = "p", step: int = 1, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "prompt_id": prompt,
        "prompt": f"User: {prompt}",
        "messages": None,
        "completion": completion,
        "reward": reward,
        **more,
    }


def test_best_against_worst() -> None:
    group = [
        rollout(0.5, "half"),
        rollout(1.0, "one"),
        rollout(None, "unscored"),
        rollout(1.0, "two"),
        rollout(0.0, "no"),
    ]
    pair = best_and_worst(group, min_gap=0.0)
    assert pair is not None
    assert (pair["prompt"], pair["chosen"], pair["rejected"]) == ("User: p", "one", "no")
    assert (pair["reward_chosen"], pair["reward_rejected"]) == (1.0, 0.0)
    assert best_and_worst(group, min_gap=1.5) is None
    assert best_and_worst([rollout(1.0, "one"), rollout(1.0, "two")], min_gap=0.0) is None
    assert best_and_worst([rollout(1.0, "one"), rollout(0.0, "one ")], min_gap=0.0) is None
    assert best_and_worst([rollout(None, "one")], min_gap=0.0) is None
    assert best_and_worst([rollout(1.0, "one"), rollout(0.0, " ")], min_gap=0.0) is None


def test_pairs_of_a_stage_are_rows_of_preferences(tmp_path: Path) -> None:
    (tmp_path / "grpo" / "rollouts").mkdir(parents=True)
    chat = json.dumps([{"role": "user", "content": "Hi"}])
    first = [rollout(1.0, "good"), rollout(0.0, "bad"), rollout(0.0, "x", "q"), rollout(0.0, "y", "q")]
    second = [rollout(0.0, "No", "c", 2, messages=chat), rollout(0.25, "Yes", "c", 2, messages=chat)]
    write_rollouts(tmp_path / "grpo" / "rollouts" / "step-00000001.parquet", first)
    write_rollouts(tmp_path / "grpo" / "rollouts" / "step-00000002.parquet", second)
    out = tmp_path / "new" / "pairs.jsonl"
    made, without = make_pairs(tmp_path / "grpo", min_gap=0.0)
    assert (len(made), without) == (2, 1)
    write_pairs(out, made)
    text, messages = load_rows(DataSettings(source=str(out)), seed=0, kinds=("preference",))
    assert (text.prompt, text.chosen, text.rejected) == ("User: p", "good", "bad")
    assert messages.prompt == ({"role": "user", "content": "Hi"},)
    assert messages.chosen == ({"role": "assistant", "content": "Yes"},)
    with pytest.raises(DataError, match="none of 3 groups has two completions whose rewards differ by 2"):
        make_pairs(tmp_path / "grpo", min_gap=2.0)
    with pytest.raises(DataError, match="has no completions"):
        make_pairs(tmp_path, min_gap=0.0)
    assert call("data", "pairs", str(tmp_path / "grpo"), "--out", str(out), "--min-gap", "0.5") == 0
    assert len(out.read_text().splitlines()) == 1


def test_pairs_of_an_evaluation_are_right_against_wrong_samples(tmp_path: Path) -> None:
    runs = ["--runs-dir", str(tmp_path), "--display", "none"]
    sampled = ["--num_samples", "8", "--sampling.temperature", "1.0", "--sampling.max_completion_length", "60"]
    assert call("eval", "--data.rows", "12", "--data.split", "train", *sampled, *runs) == 0
    made, without = make_pairs(tmp_path / "eval/eval", min_gap=0.0)
    assert len(made) + without == 12
    samples = read_rollouts(tmp_path / "eval/eval/artifact/samples.parquet")
    grades = {(row["prompt"], row["completion"]): row["strict"] for row in samples}
    assert all(grades[pair["prompt"], pair["chosen"]] and not grades[pair["prompt"], pair["rejected"]] for pair in made)
    assert made
