"""What each stage cost: time over all attempts, steps, tokens, speed and memory.

Floor 5: reads the logs of the stages that a report's models and evaluations came from.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain.evals.tasks import GIVEN
from posttrain.reports.figures.labels import duration, number
from posttrain.reports.figures.shares import cost_bars
from posttrain.reports.inputs import Course, Inputs
from posttrain.reports.lineage import every_stage
from posttrain.reports.part import Figure, Finding, Part
from posttrain.reports.tables import Cell, Table
from posttrain.runs.logs import read_rows

KEY, TITLE = "cost", "Cost"
NOTE = (
    "Time is by the clock of the machine, over every attempt at a stage, with loading and with steps that were done "
    "again after an interruption; nothing is counted between attempts. Tokens in updates hold each prompt once, and "
    "count once for each update that they were in; tokens a second are over the time of that phase alone. How the "
    "reward is computed counts as time, and not as tokens."
)
ABSENT = "The evaluations came without the runs that made them: give the directories of runs, not of artifacts."
NONE = Cell("-", style="dim")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one stage took; None where it was not recorded. Times are in seconds, memory in bytes."""

    stage: str
    kind: str
    seconds: float
    attempts: int
    steps: int
    redone_steps: int
    completions_a_step: str  # "16 x 8": prompts_per_step x num_generations, or rows_per_step
    generated_tokens: int | None
    generated_tokens_a_second: float | None
    update_tokens: int | None
    update_tokens_a_second: float | None
    peak_memory: int | None  # bytes resident, of the last attempt
    accelerator_memory: int | None  # bytes on a device; None where it had none


def cost_part(inputs: Inputs) -> Part:
    """Return what every stage took that the report's models came from, and their evaluations."""
    stages = every_stage(inputs)
    if not stages:
        return Part(KEY, TITLE, absent=ABSENT)
    runs = {course.path.resolve().parent for course in stages}
    costs = [cost_of(course, _name(course, several=len(runs) > 1)) for course in stages]
    total = sum(cost.seconds for cost in costs)
    bars = [(cost.stage, cost.seconds) for cost in costs]
    told = "; ".join(f"{name} {duration(seconds)}" for name, seconds in bars)
    figure = Figure(
        "cost",
        f"Time by stage: {told}.",
        cost_bars(bars, title="Time by stage", write=duration),
        f"In all {duration(total)}.",
    )
    finding = Finding("note", f"All {len(costs)} stages together took {duration(total)}.")
    data = {"seconds": total, "stages": [asdict(cost) for cost in costs]}
    return Part(KEY, TITLE, (finding,), (figure,), (_table(costs),), note=NOTE, data=data)


def cost_of(course: Course, name: str) -> Cost:
    """Return what a stage took, from its logs and its result."""
    redone = [row for file in sorted(course.path.glob("orphan-*.jsonl")) for row in read_rows(file)]
    attempts = attempt_seconds(course.events, [*course.rows, *redone])
    generated, updated = generated_tokens(course), update_tokens(course)
    return Cost(
        stage=name,
        kind=course.stage,
        seconds=sum(attempts),
        attempts=len(attempts),
        steps=len(course.rows),
        redone_steps=len(redone),
        completions_a_step=_completions_a_step(course.settings),
        generated_tokens=generated,
        generated_tokens_a_second=_rate(generated, _phase(course, "generate")),
        update_tokens=updated,
        update_tokens_a_second=_rate(updated, _phase(course, "update")),
        peak_memory=course.result.get("peak_memory_bytes", {}).get("resident"),
        accelerator_memory=course.result.get("peak_memory_bytes", {}).get("accelerator") or None,
    )


def attempt_seconds(events: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the seconds of each attempt, from its opening to the last that was logged before the next one's."""
    opened = sorted(event["time"] for event in events if event["event"] == "opened")
    moments = [item["time"] for item in (*events, *rows) if "time" in item]
    ends = [*opened[1:], math.inf][: len(opened)]
    return [
        max((moment for moment in moments if start <= moment < end), default=start) - start
        for start, end in zip(opened, ends, strict=True)
    ]


def generated_tokens(course: Course) -> int | None:
    """Return the tokens that a stage sampled, from its steps' mean lengths; of an evaluation from its summary."""
    settings = course.settings
    if "prompts_per_step" in settings:
        a_step = settings["prompts_per_step"] * settings["num_generations"]
        return round(sum(a_step * row["completions/mean_length"] for row in course.rows))
    summary = course.result.get("summary", {})
    if "mean_length" in summary and summary.get("kind") not in GIVEN:  # those are read, not sampled
        return round(summary["mean_length"] * summary["problems"] * summary["num_samples"])
    return None


def update_tokens(course: Course) -> int | None:
    """Return the tokens that the policy's updates read, prompts once; a step's updates are alike but for PPO's."""
    found = [
        row["update/tokens"] * row.get("updates", course.settings.get("num_iterations", 1))
        for row in course.rows
        if "update/tokens" in row
    ]
    return round(sum(found)) if found else None


def _name(course: Course, *, several: bool) -> str:
    path: Path = course.path.resolve()
    return f"{path.parent.name}/{path.name}" if several else path.name


def _completions_a_step(settings: Mapping[str, Any]) -> str:
    if "prompts_per_step" in settings:
        return f"{settings['prompts_per_step']} x {settings['num_generations']}"
    return str(settings.get("rows_per_step", settings.get("documents_per_step", "")))


def _phase(course: Course, name: str) -> float:
    return sum(row.get(f"time/{name}", 0.0) for row in course.rows)


def _rate(tokens: int | None, seconds: float) -> float | None:
    return tokens / seconds if tokens is not None and seconds > 0 else None


def _table(costs: Sequence[Cost]) -> Table:
    redone = any(cost.redone_steps or cost.attempts > 1 for cost in costs)
    headers = (
        *("stage", "type", "time", *(("attempts", "steps done again") if redone else ()), "steps", "a step"),
        *("tokens sampled", "tokens in updates", "peak memory"),
    )
    return Table(
        "Cost by stage",
        headers,
        tuple(_row(cost, redone=redone) for cost in costs),
        "a step: prompts_per_step x num_generations, or rows_per_step",
    )


def _row(cost: Cost, *, redone: bool) -> tuple[Cell, ...]:
    repeated = (Cell(str(cost.attempts)), Cell(str(cost.redone_steps))) if redone else ()
    return (
        Cell(cost.stage),
        Cell(cost.kind),
        Cell(duration(cost.seconds)),
        *repeated,
        Cell(str(cost.steps)),
        Cell(cost.completions_a_step) if cost.completions_a_step else NONE,
        _tokens(cost.generated_tokens, cost.generated_tokens_a_second),
        _tokens(cost.update_tokens, cost.update_tokens_a_second),
        _memory(cost),
    )


def _memory(cost: Cost) -> Cell:
    if cost.peak_memory is None:
        return NONE
    device = f"{cost.accelerator_memory / 1e9:.2f} GB on the device" if cost.accelerator_memory else ""
    return Cell(f"{cost.peak_memory / 1e9:.2f} GB", device)


def _tokens(count: int | None, a_second: float | None) -> Cell:
    if count is None:
        return NONE
    return Cell(number(count), "" if a_second is None else f"{number(a_second)} a second")
