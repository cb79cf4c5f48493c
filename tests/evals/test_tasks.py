"""Tasks by name, and the one format that strict grading accepts."""

import pytest

from posttrain.data.named import SOURCES
from posttrain.data.prompts import PROMPT_STYLES
from posttrain.errors import ConfigError
from posttrain.evals.tasks import STRICT_PROFILES, TASKS, find_task, strict_profile, task_data
from posttrain.settings import DataSettings


def test_every_task_reads_a_source_and_every_style_has_a_strict_format() -> None:
    assert {task.source for task in TASKS.values()} <= set(SOURCES)
    assert set(STRICT_PROFILES) == set(PROMPT_STYLES)


def test_the_task_names_the_source_unless_the_user_does() -> None:
    gsm8k = find_task("gsm8k")
    assert task_data(gsm8k, DataSettings(split="test")).source == "gsm8k"
    assert task_data(gsm8k, DataSettings(source="mine.jsonl")).source == "mine.jsonl"


def test_the_prompt_style_decides_the_strict_format() -> None:
    assert strict_profile(DataSettings(source="gsm8k")) == "r1_zero"
    assert strict_profile(DataSettings(source="gsm8k", prompt_style="boxed")) == "boxed"
    assert strict_profile(DataSettings(source="mine.jsonl")) == "boxed"


def test_an_unknown_task_names_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"unknown task gms8k\. Did you mean gsm8k\?"):
        find_task("gms8k")
