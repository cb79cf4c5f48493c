"""Tasks by name, and the one format that strict grading accepts."""

import pytest

from posttrain.data.choices import CHOICE_STYLES
from posttrain.data.named import SOURCES
from posttrain.data.prompts import PROMPT_STYLES
from posttrain.errors import ConfigError
from posttrain.evals.checks import check_settings
from posttrain.evals.tasks import (
    STRICT_PROFILES,
    TASKS,
    evaluated_task,
    find_task,
    strict_profile,
    task_data,
)
from posttrain.settings import DataSettings, EvalSettings, SamplingSettings


def test_every_task_reads_a_source_and_every_style_has_a_strict_format() -> None:
    assert {task.source for task in TASKS.values()} - {""} <= set(SOURCES)
    assert set(STRICT_PROFILES) == set(PROMPT_STYLES)


def test_the_task_names_the_source_unless_the_user_does() -> None:
    gsm8k = find_task("gsm8k")
    assert task_data(gsm8k, DataSettings(split="test")).source == "gsm8k"
    assert task_data(gsm8k, DataSettings(source="mine.jsonl")).source == "mine.jsonl"


def test_the_prompt_style_decides_the_strict_format() -> None:
    assert strict_profile(DataSettings(source="gsm8k")) == "r1_zero"
    assert strict_profile(DataSettings(source="gsm8k", prompt_style="boxed")) == "boxed"
    assert strict_profile(DataSettings(source="mine.jsonl")) == "boxed"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("nano", "nano"),
        ("gsm8k", "gsm8k"),
        ("numina_math_cot", "numina_math_cot"),
        ("data/mine.jsonl", "mine"),
        ("data/math.jsonl", "data/math.jsonl"),
    ],
)
def test_own_data_is_never_labelled_as_a_task(source: str, name: str) -> None:
    assert evaluated_task(find_task("nano"), DataSettings(source=source)).name == name


def test_several_greedy_samples_are_refused() -> None:
    check_settings(EvalSettings(num_samples=1))
    check_settings(EvalSettings(num_samples=4, sampling=SamplingSettings(temperature=1.0)))
    with pytest.raises(ConfigError, match=r"4 samples .*(?s:.)*--sampling\.temperature 1\.0"):
        check_settings(EvalSettings(num_samples=4))


def test_an_unknown_task_names_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"unknown task gms8k\. Did you mean gsm8k\?"):
        find_task("gms8k")


@pytest.mark.parametrize(("name", "near"), [("arc-easy", "arc_easy"), ("mlmu", "mmlu"), ("choice", "choices")])
def test_tasks_of_choices_are_found_by_nearly_their_names(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown task {name}\. Did you mean {near}\?") as caught:
        find_task(name)
    assert caught.value.fix == f"--task {near}"


def test_tasks_of_choices_have_a_metric_and_a_style_of_their_own() -> None:
    for task in TASKS.values():
        if task.kind == "choices":
            assert task.score in ("acc", "acc_norm")
            assert not task.source or SOURCES[task.source].prompt_style in CHOICE_STYLES
