"""Which evaluations a user means by the directories named."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from posttrain.errors import ConfigError
from posttrain.evals.mathematics import summarise_grades
from posttrain.evals.samples import Sample, summarise
from posttrain.pipeline.evaluations import choose_baseline, find_evaluations, show_comparison
from posttrain.reports.comparison import print_comparisons
from posttrain.reports.contrasts import compare_evaluations
from posttrain.reports.inputs import Evaluation


def make(directory: Path, file: str = "artifact/summary.json") -> Path:
    (directory / file).parent.mkdir(parents=True)
    (directory / file).write_text("{}")
    return directory


def test_a_run_stands_for_its_finished_evaluations(tmp_path):
    base, late = make(tmp_path / "a" / "base"), make(tmp_path / "a" / "late")
    make(tmp_path / "a" / "sft", "artifact/model.safetensors")
    make(tmp_path / "a" / "running", "settings.json")
    assert find_evaluations([tmp_path / "a"]) == {"base": base, "late": late}
    assert find_evaluations([late, tmp_path / "a"]) == {"late": late, "base": base}


def test_an_artifact_by_itself_is_an_evaluation(tmp_path):
    artifact = make(tmp_path / "copied", "summary.json")
    assert find_evaluations([artifact]) == {"copied": artifact}


def test_equal_names_are_told_apart_by_their_runs(tmp_path):
    one, other = make(tmp_path / "a" / "eval"), make(tmp_path / "b" / "eval")
    assert find_evaluations([one, other]) == {"a/eval": one, "b/eval": other}


def test_as_many_parents_are_added_as_tell_them_apart(tmp_path):
    one, other = make(tmp_path / "one" / "demo" / "eval"), make(tmp_path / "two" / "demo" / "eval")
    single = make(tmp_path / "two" / "demo" / "late")
    assert find_evaluations([one, other, single]) == {"one/demo/eval": one, "two/demo/eval": other, "late": single}


def test_a_runs_evaluations_come_as_it_made_them(tmp_path):
    for time, name in enumerate(("base", "sft_eval", "grpo_eval")):
        directory = make(tmp_path / "demo" / name)
        (directory / "events.jsonl").write_text(json.dumps({"event": "opened", "time": float(time)}) + "\n")
    assert list(find_evaluations([tmp_path / "demo"])) == ["base", "sft_eval", "grpo_eval"]


def evaluation(name: str, right: int) -> Evaluation:
    """20 problems of which the first are solved."""
    fields = {"sample": 0, "gold": "1", "completion": "1", "num_tokens": 1, "stop_reason": "eos", "extracted": "1"}
    samples = [
        Sample(
            problem_id=f"{i:02d}", prompt="?", category="correct" if i < right else "wrong_answer", strict=i < right,
            lenient=i < right, rule=None, reason="", score=float(i < right), logprob=None, **fields,
        )
        for i in range(20)
    ]  # fmt: skip
    alike = {
        "task": "nano",
        "kind": "mathematics",
        "task_version": "1",
        "grader_version": "1",
        "strict_profile": "boxed",
        "sampling": {},
    }
    rows = [sample.row() for sample in samples]
    summary = summarise(rows) | summarise_grades(rows) | alike | {"data_fingerprint": "d", "seed": 0}
    return Evaluation(name, summary, rows)


def test_a_finished_comparison_is_shown_as_it_was(tmp_path, capsys):
    comparison = compare_evaluations([evaluation("base", 4), evaluation("late", 18)], "base")
    print_comparisons([comparison], tmp_path)
    first = capsys.readouterr().out
    assert "late" in first
    (tmp_path / "comparison.json").write_text(json.dumps({"nano": asdict(comparison)}))
    show_comparison(tmp_path)
    assert capsys.readouterr().out == first
    (tmp_path / "comparison.json").write_text('{"baseline": "base"}')
    show_comparison(tmp_path)
    assert capsys.readouterr().out == f"{tmp_path}\n"


def test_what_is_no_finished_evaluation_is_refused(tmp_path):
    running = make(tmp_path / "a" / "running", "settings.json")
    for directory in (running, tmp_path / "a"):
        with pytest.raises(ConfigError, match="is no finished evaluation and holds none"):
            find_evaluations([directory])
    with pytest.raises(ConfigError, match=r"no directory .*; did you mean running"):
        find_evaluations([tmp_path / "a" / "runing"])


def test_the_baseline_is_the_first_or_the_one_named(tmp_path):
    evaluations = {"base": tmp_path, "sft": tmp_path}
    assert choose_baseline(evaluations, None) == "base"
    assert choose_baseline(evaluations, "sft") == "sft"
    with pytest.raises(ConfigError, match="no evaluation bas here; did you mean base"):
        choose_baseline(evaluations, "bas")
    with pytest.raises(ConfigError, match="needs two finished evaluations"):
        choose_baseline({"base": tmp_path}, None)
