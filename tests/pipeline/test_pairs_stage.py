"""Pairs of an earlier stage's completions inside one recipe: links, fingerprints, previews, mistakes, a whole run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.sources import load_rows
from posttrain.pipeline.bench import bench
from posttrain.pipeline.links import Link
from posttrain.pipeline.preview import preview
from posttrain.pipeline.runner import run_recipe, stage_fingerprints, stage_settings
from posttrain.runs.display import NoDisplay
from posttrain.runs.logs import read_rows
from posttrain.settings import DataSettings, DpoSettings
from tests.pipeline.conftest import load, problems

RECIPE = """\
model.dtype = "float32"
[stage.samples]
type = "eval"
data.split = "train"
data.rows = 12
num_samples = 8
sampling.temperature = 1.0
sampling.max_completion_length = 60
[stage.pairs]
type = "pairs"
completions = "samples"
[stage.dpo]
type = "dpo"
data.source = "pairs"
max_steps = 2
rows_per_step = 2
"""


def test_completions_feed_pairs_and_pairs_a_training_stage(tmp_path: Path) -> None:
    recipe = load(tmp_path, RECIPE)
    _, pairs, dpo = recipe.stages
    assert pairs.links == (Link("completions", "samples", "completions"),)
    assert dpo.links == (Link("data.source", "pairs", "pairs"),)
    settings = stage_settings(dpo, tmp_path / "runs/r")
    assert isinstance(settings, DpoSettings)
    assert settings.data.source == str(tmp_path / "runs/r/pairs/artifact")
    lines = "\n".join(preview(recipe, tmp_path / "runs"))
    assert "stage pairs (pairs, of the completions of samples)" in lines
    assert "stage dpo (dpo, on the pairs of pairs)" in lines
    assert "its rows come from the stage pairs, which has not run" in lines
    before, after = stage_fingerprints(recipe), stage_fingerprints(load(tmp_path, RECIPE, "--stage.samples.seed", "1"))
    assert {name for name in before if before[name] != after[name]} == {"samples", "pairs", "dpo"}


def test_a_named_source_stays_what_it_is_beside_a_stage_of_its_name(tmp_path: Path) -> None:
    text = RECIPE.replace("[stage.pairs]", "[stage.nano_preferences]").replace(
        '"pairs"\nmax', '"nano_preferences"\nmax'
    )
    assert load(tmp_path, text).stages[2].links == ()


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"samples"', '"sample"', "11: stage pairs needs sample, and there is no such stage; did you mean samples?"),
        ('"samples"', '"dpo"', "11: stage pairs needs dpo, which must come before it"),
        (
            'source = "pairs"',
            'source = "samples"',
            "14: stage dpo needs samples, which is of type eval and makes no pairs",
        ),
        (
            "num_samples = 8\n",
            "",
            "10: stage pairs needs samples, which has num_samples = 1: one completion of a problem makes no pair",
        ),
        ("max_steps = 2", 'data.path = "mine"', "15: stage dpo: the rows come from the stage pairs; remove data.path"),
        (
            "max_steps = 2",
            'data.split = "test"',
            '15: stage dpo: the rows of the stage pairs have one split, train, not "test"',
        ),
        ('completions = "samples"', "min_gap = -1.0", "stage pairs: completions is required"),
        ('source = "pairs"', 'source = "pair"', "14: stage dpo: no such file or directory, and no named source: pair"),
    ],
)
def test_mistakes(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in RECIPE
    assert expected in problems(tmp_path, RECIPE.replace(old, new))


def test_a_mistake_in_a_flag_names_the_flag(tmp_path: Path) -> None:
    found = problems(tmp_path, RECIPE, "--stage.pairs.completions", "sample")
    assert "--stage.pairs.completions: stage pairs needs sample, and there is no such stage" in found


def test_a_recipe_learns_from_its_own_samples(tmp_path: Path) -> None:
    recipe = load(tmp_path, RECIPE)
    unmeasured = bench(recipe, tmp_path / "runs").skipped
    assert "dpo was not measured: it needs the pairs of pairs, which has not run" in unmeasured
    directory = run_recipe(recipe, tmp_path / "runs", display=NoDisplay())
    counts = json.loads((directory / "pairs/result.json").read_text())["summary"]
    rows = load_rows(DataSettings(source=str(directory / "pairs/artifact")), seed=0, kinds=("preference",))
    assert len(rows) == counts["pairs"] > 0
    assert counts["pairs"] + counts["groups_without_pair"] == 12
    assert len(read_rows(directory / "dpo/metrics.jsonl")) == 2
    assert f"{len(rows)} rows read" in "\n".join(preview(recipe, tmp_path / "runs"))


def result_of(directory: Path) -> dict[str, Any]:
    """The result of the pairs stage, less what the machine had to say."""
    result = json.loads((directory / "pairs/result.json").read_text())
    del result["peak_memory_bytes"]
    return result


def test_a_stage_killed_between_artifact_and_result_ends_the_same(tmp_path: Path) -> None:
    recipe = load(tmp_path, RECIPE[: RECIPE.index("[stage.dpo]")])
    directory = run_recipe(recipe, tmp_path / "runs", display=NoDisplay())
    whole = result_of(directory)
    (directory / "pairs/result.json").unlink()
    run_recipe(recipe, tmp_path / "runs", display=NoDisplay())
    assert result_of(directory) == whole
    shutil.rmtree(directory / "pairs/artifact")
    (directory / "pairs/result.json").unlink()
    run_recipe(recipe, tmp_path / "runs", display=NoDisplay())
    assert result_of(directory) == whole
