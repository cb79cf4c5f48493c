"""Which evaluations belong to one model, how models are called, and what they were trained from."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ConfigError, DataError
from posttrain.evals.mathematics import summarise_grades
from posttrain.evals.samples import summarise
from posttrain.reports.comparison import compare
from posttrain.reports.inputs import Inputs, lineage, load_evaluation, read_course, read_inputs
from posttrain.runs.rollout_files import write_rollouts
from tests.reports.parts.made_up import sample


def stage(path: Path, kind: str, *, model: str = "nano", seed: int = 0, **settings: Any) -> Path:
    """Write the directory of a training stage, and return the artifact that others name."""
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"stage": kind, "fingerprint": "f"}))
    content = {"seed": seed, "model": {"name_or_path": str(model)}, **settings}
    (path / "settings.json").write_text(json.dumps(content))
    (path / "metrics.jsonl").write_text('{"step": 1}\n')
    return path / "artifact"


def evaluation(
    path: Path,
    right: Sequence[bool],
    *,
    model: Path | str = "nano",
    seed: int = 0,
    ids: str = "p",
    summary: Mapping[str, Any] | None = None,
) -> Path:
    """Write the directory of an evaluation of a model."""
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"stage": "eval", "fingerprint": "f"}))
    (path / "settings.json").write_text(json.dumps({"seed": seed, "model": {"name_or_path": str(model)}}))
    rows = [sample(f"{ids}{i}", right=value) for i, value in enumerate(right)]
    found = {
        "task": "nano", "kind": "mathematics", "grader_version": "2", "sampling": {"temperature": 0.0},
        "seed": seed, "data_fingerprint": ids,
        **summarise(rows), **summarise_grades(rows), **(summary or {}),
    }  # fmt: skip
    (path / "artifact").mkdir()
    write_rollouts(path / "artifact" / "samples.parquet", rows)
    (path / "artifact" / "summary.json").write_text(json.dumps(found))
    return path


def run_of(directory: Path, seed: int, right: Sequence[bool], *, ids: str = "p", **settings: Any) -> dict[str, Path]:
    """Write a run of SFT and GRPO with evaluations of the base and of both, and return these."""
    sft = stage(directory / "sft", "sft", seed=seed)
    grpo = stage(directory / "grpo", "grpo", model=str(sft), seed=seed, **settings)
    asked: Mapping[str, Any] = {"seed": seed, "ids": ids}
    return {
        "base": evaluation(directory / "base", [False] * len(right), **asked),
        "sft_eval": evaluation(directory / "sft_eval", [False, *right[1:]], model=sft, **asked),
        "grpo_eval": evaluation(directory / "grpo_eval", right, model=grpo, **asked),
    }


def read(runs: Mapping[str, Mapping[str, Path]]) -> Inputs:
    """Read the evaluations of several runs; the first is the baseline."""
    found = {f"{run}/{name}": path for run, own in runs.items() for name, path in own.items()}
    return read_inputs(found, next(iter(found)))


def test_models_bear_the_names_of_the_stages_that_made_them(tmp_path: Path) -> None:
    found = read({"a": run_of(tmp_path / "a", 0, [True, True, False])})
    assert [(model.name, model.start) for model in found.models] == [("base", None), ("sft", "base"), ("grpo", "sft")]
    assert [course.stage for course in found.model("grpo").courses] == ["grpo"]
    assert found.baseline == "base"
    assert found.tasks == ("nano",)


def test_runs_that_differ_in_their_seed_alone_are_seeds_of_one_model(tmp_path: Path) -> None:
    found = read({
        "a": run_of(tmp_path / "a", 0, [True, True, False], ids="p"),
        "b": run_of(tmp_path / "b", 1, [True, False, False], ids="q"),
    })  # fmt: skip
    assert [model.name for model in found.models] == ["base", "sft", "grpo"]
    grpo = found.model("grpo")
    assert [course.seed for course in grpo.courses] == [0, 1]
    merged = grpo.evaluations["nano"]
    assert merged.seed_scores == pytest.approx((2 / 3, 1 / 3))
    assert merged.summary["score"]["mean"] == pytest.approx(0.5)
    assert len(merged.means()) == 6  # other seeds, other problems: all of them count


def test_seeds_on_the_same_problems_are_samples_of_them(tmp_path: Path) -> None:
    found = read({
        "a": run_of(tmp_path / "a", 0, [True, True, False]),
        "b": run_of(tmp_path / "b", 1, [True, False, False]),
    })  # fmt: skip
    assert list(found.model("grpo").evaluations["nano"].means().values()) == [1.0, 0.5, 0.0]


def test_runs_that_differ_otherwise_are_models_of_their_own(tmp_path: Path) -> None:
    found = read({
        "a": run_of(tmp_path / "a", 0, [True, True, False], learning_rate=1e-5),
        "b": run_of(tmp_path / "b", 0, [True, False, False], learning_rate=2e-5),
    })  # fmt: skip
    assert [model.name for model in found.models] == ["base", "a/sft", "a/grpo", "b/sft", "b/grpo"]
    assert found.model("b/grpo").start == "b/sft"


def test_runs_of_equal_settings_and_seed_are_models_of_their_own(tmp_path: Path) -> None:
    """Other code may have made them: that is what a check against regressions compares."""
    found = read({"a": run_of(tmp_path / "a", 0, [True, True]), "b": run_of(tmp_path / "b", 0, [True, False])})
    assert [model.name for model in found.models] == ["base", "a/sft", "a/grpo", "b/sft", "b/grpo"]
    assert found.model("b/grpo").start == "b/sft"


def test_one_model_alone_is_not_compared(tmp_path: Path) -> None:
    paths = {name: evaluation(tmp_path / name / "eval", [True, False]) for name in ("one", "two")}
    with pytest.raises(ConfigError, match="one, two are all of one model"):
        compare(paths, "one", tmp_path / "out")


def test_two_ways_of_asking_one_task_are_told_apart(tmp_path: Path) -> None:
    sft = stage(tmp_path / "sft", "sft")
    paths = {
        "greedy": evaluation(tmp_path / "greedy", [True, False], model=sft),
        "several": evaluation(
            tmp_path / "several", [True, False], model=sft, summary={"num_samples": 8, "sampling": {"temperature": 1.0}}
        ),
    }
    (model,) = read_inputs(paths, "greedy").models
    assert list(model.evaluations) == ["nano x 1 at temperature 0.0", "nano x 8 at temperature 1.0"]


def test_a_moved_run_finds_its_stages_beside_its_evaluations(tmp_path: Path) -> None:
    run_of(tmp_path / "old", 0, [True, True])
    (tmp_path / "old").rename(tmp_path / "new")
    found = read({"new": {name: tmp_path / "new" / name for name in ("base", "sft_eval", "grpo_eval")}})
    assert [model.name for model in found.models] == ["base", "sft", "grpo"]


def test_a_lineage_begins_where_the_first_stage_began(tmp_path: Path) -> None:
    run_of(tmp_path / "a", 0, [True])
    course = read_course(tmp_path / "a" / "grpo")
    assert course is not None
    assert [before.path.name for before in lineage(course)] == ["sft", "grpo"]


def test_evaluations_without_scores_are_refused(tmp_path: Path) -> None:
    path = evaluation(tmp_path / "old", [True])
    summary = json.loads((path / "artifact" / "summary.json").read_text())
    del summary["score"]
    (path / "artifact" / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(DataError, match="evaluated by an older version"):
        load_evaluation("old", path)
