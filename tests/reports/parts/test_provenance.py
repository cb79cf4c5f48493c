"""Provenance: what differs is shown and nothing else, and the commands are there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from posttrain.reports.inputs import Course
from posttrain.reports.parts.provenance import differing_settings, provenance_part
from posttrain.settings import GrpoSettings, SftSettings
from tests.reports.parts.directories import write_stage
from tests.reports.parts.made_up import course, evaluation, inputs, model, sample, strict_json, texts

EVALUATED = evaluation("grpo", [sample(f"p{i}") for i in range(4)])
WITH = {"python": "3.11", "torch": "2.9", "git_revision": "abc", "command": "posttrain run x.toml"}


def grpo(**settings: Any) -> Course:
    return course([], settings=settings)


def test_equal_settings_are_left_out() -> None:
    assert differing_settings({"a": grpo(learning_rate=1e-5), "b": grpo(learning_rate=1e-5)}) == {}
    found = differing_settings({"a": grpo(kl_coef=0.0), "b": grpo(kl_coef=0.1)})
    assert found == {"kl_coef": {"a": 0.0, "b": 0.1}}


def test_rewards_of_one_model_alone_are_shown_though_they_are_the_default() -> None:
    (default,) = GrpoSettings().rewards
    found = differing_settings({"a": grpo(rewards={"step_words": 0.5}), "b": grpo()})
    assert found == {"rewards.step_words": {"a": 0.5}, f"rewards.{default}": {"b": 1.0}}


def test_of_settings_that_one_kind_of_stage_has_only_those_off_their_default_are_shown() -> None:
    found = differing_settings({"sft": course([], stage="sft"), "grpo": grpo(num_generations=4, gold_reward=None)})
    assert found["num_generations"] == {"grpo": 4}
    assert "gold_reward" not in found
    assert "num_train_epochs" not in found
    assert found["learning_rate"] == {"sft": SftSettings().learning_rate, "grpo": GrpoSettings().learning_rate}


def test_models_are_traced_to_their_start_and_commands_are_given_once(tmp_path: Path) -> None:
    write_stage(tmp_path / "sft", "sft", {"seed": 0, "model": {"name_or_path": "nano"}}, environment=WITH)
    settings = {"seed": 3, "model": {"name_or_path": "gone/sft/artifact"}}
    trained = write_stage(tmp_path / "grpo", "grpo", settings, environment=WITH)
    part = provenance_part(inputs(model("grpo", EVALUATED, courses=[trained])))
    training, evaluations, environment = part.tables
    assert [cell.text for cell in training.rows[0]] == ["grpo", "nano", "sft, grpo", "3", "abc"]
    assert [row[0].text for row in evaluations.rows][:2] == ["grader version", "samples of each problem"]
    assert environment.headers == ("", "every stage")
    assert [row[0].text for row in environment.rows] == ["python", "torch"]
    assert [example.texts for example in part.examples] == [(("sft, grpo", "posttrain run x.toml"),)]
    assert strict_json(part)["commands"] == ["posttrain run x.toml"]
    assert texts(part) == []


def test_artifacts_in_settings_go_by_their_stage() -> None:
    models = [
        model(name, EVALUATED, courses=[grpo(reward_model=f"/far/away/{name}/artifact")]) for name in ("rm-1", "rm-2")
    ]
    table = provenance_part(inputs(*models)).tables[1]
    assert [[cell.text for cell in row] for row in table.rows] == [["reward_model", "stage rm-1", "stage rm-2"]]


def test_changed_and_mixed_sources_are_told(tmp_path: Path) -> None:
    stages = [
        write_stage(tmp_path / name, "grpo", {}, environment=WITH | {"git_revision": revision, "torch": name})
        for name, revision in (("a", "abc"), ("b", "def-dirty"))
    ]
    part = provenance_part(inputs(*(model(stage.path.name, EVALUATED, courses=[stage]) for stage in stages)))
    dirty, mixed = texts(part)
    assert dirty.startswith("b: computed from a source that was changed after its last commit")
    assert "not all stages" in mixed.lower()
    assert part.tables[-1].headers == ("", "a", "b")


def test_what_differs_between_evaluations_of_a_task_names_the_models() -> None:
    other = replace(EVALUATED, summary={**EVALUATED.summary, "grader_version": "3"})
    part = provenance_part(inputs(model("sft", EVALUATED), model("grpo", other)))
    assert part.tables[0].rows[0][1].text == "sft: 2; grpo: 3"
    assert part.examples == ()
