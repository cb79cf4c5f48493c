"""The course of training: what parts is named, what is healthy is not, and every number is in the data."""

import numpy as np
import pytest

from posttrain.reports.inputs import Course
from posttrain.reports.parts.course import course_part, panels
from posttrain.reports.style import png
from tests.reports.parts.made_up import course, evaluation, inputs, model, policy_rows, sample, strict_json, texts

WATCHED = {"rewards": {"reward_model": 1.0, "r1_zero": 0.0}}
TIME = np.arange(60)
RISE = 3 * TIME / 60
FALL = 0.6 - 0.5 * np.clip((TIME - 20) / 20, 0, 1)
EVALUATED = evaluation("sft", [sample(f"p{i}") for i in range(4)])


def trained(*courses: Course) -> object:
    return inputs(model("sft", EVALUATED), model("grpo", EVALUATED, courses=courses))


def test_a_reward_that_rises_while_gold_falls_is_named_with_its_step() -> None:
    part = course_part(trained(course(policy_rows(RISE, FALL, noise=0.1), settings=WATCHED)))
    (text,) = texts(part)
    split = strict_json(part)["models"]["grpo"]["split"]
    assert part.findings[0].tone == "warning"
    assert text.startswith(
        f"grpo: looking back, reward and r1_zero parted after step {split['at']}: the reward rose from "
    )
    assert "r1_zero fell, from " in text
    assert 12 <= split["at"] <= 34
    for value in (*split["reward"], *split["gold"]):
        assert f"{value:.3g}" in text
    assert f"part after step {split['at']}" in part.figures[0].alt


def test_healthy_courses_are_left_alone_however_many_there_are() -> None:
    saturating = 0.8 - 0.5 * np.exp(-TIME / 15)
    healthy = [
        course(policy_rows(RISE, saturating if seed % 2 else 0.3 + RISE / 6, noise=0.3, seed=seed), settings=WATCHED)
        for seed in range(60)
    ]
    reports = [course_part(trained(*healthy[i : i + 3])) for i in range(0, 60, 3)]
    assert sum(bool(part.findings) for part in reports) <= 1


def test_a_course_that_nothing_grades_says_so_and_how_to_watch_it() -> None:
    part = course_part(trained(course(policy_rows(RISE, FALL), settings={"rewards": {"reward_model": 1.0}})))
    (finding,) = part.findings
    assert finding.tone == "note"
    assert "rewards = { ..., r1_zero = 0.0 }" in finding.text
    graded = course_part(trained(course(policy_rows(RISE, FALL), settings={"rewards": {"r1_zero": 1.0}})))
    assert graded.findings == ()


def test_parts_of_a_reward_are_stacked_by_what_they_add() -> None:
    rows = [
        {"step": s, "reward": 1.5, "rewards/r1_zero/mean": 0.5, "rewards/step_words/mean": 2.0, "kl": 0.01}
        for s in (1, 2)
    ]
    weights = {"rewards": {"r1_zero": 1.0, "step_words": 0.5}}
    reward, *others = panels(course(rows, settings=weights))
    assert reward.stacked
    assert [(line.label, line.values) for line in reward.lines] == [("r1_zero", (0.5, 0.5)), ("step_words", (1.0, 1.0))]
    assert [panel.title for panel in others] == ["KL to the reference, nats a token"]
    combined = panels(course(rows, settings=weights | {"reward_combination": "gated"}))[0]
    assert not combined.stacked


def test_supervised_stages_show_their_loss_and_margins() -> None:
    rows = [{"step": s, "loss": 1 / s, "rewards/margins": s / 2, "entropy": 0.3} for s in (1, 2, 3)]
    part = course_part(trained(course(rows, stage="sft")))
    assert part.findings == ()
    assert list(strict_json(part)["models"]["grpo"]["panels"]) == [
        "Loss",
        "Margin of chosen over rejected, in implicit rewards",
        "Entropy, nats a token",
    ]
    assert "loss from 1 to 0.333" in part.figures[0].alt
    assert png(part.figures[0].draw).startswith(b"\x89PNG")


def test_steps_without_a_value_are_gaps_and_the_data_stays_strict() -> None:
    rows = policy_rows(RISE, FALL)
    rows[3]["reward"] = rows[4]["rewards/r1_zero/mean"] = float("nan")
    found = strict_json(course_part(trained(course(rows, settings=WATCHED))))["models"]["grpo"]["panels"]
    assert found["Reward"]["reward"][3] is None
    assert found["Gold score"]["r1_zero"][4] is None


def test_seeds_are_told_apart_and_share_one_bound() -> None:
    courses = [course(policy_rows(RISE, FALL, seed=seed), settings=WATCHED | {"seed": seed}) for seed in (0, 1)]
    part = course_part(trained(*courses))
    assert [text.split(":")[0] for text in texts(part)] == ["grpo, seed 0", "grpo, seed 1"]
    assert len(part.figures) == 2


def test_what_the_health_checks_said_is_listed_by_steps() -> None:
    rows = policy_rows(RISE, 0.3 + RISE / 6)
    for step, row in enumerate(rows, 1):
        row["health"] = ["truncation"] if step in (5, 6, 7, 20) else []
    (table,) = course_part(trained(course(rows, settings=WATCHED))).tables
    assert [[cell.text for cell in row] for row in table.rows] == [["grpo", "truncation", "5 to 7, 20"]]


@pytest.mark.parametrize("courses", [(), (course([]),)])
def test_without_a_course_the_part_says_what_to_give(courses: tuple[Course, ...]) -> None:
    part = course_part(trained(*courses))
    assert "posttrain compare runs/NAME" in part.absent
    assert not part.figures
