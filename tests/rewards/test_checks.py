"""What is wrong with a stage's rewards is said before anything starts, by key."""

import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.rewards.checks import judge_calls, reward_problems
from posttrain.settings import GrpoSettings, JudgeOptions, PpoSettings, RewardOptions, RewardSettings

JUDGED: dict[str, Any] = {"rewards": {"judge": 1.0}}


def found(settings: GrpoSettings | PpoSettings) -> list[tuple[str, str]]:
    return [(key, str(error)) for key, error in reward_problems(settings)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rewards": {"hybrid": 1.0, "step_words": 0.0}},
        {
            "rewards": {"math_answer": 1.0, "format_boxed": 0.1},
            "reward_combination": "gated",
            "reward_gate": "math_answer",
        },
        {"reward_combination": "normalized_sum"},
        {
            "rewards": {"length_band": 1.0},
            "reward_options": RewardOptions.model_validate({"length_band": {"min_length": 9}}),
        },
        {**JUDGED, "reward_options": RewardOptions(judge=JudgeOptions(model="m", max_calls=6402))},
    ],
)
def test_nothing_is_wrong_with(options: dict[str, Any]) -> None:
    assert found(GrpoSettings(**options)) == []


@pytest.mark.parametrize(
    ("options", "key", "why"),
    [
        ({"rewards": {"hybird": 1.0}}, "rewards", "unknown reward hybird. Did you mean hybrid?"),
        ({"rewards": {"hybrid": 0.0}}, "rewards", "grpo needs at least one reward with a weight"),
        ({"reward_combination": "gated"}, "reward_combination", "gated rewards need the reward that must be earned"),
        ({"reward_combination": "gated", "reward_gate": "x"}, "reward_gate", "reward_gate x is none of the rewards"),
        ({"reward_gate": "r1_zero"}, "reward_gate", "with reward_combination gated alone"),
        (
            {"reward_options": {"contains": {"phrases": ["x"]}}},
            "reward_options.contains",
            "reward_options.contains is set, and the reward contains is not among r1_zero",
        ),
        ({"rewards": {"avoids": 1.0}}, "reward_options.avoids.phrases", "the reward avoids needs phrases"),
        ({"rewards": {"format_regex": 1.0}}, "reward_options.format_regex.pattern", "format_regex needs a pattern"),
        (
            {"rewards": {"format_regex": 1.0}, "reward_options": {"format_regex": {"pattern": "("}}},
            "reward_options.format_regex.pattern",
            "is no regular expression: missing )",
        ),
        (
            {"rewards": {"language_consistency": 1.0}, "reward_options": {"language_consistency": {"language": "xx"}}},
            "reward_options.language_consistency.language",
            "no script is known of xx",
        ),
        (
            {"rewards": {"length_band": 1.0}, "reward_options": {"length_band": {"min_length": 9, "max_length": 2}}},
            "reward_options.length_band.min_length",
            "is above max_length",
        ),
        (JUDGED, "reward_options.judge.model", "needs the name of a model"),
        (
            {**JUDGED, "reward_options": {"judge": {"model": "m", "base_url": "http://far.example/v1"}}},
            "reward_options.judge.base_url",
            "must begin with https://",
        ),
        (
            {**JUDGED, "reward_options": {"judge": {"model": "m"}}},
            "reward_options.judge.max_calls",
            "the judge will be called up to 6402 times, and max_calls = 1000",
        ),
        ({"rewards": {"reward_model": 1.0}}, "rewards.reward_model", "reward_model names none"),
        ({"reward_model": "runs/rm"}, "reward_model", "its reward has no weight among r1_zero"),
    ],
)
def test_problems(options: dict[str, Any], key: str, why: str) -> None:
    problems = found(GrpoSettings.model_validate(options))
    assert any(place == key and why in text for place, text in problems), problems


@pytest.mark.parametrize(
    "options",
    [
        {"reward_combination": "normalized_sum"},
        {"rewards": {"length_control": 1.0}},
        {"rewards": {"judge": 1.0}, "reward_options": {"judge": {"model": "m", "mode": "pairwise"}}},
    ],
)
def test_what_compares_needs_a_group(options: dict[str, Any]) -> None:
    alone = found(PpoSettings.model_validate({**options, "num_generations": 1}))
    assert any("compares the completions of a prompt, and num_generations = 1" in text for _, text in alone)
    assert not any(
        "compares" in text for _, text in found(PpoSettings.model_validate({**options, "num_generations": 4}))
    )


def test_calls_of_the_judge() -> None:
    pointwise, pairwise = (
        RewardSettings.model_validate({**JUDGED, "reward_options": {"judge": {"model": "m", "mode": mode}}})
        for mode in ("pointwise", "pairwise")
    )
    assert judge_calls(pointwise, prompts=30, group=4) == 122
    assert judge_calls(pairwise, prompts=30, group=4) == 242
    assert judge_calls(pairwise, prompts=30, group=2) == 62


@pytest.mark.parametrize(
    ("text", "rewards", "key", "why"),
    [
        (
            "def mine(completions): ...",
            {"r1_zero": 1.0},
            "reward_file",
            "none of the functions of .* has a weight: mine",
        ),
        ("def mine(completions): ...", {"min": 1.0}, "rewards", r"unknown reward min. Did you mean mine\?"),
        ("def hybrid(completions): ...", {"hybrid": 1.0}, "rewards.hybrid", "is the name of a built-in reward too"),
        ("def _mine(completions): ...", {"mine": 1.0}, "reward_file", "defines no function whose name begins without"),
        ("def mine(:", {"mine": 1.0}, "reward_file", r"mine.py:1 is not Python"),
        (None, {"mine": 1.0}, "reward_file", "cannot read .*: No such file"),
    ],
)
def test_the_users_file_is_read_and_not_run(
    text: str | None, rewards: dict[str, float], key: str, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(f"{text}\nraise SystemExit('it was run')")
    problems = found(GrpoSettings(reward_file=str(path), rewards=rewards))
    assert any(place == key and re.search(why, error) for place, error in problems), problems


def test_functions_of_the_file_are_known_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import os\nasync def mine(completions): ...\ndef other(completions): ...\nclass Not: ...")
    assert found(GrpoSettings(reward_file=str(path), rewards={"mine": 1.0, "other": 0.0, "r1_zero": 1.0})) == []
