"""Kept policies and references inside a recipe: links, what a frontier takes over, mistakes, and a whole run."""

import json
from pathlib import Path

import pytest

from posttrain.pipeline.links import Link
from posttrain.pipeline.preview import preview
from posttrain.pipeline.recipe import single_stage
from posttrain.pipeline.runner import run_recipe, stage_fingerprints, stage_settings
from posttrain.runs.display import NoDisplay
from posttrain.settings import EvalSettings, FrontierSettings
from tests.conftest import call
from tests.pipeline.conftest import load, problems

RECIPE = """\
model.dtype = "float32"
[stage.sft]
type = "sft"
data.rows = 8
max_steps = 1
[stage.rm]
type = "rm"
init_from = "sft"
data.rows = 12
max_steps = 1
[stage.grpo]
type = "grpo"
init_from = "sft"
reward_model = "rm"
rewards = { reward_model = 1.0, r1_zero = 0.0 }
allow_weak_reward_model = true
data.rows = 8
sampling.max_completion_length = 16
prompts_per_step = 2
num_generations = 2
max_steps = 2
keep_policy_steps = 1
[stage.frontier]
type = "frontier"
policies = "grpo"
data.rows = 4
num_samples = 2
[stage.grpo_eval]
type = "eval"
init_from = "grpo"
reference = "sft"
data.rows = 4
sampling = { temperature = 1.0, max_completion_length = 16 }
"""


def test_a_frontier_takes_over_the_start_the_rewards_and_the_lengths(tmp_path: Path) -> None:
    recipe = load(tmp_path, RECIPE)
    frontier = recipe.stages[3]
    assert set(frontier.links) == {
        Link("init_from", "sft", "model"),
        Link("reward_model", "rm", "reward_model"),
        Link("policies", "grpo", "policies"),
    }
    settings = stage_settings(frontier, tmp_path / "runs/r")
    assert isinstance(settings, FrontierSettings)
    assert settings.policies == str(tmp_path / "runs/r/grpo")
    assert settings.model.name_or_path == str(tmp_path / "runs/r/sft/artifact")
    assert settings.reward_model == str(tmp_path / "runs/r/rm/artifact")
    assert settings.rewards == {"reward_model": 1.0, "r1_zero": 0.0}
    assert (settings.sampling.max_completion_length, settings.sampling.temperature) == (16, 1.0)
    assert (settings.data.split, settings.data.rows) == ("test", 4)
    assert frontier.origin_of("rewards") == f"{tmp_path}/r.toml:15"
    lines = "\n".join(preview(recipe, tmp_path / "runs"))
    assert "stage frontier (frontier, from sft, rewarded by rm, on the policies of grpo)" in lines
    assert "policies of grpo" in lines


def test_a_default_of_the_policy_stage_is_taken_over_too(tmp_path: Path) -> None:
    plain = RECIPE.replace('reward_model = "rm"\nrewards = { reward_model = 1.0, r1_zero = 0.0 }\n', "")
    frontier = load(tmp_path, plain).stages[3]
    assert frontier.settings.rewards == {"r1_zero": 1.0}
    assert frontier.origin_of("rewards") == "default of grpo"


def test_rewards_of_its_own_replace_those_taken_over(tmp_path: Path) -> None:
    own = RECIPE.replace("num_samples = 2", "num_samples = 2\nrewards = { math_answer = 1.0 }")
    settings = load(tmp_path, own).stages[3].settings
    assert isinstance(settings, FrontierSettings)
    assert (settings.rewards, settings.reward_model) == ({"math_answer": 1.0}, None)


def test_a_reference_is_a_link_or_a_model_by_its_name(tmp_path: Path) -> None:
    evaluation = load(tmp_path, RECIPE).stages[4]
    assert Link("reference", "sft", "model") in evaluation.links
    settings = stage_settings(evaluation, tmp_path / "runs/r")
    assert isinstance(settings, EvalSettings)
    assert settings.reference == str(tmp_path / "runs/r/sft/artifact")
    assert "stage grpo_eval (eval, from grpo, measured against sft)" in "\n".join(
        preview(load(tmp_path, RECIPE), tmp_path)
    )
    by_name = load(tmp_path, RECIPE, "--stage.grpo_eval.reference", "nano").stages[4]
    assert [link.key for link in by_name.links] == ["init_from"]


def test_fingerprints_follow_the_policies_and_the_reference(tmp_path: Path) -> None:
    before = stage_fingerprints(load(tmp_path, RECIPE))
    after = stage_fingerprints(load(tmp_path, RECIPE, "--stage.grpo.kl_coef", "0.5"))
    assert {name for name in before if before[name] != after[name]} == {"grpo", "frontier", "grpo_eval"}
    kept = stage_fingerprints(load(tmp_path, RECIPE, "--stage.grpo.keep_policy_steps", "2"))
    assert kept == before  # what is kept changes no result
    gold = stage_fingerprints(load(tmp_path, RECIPE, "--stage.frontier.gold", "r1_zero"))
    assert {name for name in before if before[name] != gold[name]} == {"frontier"}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            'policies = "grpo"',
            'policies = "gpro"',
            "stage frontier needs gpro, and there is no such stage; did you mean",
        ),
        (
            'policies = "grpo"',
            'policies = "rm"',
            "stage frontier needs rm, which is of type rm and makes no policies",
        ),
        (
            "keep_policy_steps = 1",
            "",
            "stage frontier needs grpo, which keeps no policies; expected stage.grpo.keep_policy_steps = 10",
        ),
        ('policies = "grpo"\n', "", "stage frontier: policies is required"),
        ('reference = "sft"', 'reference = "rm"', "stage grpo_eval needs rm, which is of type rm and makes no model"),
        ("num_samples = 2", "gold = 'hybrid'", "stage frontier: gold = hybrid is none of the rewards"),
        ("num_samples = 2", "sampling.top_k = 5", "and sampling.top_k = 5"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert expected in problems(tmp_path, RECIPE.replace(old, new))


def test_a_whole_recipe_and_the_verb_on_its_directory(tmp_path: Path) -> None:
    directory = run_recipe(load(tmp_path, RECIPE), tmp_path / "runs", display=NoDisplay())
    found = json.loads((directory / "frontier/artifact/frontier.json").read_text())
    assert [point["step"] for point in found["points"]] == [0, 1, 2]
    summary = json.loads((directory / "grpo_eval/artifact/summary.json").read_text())
    assert summary["kl_is_estimate"] is True
    assert summary["reference"] == str(directory / "sft/artifact")

    policies = str(directory / "grpo")
    alone = single_stage("frontier", None, ["--policies", policies, "--data.rows", "4"], name="f").stages[0]
    assert isinstance(alone.settings, FrontierSettings)
    assert alone.settings.model.name_or_path == str(directory / "sft/artifact")
    assert alone.settings.rewards == found["proxy"]
    assert alone.origin_of("rewards") == str(directory / "grpo/settings.json")
    arguments = ["frontier", "--policies", policies, "--data.rows", "4", "--num_samples", "2", "--display", "none"]
    assert call(*arguments, "--runs_dir", str(tmp_path / "verb")) == 0
    again = json.loads((tmp_path / "verb/frontier/frontier/artifact/frontier.json").read_text())
    assert again["points"] == found["points"]
