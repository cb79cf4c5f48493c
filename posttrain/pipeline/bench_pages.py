"""How a bench looks: the machine in lines, the stages in a table, what the estimate assumes under it.

Floor 6: lays out what `bench.py` found, and computes nothing.
"""

import json
import math
from dataclasses import asdict

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from posttrain.pipeline.bench import Bench, Speed, StageBench
from posttrain.pipeline.machine import Machine
from posttrain.reports.tables import Cell, Table, render_terminal
from posttrain.runs.logs import plain
from posttrain.runs.panel import duration

NONE = Cell("-", style="dim")


def print_bench(found: Bench, console: Console) -> None:
    """Print the machine, the table and the assumptions, fitted to the console's width."""
    console.print()
    for machine in found.machines:
        console.print(Padding(Text(machine_line(machine)), (0, 0, 0, 1)))
    console.print(Padding(render_terminal(stage_table(found), width=console.width - 1), (1, 0, 1, 1)))
    for sentence in sentences(found):
        console.print(Padding(Text(f"● {sentence}", overflow="fold"), (0, 0, 0, 1)))
    console.print()


def as_json(found: Bench) -> str:
    """Return everything as one JSON object; what does not apply is the string "NaN"."""
    return json.dumps(plain(asdict(found) | {"seconds": found.seconds}), ensure_ascii=False)


def machine_line(machine: Machine) -> str:
    """Return the machine's yardsticks in one line."""
    return (
        f"{machine.device}, {machine.dtype}, {machine.threads} threads on {machine.cores} cores: "
        f"matrix peak {machine.tflops:.3g} TFLOP/s, copies {machine.copy_gb_per_second:.3g} GB/s"
    )


def stage_table(found: Bench) -> Table:
    """Return a row for each stage."""
    rows = tuple(_row(stage) for stage in found.stages)
    return Table(
        f"{found.recipe}: about {duration(found.seconds)} on this machine",
        ("stage", "update", "generate", "step", "steps", "memory", "time"),
        rows,
        "tokens per second; update: with prompts; its share of the matrix peak, recomputation included\n"
        "generate: completions side by side x their mean length\n"
        "memory: peak of the process, and its growth",
    )


def sentences(found: Bench) -> list[str]:
    """Return what the estimate assumes and what was measured otherwise than it will run."""
    told = ["the estimate leaves out checkpoints and the writing of models"]
    if any(stage.generate for stage in found.stages):
        told.append("it assumes completions of the mean length measured here; training changes it")
    told += [f"{stage.name}: {note}" for stage in found.stages for note in stage.notes]
    return [*told, *found.skipped]


def _row(stage: StageBench) -> tuple[Cell, ...]:
    share = f"{100 * stage.utilisation:.0f}% of peak" if math.isfinite(stage.utilisation) else ""
    memory = stage.accelerator_gib or stage.peak_gib
    growth = "" if stage.accelerator_gib else f"+{stage.growth_gib:.1f}"
    return (
        Cell(stage.name),
        _speed(stage.update, share),
        _speed(stage.generate, f"{stage.num_sequences} x {stage.mean_length:.0f}"),
        Cell(duration(stage.step_seconds)),
        Cell(str(stage.num_steps)),
        Cell(f"{memory:.1f} GiB", growth),
        Cell(duration(stage.seconds), style="bold"),
    )


def _speed(speed: Speed | None, detail: str) -> Cell:
    return Cell(f"{speed.tokens_per_second:,.0f}", detail) if speed else NONE
