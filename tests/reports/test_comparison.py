"""Comparisons of evaluations whose truth is planted, refusals, and what is shown."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from posttrain.errors import ConfigError, DataError
from posttrain.evals.mathematics import summarise_grades
from posttrain.evals.samples import Sample, summarise
from posttrain.reports.comparison import compare as write_comparison
from posttrain.reports.comparison import compare_stage
from posttrain.reports.contrasts import Comparison, compare_evaluations, compare_tasks
from posttrain.reports.inputs import load_evaluation, read_inputs
from posttrain.reports.pages import print_comparison, score_table
from posttrain.reports.tables import render_markdown
from posttrain.runs.directory import StageRun
from posttrain.runs.display import NoDisplay
from posttrain.runs.rollout_files import write_rollouts
from posttrain.settings import CompareSettings

PROBLEMS = 200


def sample(problem: int, index: int, right: bool, completion: str = "so 42") -> Sample:
    return Sample(
        problem_id=f"p{problem:04d}", sample=index, prompt=f"Question {problem}?", gold="42", completion=completion,
        num_tokens=10, stop_reason="eos", category="correct" if right else "wrong_answer", strict=right, lenient=right,
        score=float(right), logprob=-0.1, extracted="42", rule="boxed", reason="",
    )  # fmt: skip


def write_evaluation(directory: Path, right: np.ndarray, **changes: Any) -> Path:
    """Write an evaluation whose outcomes are `right` (P, n), as its stage leaves it."""
    samples = [sample(i, j, bool(right[i, j])) for i in range(right.shape[0]) for j in range(right.shape[1])]
    rows = [item.row() for item in changes.pop("samples", samples)]
    summary = {
        "task": "nano", "kind": "mathematics", "task_version": "1", "grader_version": "1", "strict_profile": "r1_zero",
        **summarise(rows), **summarise_grades(rows),
        "sampling": {"temperature": 0.0}, "seed": 0, "data_fingerprint": "abc",
    }  # fmt: skip
    (directory / "artifact").mkdir(parents=True)
    write_rollouts(directory / "artifact" / "samples.parquet", rows)
    (directory / "artifact" / "summary.json").write_text(json.dumps(summary | changes))
    return directory


def compare(evaluations: dict[str, Path], baseline: str, **options: Any) -> Comparison:
    """Compare evaluations of one task; no report is drawn."""
    (found,) = compare_tasks(read_inputs(evaluations, baseline), **options).values()
    return found


def outcomes(right: int) -> np.ndarray:
    """The first `right` problems are solved."""
    return (np.arange(PROBLEMS) < right)[:, None]


@pytest.fixture
def evaluations(tmp_path: Path) -> dict[str, Path]:
    rights = {"base": 20, "sft": 100, "grpo": 103}
    return {name: write_evaluation(tmp_path / name, outcomes(right)) for name, right in rights.items()}


def test_verdicts_follow_the_paired_tests(evaluations: dict[str, Path], tmp_path: Path) -> None:
    base, sft, grpo = compare(evaluations, "base").models
    assert base.against_baseline is None
    assert sft.against_baseline is not None
    assert (sft.against_baseline.difference, sft.against_baseline.verdict) == (0.4, "better")
    assert (sft.against_baseline.fixed, sft.against_baseline.regressed) == (80, 0)
    assert sft.against_start is None  # it would repeat the contrast with the baseline
    assert grpo.against_baseline is not None
    assert grpo.against_baseline.verdict == "better"
    assert grpo.against_start is not None
    assert (grpo.against_start.reference, grpo.against_start.verdict) == ("sft", "cannot tell")
    assert grpo.against_start.p_value == pytest.approx(2 / 2**3)
    assert grpo.against_start.adjusted_p == pytest.approx(2 / 2**3)  # the largest of three


def test_the_step_from_each_model_to_the_next_is_put_in_words(evaluations: dict[str, Path], tmp_path: Path) -> None:
    assert compare(evaluations, "base").sentences() == [
        "sft is better than base: +40.0 points (95% CI +32.7 to +46.5, p < 0.001), 80 fixed, 0 lost.",
        "grpo is better than base: +41.5 points (95% CI +34.2 to +48.0, p < 0.001), 83 fixed, 0 lost.",
        "grpo cannot be told from sft: +1.5 points (95% CI -0.7 to +3.6, p = 0.250), 3 fixed, 0 lost; "
        "200 problems show differences of 3.6 points or more.",
    ]


def test_each_pair_is_tested_once_wherever_the_baseline_stands(evaluations: dict[str, Path], tmp_path: Path) -> None:
    found = compare(evaluations, "sft")
    assert found.tests == 2
    assert len(found.sentences()) == 2


def test_equal_models_claim_no_perfect_eyesight(tmp_path: Path) -> None:
    found = {name: write_evaluation(tmp_path / name, outcomes(50)) for name in ("base", "grpo")}
    (sentence,) = compare(found, "base").sentences()
    assert sentence.endswith("200 problems show differences of 2.0 points or more.")


def test_an_interval_that_disagrees_with_its_verdict_is_explained(tmp_path: Path) -> None:
    rights = {"base": 100, "a": 106, "b": 106}
    found = {name: write_evaluation(tmp_path / name, outcomes(right)) for name, right in rights.items()}
    comparison = compare(found, "base")
    assert "cannot be told from base" in comparison.sentences()[0]
    assert "the interval leaves out 0, but is not adjusted for the other tests" in comparison.sentences()[0]
    assert "intervals unadjusted" in score_table(comparison).caption


def test_another_way_of_asking_is_noticed(tmp_path: Path) -> None:
    found = {
        name: write_evaluation(tmp_path / name, outcomes(right), template_hash=template)
        for name, right, template in (("base", 20, "a"), ("sft", 90, "b"), ("grpo", 100, "b"))
    }
    notice = "sft, grpo: the questions were put in another prompt style or chat template than base's"
    comparison = compare(found, "base")
    assert comparison.notices == (notice,)
    same = compare({name: found[name] for name in ("sft", "grpo")}, "sft")
    assert same.notices == ()


def test_adjustment_is_over_every_test_on_the_page(tmp_path: Path) -> None:
    rights = {"base": 100, "a": 106, "b": 106}
    found = {name: write_evaluation(tmp_path / name, outcomes(right)) for name, right in rights.items()}
    contrast = compare(found, "base").models[1].against_baseline
    assert contrast is not None
    assert contrast.p_value == pytest.approx(2 / 2**6)
    assert contrast.adjusted_p == pytest.approx(3 * 2 / 2**6)
    assert contrast.verdict == "cannot tell"  # alone it would pass


def test_worse_is_said(evaluations: dict[str, Path], tmp_path: Path) -> None:
    found = compare(evaluations, "sft")
    assert found.models[0].against_baseline is not None
    assert found.models[0].against_baseline.verdict == "worse"
    assert found.sentences()[0].startswith("base is worse than sft: -40.0 points (95% CI -46")


def test_several_samples_are_clustered_by_problem(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    skill = rng.random((PROBLEMS, 1))
    found = {
        name: write_evaluation(tmp_path / name, rng.random((PROBLEMS, 4)) < skill * gain)
        for name, gain in (("base", 0.6), ("grpo", 0.9))
    }
    contrast = compare(found, "base").models[1].against_baseline
    assert contrast is not None
    assert contrast.interval.low < 0.15 < contrast.interval.high
    assert contrast.verdict == "better"
    assert [row[0].text for row in score_table(compare(found, "base")).rows] == ["base", "grpo"]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"grader_version": "2"}, "grader version 1 vs 2"),
        ({"task_version": "2"}, "task version 1 vs 2"),
        ({"data_fingerprint": "xyz"}, "other gold answers"),
        ({"samples": [sample(i, 0, True) for i in range(150, 250)]}, "200 vs 100 problems, 50 shared"),
    ],
)
def test_evaluations_not_scored_alike_are_refused(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    found = {
        "base": write_evaluation(tmp_path / "base", outcomes(20)),
        "grpo": write_evaluation(tmp_path / "grpo", outcomes(20), **changes),
    }
    with pytest.raises(DataError, match=f"base and grpo were not scored alike: .*{fault}.*No paired test drawn"):
        compare(found, "base")
    allowed = compare(found, "base", allow_mismatch=True)
    assert allowed.models[1].against_baseline is None
    assert any("grpo: no test drawn, not scored like base: " in notice for notice in allowed.notices)


@pytest.mark.parametrize(
    ("changes", "theirs"),
    [
        ({"task": "gsm8k"}, "gsm8k"),
        ({"sampling": {"temperature": 1.0}}, r"nano x 1 at temperature 1\.0"),
        ({"num_samples": 4}, r"nano x 4 at temperature 0\.0"),
    ],
)
def test_models_without_a_common_task_are_refused(tmp_path: Path, changes: dict[str, Any], theirs: str) -> None:
    found = {
        "base": write_evaluation(tmp_path / "base", outcomes(20)),
        "grpo": write_evaluation(tmp_path / "grpo", outcomes(20), **changes),
    }
    with pytest.raises(DataError, match=rf"grpo was evaluated on {theirs}, and base on nano.*share no task"):
        compare(found, "base")


def test_missing_evaluations_and_baselines_are_named(evaluations: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dpo is no finished evaluation: .*summary\.json is missing"):
        compare({**evaluations, "dpo": tmp_path / "dpo"}, "base")
    with pytest.raises(ConfigError, match="the baseline dpo is none of base, sft, grpo"):
        write_comparison(evaluations, "dpo", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_terminal_shows_whole_lines_at_any_width(evaluations: dict[str, Path], tmp_path: Path, width: int) -> None:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    print_comparison(compare(evaluations, "base"), console)
    text = console.file.getvalue()
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= width
    for whole in ("10.0%", "50.0%", "51.5%", "6.6 to 14.9", "+40.0", "+32.7 to +46.5", "better", "90.0%", "48.5%"):
        assert whole in text
    for name in ("base", "sft", "grpo"):
        assert sum(line.split()[:1] == [name] for line in lines) == 2  # in both tables
    if width >= 80:
        assert len(lines) <= 40
        assert any(line.split()[:2] == ["grpo", "51.5%"] for line in lines)


def test_bold_marks_only_what_passes_its_test(evaluations: dict[str, Path], tmp_path: Path) -> None:
    page = render_markdown(score_table(compare(evaluations, "sft")))
    assert "**-40.0** (" in page
    row = next(line for line in page.splitlines() if line.startswith("| grpo") and "cannot tell" in line)
    assert "+1.5 (" in row
    assert "**+1.5**" not in row


def test_model_text_cannot_become_markup(tmp_path: Path) -> None:
    hostile = "```\n# owned\n````<script>alert(1)</script>"
    before = [sample(0, 0, False, hostile), sample(1, 0, True)]
    after = [sample(0, 0, True), sample(1, 0, True)]
    found = {
        "base": write_evaluation(tmp_path / "base", outcomes(0), samples=before),
        "grpo": write_evaluation(tmp_path / "grpo", outcomes(0), samples=after),
    }
    write_comparison(found, "base", tmp_path)
    assert f"\n{'`' * 5}text\n{hostile}\n{'`' * 5}\n" in (tmp_path / "report.md").read_text()
    assert "<script>alert" not in (tmp_path / "report.html").read_text()


def test_the_stage_writes_prints_and_finishes(
    evaluations: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = CompareSettings(baseline="base", models=["base", "sft", "grpo"])
    with StageRun.open(tmp_path / "compare", settings=settings, fingerprint="f", display=NoDisplay()) as run:
        compare_stage(settings, run)
        assert run.finished
    written = json.loads((tmp_path / "compare" / "comparison.json").read_bytes())
    assert [model["name"] for model in written["nano"]["models"]] == ["base", "sft", "grpo"]
    assert "sft is better than base" in capsys.readouterr().out


def test_a_comparison_is_the_same_in_any_order_of_problems(evaluations: dict[str, Path], tmp_path: Path) -> None:
    loaded = [load_evaluation(name, path) for name, path in evaluations.items()]
    shuffled = [replace(item, samples=list(reversed(item.samples))) for item in loaded]
    assert compare_evaluations(shuffled, "base") == compare_evaluations(loaded, "base")


def test_of_what_decides_a_score_only_the_difference_is_said(tmp_path: Path) -> None:
    scorer = {"score": "reward", "rewards.judge": 1.0, "judge.model": "small", "judge.rubric": "Is it kind?"}
    found = {
        "base": write_evaluation(tmp_path / "base", outcomes(20), scorer=scorer),
        "grpo": write_evaluation(tmp_path / "grpo", outcomes(20), scorer=scorer | {"judge.model": "large"}),
        "rule": write_evaluation(tmp_path / "rule", outcomes(20), scorer={"score": "passes_checks"}),
    }
    with pytest.raises(DataError) as caught:
        compare({"base": found["base"], "grpo": found["grpo"]}, "base")
    message = "base and grpo were not scored alike: scorer judge.model small vs judge.model large. No paired test drawn"
    assert str(caught.value).startswith(message)
    with pytest.raises(DataError, match=r"scorer score reward, rewards\.judge 1\.0, .* vs score passes_checks\. No"):
        compare({"base": found["base"], "rule": found["rule"]}, "base")
