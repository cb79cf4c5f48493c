"""Each health check on made-up runs: when it speaks, what it says, when it is silent; and that a resumed run agrees."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posttrain.errors import ConfigError
from posttrain.runs.findings import Finding, RolloutPlace, warning
from posttrain.runs.logs import read_rows
from posttrain.settings import DataSettings, GrpoSettings, PpoSettings, SamplingSettings
from posttrain.stages.checks import check_settings
from posttrain.stages.grpo import grpo
from posttrain.stages.health import CHECKS, look
from tests.stages.conftest import RunStage, metrics, model_settings, run_whole_and_killed

WATCHED = {"reward_model": 1.0, "r1_zero": 0.0}
HEALTHY_ROW = {
    "reward": 0.5,
    "reward_std": 0.5,
    "frac_reward_zero_std": 0.4,
    "groups/mixed": 2,
    "groups/failed": 1,
    "groups/solved": 1,
    "completions/mean_length": 40.0,
    "completions/clipped_ratio": 0.0,
    "completions/mean_terminated_length": 40.0,
    "completions/answered_ratio": 0.98,
    "entropy": 0.3,
    "kl": 0.02,
    "rewards/r1_zero/mean": 0.5,
    "rewards/r1_zero/std": 0.5,
    "rewards/reward_model/mean": 0.5,
    "rewards/reward_model/std": 0.5,
}


def settings_of(**options: Any) -> GrpoSettings:
    return GrpoSettings(
        **{"rewards": {"r1_zero": 1.0}, "sampling": SamplingSettings(max_completion_length=80)} | options
    )


def rows_of(steps: int, **courses: Any) -> list[dict[str, Any]]:
    """Return the rows of a run: healthy, but for metrics that are given as numbers or as one number for each step."""
    named = {name.replace("__", "/"): value for name, value in courses.items()}
    return [
        {
            "step": step,
            **HEALTHY_ROW,
            **{name: value[step - 1] if np.ndim(value) else value for name, value in named.items()},
        }
        for step in range(1, steps + 1)
    ]


def rollout(prompt: int, sample: int, **more: Any) -> dict[str, Any]:
    row = {"prompt_id": f"p{prompt}", "sample": sample, "completion": f"{prompt}-{sample}", "reward": float(sample % 2)}
    right = row["reward"]
    return row | {"rewards/r1_zero": right, "length": 40, "stop_reason": "eos", "answered": True, **more}


def rollouts_of(**more: Any) -> list[dict[str, Any]]:
    """Return four groups of four rollouts with mixed rewards."""
    return [rollout(prompt, sample, **more) for prompt in range(4) for sample in range(4)]


def found(
    rows: Sequence[dict[str, Any]], rollouts: Sequence[dict[str, Any]] | None = None, **options: Any
) -> dict[str, Finding]:
    findings = look(settings_of(**options), rows, rollouts_of() if rollouts is None else rollouts)
    return {finding.check: finding for finding in findings}


def only(findings: dict[str, Finding], check: str) -> Finding:
    assert list(findings) == [check]
    return findings[check]


def noise(steps: int, size: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, steps)


def test_a_healthy_run_has_no_finding_at_any_step() -> None:
    gain = np.linspace(0.3, 0.8, 60) + noise(60, 0.05)
    courses = {
        "reward": 4 * gain + noise(60, 0.2, 1),
        "rewards__r1_zero__mean": gain,
        "entropy": np.linspace(0.3, 0.06, 60),
        "completions__mean_length": np.linspace(30, 60, 60),
        "kl": np.linspace(0, 0.08, 60),
        "frac_reward_zero_std": np.linspace(0.1, 0.6, 60),
    }
    rows = rows_of(60, **courses)
    assert [found(rows[:step], rewards=WATCHED) for step in range(1, 61)] == [{}] * 60


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_first_steps_are_no_course(steps: int) -> None:
    rows = rows_of(steps, frac_reward_zero_std=1.0, completions__clipped_ratio=1.0, kl=9.0)
    assert found(rows) == {}


def test_no_signal_without_answers() -> None:
    rollouts = [
        rollout(p, s, reward=0.0, answered=s == 0, **{"rewards/r1_zero": 0.0}) for p in range(4) for s in range(4)
    ]
    rows = rows_of(6, frac_reward_zero_std=1.0, groups__failed=4, groups__solved=0, groups__mixed=0)
    finding = only(found(rows, rollouts), "no-signal")
    assert finding.text == (
        "equal rewards in 100% of the groups of the last 5 steps, so that nothing tells better from worse; of this "
        "step's 4 groups 4 failed and 0 are solved, and 12 completions in them have no answer in the form asked for"
    )
    assert finding.advice == "posttrain sft first, to teach the form"
    assert finding.show == "--where no_answer"
    assert finding.rollouts[0] == RolloutPlace("p0", 1)
    assert len(finding.rollouts) == 5


def test_no_signal_of_wrong_and_of_solved_groups() -> None:
    flat = [rollout(p, s, reward=0.0) for p in range(4) for s in range(4)]
    wrong = rows_of(6, frac_reward_zero_std=0.95, groups__failed=3, groups__solved=1)
    assert only(found(wrong, flat), "no-signal").advice == "easier prompts, or --num_generations 16"
    solved = rows_of(6, frac_reward_zero_std=0.95, groups__failed=0, groups__solved=4)
    assert only(found(solved, flat), "no-signal").advice == "harder prompts; or end here, these are learned"


def test_no_signal_ends_below_where_it_began() -> None:
    rows = rows_of(8, frac_reward_zero_std=0.8)
    assert found(rows) == {}
    rows[-2]["health"] = ["no-signal"]
    assert list(found(rows)) == ["no-signal"]
    lower = rows_of(8, frac_reward_zero_std=0.7)
    lower[-2]["health"] = ["no-signal"]
    assert found(lower) == {}


def test_no_signal_of_ppo_is_of_the_whole_step() -> None:
    rows = [
        {name: value for name, value in row.items() if "zero_std" not in name} for row in rows_of(6, reward_std=0.0)
    ]
    finding = look(PpoSettings(), rows, rollouts_of())[0]
    assert finding.check == "no-signal"
    assert "in 100% of the batches of the last 5 steps" in finding.text
    assert look(PpoSettings(), [{**row, "reward_std": 0.1} for row in rows], rollouts_of()) == []


def test_truncation() -> None:
    rollouts = [rollout(p, s, stop_reason="length" if s else "eos", answered=s < 2) for p in range(4) for s in range(4)]
    rows = rows_of(5, completions__clipped_ratio=0.71, completions__mean_terminated_length=61.4)
    finding = only(found(rows, rollouts), "truncation")
    assert finding.text == (
        "71% of the completions of the last 5 steps were cut off at 80 tokens, 8 of this step's 12 before they gave an "
        "answer; those that ended have 61 on average"
    )
    assert finding.advice.startswith("--sampling.max_completion_length 160")
    assert finding.rollouts[:2] == (RolloutPlace("p0", 2), RolloutPlace("p0", 3))
    assert found(rows_of(5, completions__clipped_ratio=0.2)) == {}


def test_entropy_collapse_unless_the_prompts_are_solved() -> None:
    alike = [rollout(p, s, completion="7") for p in range(4) for s in range(4)]
    entropy = np.concatenate([np.full(20, 0.3), np.full(10, 0.01)])
    finding = only(found(rows_of(30, entropy=entropy), alike), "entropy-collapse")
    assert finding.text == (
        "entropy fell from 0.3 to 0.01 nats a token since the first 10 steps; 16 of this step's 16 completions repeat "
        "another of their prompt"
    )
    assert finding.advice == "--learning_rate 5e-06, or --epsilon_high 0.28"
    assert found(rows_of(30, entropy=entropy, rewards__r1_zero__mean=0.95), alike) == {}
    assert found(rows_of(30, entropy=entropy)) == {}  # low, and the samples still differ
    assert found(rows_of(30, entropy=0.01), alike) == {}  # as low as ever


@pytest.mark.parametrize("name", ["kl", "kl/token"])
def test_kl_blow_up(name: str) -> None:
    course = np.concatenate([np.full(15, 0.02), np.full(5, 1.3)])
    rows = [{**row, name: value} for row, value in zip(rows_of(20), course, strict=True)]
    finding = only(found(rows, kl_coef=0.1), "kl-blow-up")
    assert finding.text == (
        "1.30 nats a token between policy and reference, the mean of the last 5 steps; 0.02 in the first 10"
    )
    assert finding.advice == "--kl_coef 0.2, or --learning_rate 5e-06"
    assert found(rows[:15]) == {}


def test_length_creep_only_where_nothing_graded_grows_with_it() -> None:
    length = np.linspace(30, 90, 40)
    rollouts = [rollout(p, s, length=30 + s, reward=float(s)) for p in range(4) for s in range(4)]
    rows = rows_of(40, completions__mean_length=length, rewards__r1_zero__mean=0.45 + noise(40, 0.03))
    finding = only(found(rows, rollouts), "length-creep")
    assert finding.text.startswith("completions grew from 37 to 83 tokens, r1_zero went from 0.4")
    assert finding.text.endswith("the longer one has the higher reward in 100% of this step's pairs")
    assert finding.advice.endswith("--sampling.max_completion_length 55")
    assert finding.rollouts[0] == RolloutPlace("p0", 3)
    learned = rows_of(40, completions__mean_length=length, rewards__r1_zero__mean=np.linspace(0.4, 0.7, 40))
    assert found(learned, rollouts) == {}
    without_gold = only(found(rows, rollouts, rewards={"reward_model": 1.0}), "length-creep")
    assert "r1_zero" not in without_gold.text


def parted(steps: int = 60) -> list[dict[str, Any]]:
    time = np.arange(steps)
    gold = 0.3 + 0.2 * np.clip(time / 20, 0, 1) - 0.45 * np.clip((time - 20) / 20, 0, 1) + noise(steps, 0.04)
    return rows_of(steps, reward=0.03 * time + noise(steps, 0.1, 1), rewards__r1_zero__mean=gold)


def test_proxy_gold_split_names_its_step_and_shows_what_is_paid_for() -> None:
    rows = parted()
    rollouts = [
        rollout(p, s, reward=float(s), **{"rewards/r1_zero": float(s == 0)}) for p in range(4) for s in range(4)
    ]
    told = [step for step in range(1, 61) if "proxy-gold-split" in found(rows[:step], rollouts, rewards=WATCHED)]
    assert 24 <= told[0] <= 40
    finding = found(rows[: told[0]], rollouts, rewards=WATCHED)["proxy-gold-split"]
    at = int(finding.text.split("after step ")[1].split(":")[0])
    assert 15 <= at <= 26
    assert finding.text.startswith(f"reward and r1_zero parted after step {at}: reward went from ")
    assert finding.text.endswith("; the 4 best paid of this step's 16 completions have r1_zero 0")
    assert finding.advice.startswith(f"end near step {at}, or --kl_coef 0.1")
    assert {place.sample for place in finding.rollouts} == {3}
    text = warning(finding, told[0], Path("runs/x/grpo")).split("\n")
    assert text[0].startswith(f"warning[proxy-gold-split] step {told[0]}: reward and r1_zero parted")
    assert text[1] == f"  look: posttrain rollouts runs/x/grpo --step {told[0]} --best 5"


def test_without_a_reward_that_says_the_truth_there_is_no_split() -> None:
    rows = parted()
    assert found(rows, rewards={"reward_model": 1.0}) == {}
    assert found(rows, rewards={"reward_model": 1.0, "r1_zero": 1.0}) == {}
    named = found(rows, rewards={"reward_model": 1.0, "r1_zero": 1.0}, gold_reward="r1_zero")
    assert list(named) == ["proxy-gold-split"]


def test_parts_that_are_normalised_in_their_group_rise_by_themselves() -> None:
    rows = [{**row, "rewards/reward_model/mean": row["reward"], "reward": 0.0} for row in parted()]
    assert "proxy-gold-split" not in found(rows, rewards=WATCHED)
    assert "proxy-gold-split" in found(rows, rewards=WATCHED, reward_combination="normalized_sum")
    spreads = [{**row, "rewards/reward_model/std": 9.0} for row in rows_of(12)]
    weights = {"reward_model": 1.0, "format_think_answer": 1.0}
    spreads = [{**row, "rewards/format_think_answer/std": 0.4} for row in spreads]
    assert list(found(spreads, rewards=weights)) == ["dominant-part"]
    assert found(spreads, rewards=weights, reward_combination="normalized_sum") == {}


def test_a_step_whose_truth_is_unknown_is_passed_over() -> None:
    rows = parted()
    rows[25]["rewards/r1_zero/mean"] = float("nan")
    assert "proxy-gold-split" in found(rows, rewards=WATCHED)


def test_format_only() -> None:
    answered = np.concatenate([np.linspace(0.2, 0.95, 20), np.full(30, 0.97)]) + noise(50, 0.01)
    right = np.clip(0.02 + noise(50, 0.01), 0, 1)
    rows = rows_of(
        50, completions__answered_ratio=answered, rewards__r1_zero__mean=right, rewards__r1_zero__std=0.14, reward=right
    )
    rollouts = [rollout(p, s, **{"rewards/r1_zero": 0.0}) for p in range(4) for s in range(4)]
    finding = only(found(rows, rollouts), "format-only")
    assert finding.text.startswith("completions with an answer in the form asked for went from ")
    assert ", r1_zero from 0.0" in finding.text
    assert finding.show == "--where wrong"
    learned = rows_of(50, completions__answered_ratio=answered, rewards__r1_zero__mean=0.5 * answered + noise(50, 0.02))
    assert found(learned, rollouts) == {}


def test_a_dominant_part_drowns_one_that_still_differs() -> None:
    weights = {"reward_model": 1.0, "format_think_answer": 0.5, "r1_zero": 0.0}
    courses = {"rewards__reward_model__std": 3.0, "rewards__format_think_answer__std": 0.4}
    finding = only(found(rows_of(12, **courses), rewards=weights), "dominant-part")
    assert finding.text == (
        "reward_model makes 100% of the variance of the reward, the mean of 10 steps; format_think_answer differs too "
        "(its own deviation 0.4) and hardly counts at the weight 0.5"
    )
    assert finding.advice == "--rewards.format_think_answer 7.5, where both weigh the same"
    settled = courses | {"rewards__format_think_answer__std": np.linspace(0.5, 0.0, 40)}
    assert found(rows_of(40, **settled), rewards=weights) == {}  # the form is learned: the rest is all that differs
    graded = {"r1_zero": 1.0, "format_think_answer": 0.5}
    courses = {"rewards__r1_zero__std": 3.0, "rewards__format_think_answer__std": 0.4}
    assert found(rows_of(12, **courses), rewards=graded) == {}  # what is true may well decide


def test_every_check_was_seen_to_speak() -> None:
    source = Path(__file__).read_text()
    assert [name for name in CHECKS if source.count(f'"{name}"') < 1] == []


def test_a_gold_reward_is_one_of_the_rewards() -> None:
    with pytest.raises(ConfigError, match="gold_reward = math_answer is none of the rewards: r1_zero") as caught:
        check_settings(settings_of(gold_reward="math_answer"))
    assert caught.value.fix == "--rewards.math_answer 0.0"


def test_a_resumed_run_says_the_same(model_directory: str, run_stage: RunStage) -> None:
    settings = GrpoSettings(
        model=model_settings(model_directory),
        data=DataSettings(rows=8),
        rewards={"math_answer": 1.0},
        sampling=SamplingSettings(max_completion_length=6),
        prompts_per_step=2,
        num_generations=2,
        max_steps=8,
        save_steps=3,
    )
    run = run_whole_and_killed(run_stage, grpo, settings, kills=(5, 7))
    assert [row["health"] for row in metrics(run)] == [[]] * 4 + [["no-signal", "truncation"]] * 4
    told = [event for event in read_rows(run.path / "events.jsonl") if event["event"] == "health"]
    assert [(event["check"], event["step"]) for event in told] == [("no-signal", 5), ("truncation", 5)]
    assert told[1]["rollouts"][0]["step"] == 5
    assert told[0]["text"].startswith("warning[no-signal] step 5: equal rewards in 100% of the groups")
    notes = [event["text"] for event in read_rows(run.path / "events.jsonl") if event["event"] == "note"]
    assert len(notes) == 1
    assert notes[0].startswith("note: a loss near 0 is normal here")
