"""Cost: every attempt counts, nothing between them; tokens and speeds follow from the logs."""

from dataclasses import replace
from pathlib import Path

import pytest

from posttrain.reports.parts.cost import attempt_seconds, cost_of, cost_part
from posttrain.reports.style import png
from tests.reports.parts.directories import write_stage
from tests.reports.parts.made_up import evaluation, inputs, model, sample, strict_json, texts

EVALUATED = evaluation("grpo", [sample(f"p{i}") for i in range(4)])
POLICY = {"prompts_per_step": 4, "num_generations": 2, "num_iterations": 3, "seed": 0}


def opened(*times: float) -> list[dict[str, object]]:
    return [{"event": "opened", "time": time} for time in times]


def policy_row(step: int, time: float) -> dict[str, float]:
    return {
        "step": step,
        "time": time,
        "completions/mean_length": 10.0,
        "update/tokens": 50.0,
        "time/generate": 4.0,
        "time/update": 2.0,
    }


def test_time_is_that_of_every_attempt_and_of_nothing_between() -> None:
    rows = [{"time": 15.0}, {"time": 1020.0}]
    events = [*opened(10.0, 1000.0), {"event": "saved", "time": 12.0}, {"event": "finished", "time": 1030.0}]
    assert attempt_seconds(events, rows) == [5.0, 30.0]
    assert attempt_seconds(opened(10.0), []) == [0.0]
    assert attempt_seconds([], rows) == []


def test_steps_done_again_are_counted_and_their_time_too(tmp_path: Path) -> None:
    course = write_stage(tmp_path / "grpo", "grpo", POLICY, rows=[policy_row(1, 120.0)], events=opened(0.0, 100.0))
    (tmp_path / "grpo" / "orphan-2.jsonl").write_text('{"step": 1, "time": 30.0}\n{"step": 2, "time": 40.0}\n')
    cost = cost_of(course, "grpo")
    assert (cost.seconds, cost.attempts, cost.steps, cost.redone_steps) == (60.0, 2, 1, 2)


def test_tokens_and_speeds_follow_from_the_steps(tmp_path: Path) -> None:
    rows = [policy_row(1, 10.0), policy_row(2, 20.0)]
    course = write_stage(
        tmp_path / "grpo",
        "grpo",
        POLICY,
        rows=rows,
        events=opened(0.0),
        result={"peak_memory_bytes": {"resident": 3 * 2**30, "accelerator": 0}},
    )
    cost = cost_of(course, "grpo")
    assert cost.completions_a_step == "4 x 2"
    assert (cost.generated_tokens, cost.generated_tokens_a_second) == (160, 20.0)
    assert (cost.update_tokens, cost.update_tokens_a_second) == (300, 75.0)
    assert cost.peak_memory == 3 * 2**30
    of_ppo = replace(course, rows=[{**row, "updates": 2} for row in rows])
    assert cost_of(of_ppo, "ppo").update_tokens == 200


def test_every_stage_that_a_model_came_from_is_there_once_and_in_order(tmp_path: Path) -> None:
    write_stage(tmp_path / "sft", "sft", {"rows_per_step": 16}, events=[*opened(0.0), {"event": "x", "time": 30.0}])
    settings = POLICY | {"model": {"name_or_path": "gone/sft/artifact"}}
    course = write_stage(tmp_path / "grpo", "grpo", settings, rows=[policy_row(1, 100.0)], events=opened(40.0))
    evaluated = write_stage(
        tmp_path / "grpo_eval",
        "eval",
        {"model": {"name_or_path": str(tmp_path / "grpo/artifact")}},
        rows=[{"step": 1, "time/generate": 2.0, "time": 210.0}],
        events=opened(200.0),
        result={"summary": {"mean_length": 20.0, "problems": 4, "num_samples": 2}},
    )
    part = cost_part(inputs(model("grpo", replace(EVALUATED, path=evaluated.path), courses=[course])))
    stages = strict_json(part)["stages"]
    assert [stage["stage"] for stage in stages] == ["sft", "grpo", "grpo_eval"]
    assert [stage["seconds"] for stage in stages] == [30.0, 60.0, 10.0]
    assert stages[2]["generated_tokens"] == 160
    assert texts(part) == ["All 3 stages together took 2 min."]
    assert "attempts" not in part.tables[0].headers
    assert [cell.text for cell in part.tables[0].rows[0]] == ["sft", "sft", "30 s", "0", "16", "-", "-", "-"]
    assert png(part.figures[0].draw)


@pytest.mark.parametrize("path", [None, Path("an/artifact")])
def test_evaluations_without_their_runs_say_what_to_give(path: Path | None) -> None:
    assert "directories of runs" in cost_part(inputs(model("grpo", replace(EVALUATED, path=path)))).absent
