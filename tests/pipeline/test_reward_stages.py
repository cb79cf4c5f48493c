"""A reward model named by a recipe: an earlier stage or a directory, in the links, the fingerprint and the preview."""

import json
from pathlib import Path

import pytest

from posttrain.pipeline.bench import bench
from posttrain.pipeline.inputs import input_hashes
from posttrain.pipeline.links import Link
from posttrain.pipeline.preview import preview
from posttrain.pipeline.recipe import frozen_settings
from posttrain.pipeline.runner import run_recipe, stage_fingerprints, stage_settings
from posttrain.runs.display import NoDisplay
from posttrain.runs.logs import read_rows
from posttrain.settings import GrpoSettings, ModelSettings
from tests.conftest import call
from tests.pipeline.conftest import load, problems

RECIPE = """\
[stage.sft]
type = "sft"
[stage.rm]
type = "rm"
data.rows = 20
[stage.grpo]
type = "grpo"
init_from = "sft"
reward_model = "rm"
rewards.reward_model = 1.0
"""


def test_an_earlier_stage_feeds_its_reward_model(tmp_path: Path) -> None:
    recipe = load(tmp_path, RECIPE)
    grpo = recipe.stages[2]
    assert grpo.links == (Link("init_from", "sft", "model"), Link("reward_model", "rm", "reward_model"))
    settings = stage_settings(grpo, tmp_path / "runs" / "r")
    assert isinstance(settings, GrpoSettings)
    assert settings.reward_model == str(tmp_path / "runs" / "r" / "rm" / "artifact")
    assert settings.model.name_or_path == str(tmp_path / "runs" / "r" / "sft" / "artifact")
    lines = "\n".join(preview(recipe, tmp_path / "runs"))
    assert "stage grpo (grpo, from sft, rewarded by rm)" in lines
    assert "artifact of rm" in lines


def test_a_directory_is_no_stage_and_a_stage_is_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rm").mkdir()
    (tmp_path / "mine").mkdir()
    assert load(tmp_path, RECIPE).stages[2].filled["reward_model"].stage == "rm"
    for name in ("mine", "./rm", "owner/reward-model"):
        stage = load(tmp_path, RECIPE.replace('reward_model = "rm"', f'reward_model = "{name}"')).stages[2]
        assert stage.links == (Link("init_from", "sft", "model"),)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            '= "rm"\nrewards',
            '= "rmm"\nrewards',
            "9: stage grpo needs rmm, and there is no such stage; did you mean rm?",
        ),
        (
            '= "rm"\nrewards',
            '= "sft"\nrewards',
            "9: stage grpo needs sft, which is of type sft and makes no reward model",
        ),
        ('init_from = "sft"', 'init_from = "rm"', "8: stage grpo needs rm, which is of type rm and makes no model"),
        ("rewards.reward_model = 1.0\n", "", "9: stage grpo: reward_model is named, and its reward has no weight"),
        ('reward_model = "rm"\n', "", "9: stage grpo: rewards.reward_model is the score of a reward model"),
    ],
)
def test_mistakes(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in RECIPE
    assert f"r.toml:{expected}" in problems(tmp_path, RECIPE.replace(old, new))


def test_the_reward_model_is_in_the_fingerprint_and_the_permission_to_use_a_weak_one_is_not(tmp_path: Path) -> None:
    def prints(*overrides: str) -> dict[str, str]:
        return stage_fingerprints(load(tmp_path, RECIPE, *overrides))

    before, after = prints(), prints("--stage.rm.learning_rate", "1e-3")
    assert {name for name in before if before[name] != after[name]} == {"rm", "grpo"}
    assert prints("--stage.grpo.allow_weak_reward_model", "true") == before
    assert frozen_settings(load(tmp_path, RECIPE).stages[2])["settings"]["reward_model"] == "rm"
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "reward_model.json"):
        (model / name).write_text("{}")
    settings = GrpoSettings(reward_model=str(model), model=ModelSettings(name_or_path="owner/model"))
    hashes = [input_hashes(settings)]
    for name in ("model.safetensors", "reward_model.json"):
        (model / name).write_text('{"changed": 1}')
        hashes.append(input_hashes(settings))
    assert len({found["reward_model"] for found in hashes}) == 3
    assert "reward_model" not in input_hashes(settings, filled=["reward_model"])


def test_what_the_reward_file_says_is_in_the_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    settings = GrpoSettings(
        reward_file=str(file), rewards={"mine": 1.0}, model=ModelSettings(name_or_path="owner/model")
    )
    hashes = set()
    for score in ("1.0", "2.0"):
        file.write_text(f"def mine(completions):\n    return [{score}] * len(completions)\n")
        hashes.add(input_hashes(settings)["reward_file"])
    assert len(hashes) == 2


def test_a_recipe_trains_a_reward_model_and_a_policy_against_it(tmp_path: Path) -> None:
    text = """\
model.dtype = "float32"
[stage.rm]
type = "rm"
data.source = "nano_longer_wins"
data.rows = 60
eval_fraction = 0.5
learning_rate = 3e-4
[stage.grpo]
type = "grpo"
data.rows = 8
reward_model = "rm"
rewards.reward_model = 1.0
rewards.math_answer = 0.0
max_steps = 1
prompts_per_step = 2
num_generations = 2
sampling.max_completion_length = 8
"""
    recipe = load(tmp_path, text)
    found = bench(recipe, tmp_path / "runs")
    assert any("it needs the reward model of rm, which has not run" in sentence for sentence in found.skipped)
    directory = run_recipe(recipe, tmp_path / "runs", display=NoDisplay())
    (event,) = (row for row in read_rows(directory / "grpo" / "events.jsonl") if row["event"] == "reward_model")
    assert "better than chance" in event["text"]
    assert "prefers longer answers" in event["text"]
    assert "rewards/reward_model/mean" in read_rows(directory / "grpo" / "metrics.jsonl")[0]
    assert json.loads((directory / "grpo" / "settings.json").read_text())["reward_model"].endswith("rm/artifact")


def test_a_reward_model_that_is_missing_is_told_before_anything_starts(
    reward_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--reward_model", str(Path(reward_model).with_name("there")), "--rewards.reward_model", "1.0"]
    assert call("grpo", *flags, "--runs_dir", str(tmp_path / "runs"), "--display", "none") == 2
    assert "there does not exist; beside it: rm" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
