"""What a run tells of findings: their names in its rows, each told when it begins and when it ends, and one line."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from posttrain.runs.directory import StageRun
from posttrain.runs.display import Display, NoDisplay, PanelDisplay, PlainDisplay
from posttrain.runs.findings import HEALTHY, Finding, RolloutPlace, health_line
from posttrain.runs.logs import read_rows
from posttrain.settings import GrpoSettings

CUT = Finding("cut", "3 of 4 were cut off", "--limit 8", "--where truncated", (RolloutPlace("p0", 2),))
FLAT = Finding("flat", "nothing differs", "other prompts", "--worst 5")
WRONG: Mapping[int, list[Finding]] = {1: [], 2: [CUT], 3: [FLAT, CUT], 4: [FLAT], 5: []}


def watch(rows: Sequence[Mapping[str, Any]], rollouts: Sequence[Mapping[str, Any]]) -> list[Finding]:
    assert len(rows) == rows[-1]["step"]
    return WRONG[rows[-1]["step"]]


def run_steps(path: Path, display: Display, steps: int = 5) -> StageRun:
    with StageRun.open(path, settings=GrpoSettings(), fingerprint="x", display=display) as run:
        run.watch(watch)
        for step in run.steps(steps):
            run.log(step, {"reward": 0.5 * step})
    return run


def test_each_finding_is_told_when_it_begins_and_when_it_ends(tmp_path: Path) -> None:
    stream = io.StringIO()
    path = tmp_path / "grpo"
    run_steps(path, PlainDisplay(stream))
    rows = read_rows(path / "metrics.jsonl")
    assert [row["health"] for row in rows] == [[], ["cut"], ["flat", "cut"], ["flat"], []]
    assert rows[1]["reward"] == 1.0
    events = [event for event in read_rows(path / "events.jsonl") if event["event"] == "health"]
    assert [(event["check"], event["step"]) for event in events] == [("cut", 2), ("flat", 3), ("cut", 4), ("flat", 5)]
    assert events[0]["rollouts"] == [{"step": 2, "prompt_id": "p0", "sample": 2}]
    assert events[0]["text"] == (
        "warning[cut] step 2: 3 of 4 were cut off\n"
        f"  look: posttrain rollouts {path} --step 2 --where truncated\n"
        "  try: --limit 8"
    )
    told = [line for line in stream.getvalue().split("\n") if "reward" not in line]
    assert told[0] == "warning[cut] step 2: 3 of 4 were cut off"
    assert told[-3:-1] == ["step 4: cut has ended", "step 5: flat has ended"]
    assert "\x1b" not in stream.getvalue()


def test_a_run_without_a_watch_has_no_health(tmp_path: Path) -> None:
    with StageRun.open(tmp_path, settings=GrpoSettings(), fingerprint="x", display=NoDisplay()) as run:
        run.log(1, {"reward": 0.5})
    assert "health" not in read_rows(tmp_path / "metrics.jsonl")[0]


def test_a_watch_reads_the_rows_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    run_steps(tmp_path, NoDisplay(), steps=2)
    lines = path.read_text()
    with StageRun.open(tmp_path, settings=GrpoSettings(), fingerprint="x", display=NoDisplay()) as run:
        path.write_text(lines)  # as though a checkpoint had covered them
        run.watch(watch)
        run.log(3, {"reward": 1.5})
    assert [json.loads(line)["health"] for line in path.read_text().splitlines()] == [[], ["cut"], ["flat", "cut"]]
    assert [event["step"] for event in read_rows(tmp_path / "events.jsonl") if event["event"] == "health"] == [2, 3]


def test_a_watch_that_fails_ends_no_run(tmp_path: Path) -> None:
    def broken(rows: object, rollouts: object) -> list[Finding]:
        raise KeyError("reward")

    with StageRun.open(tmp_path, settings=GrpoSettings(), fingerprint="x", display=NoDisplay()) as run:
        run.watch(broken)
        run.log(1, {})
        run.log(2, {})
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]
    told = [event["text"] for event in read_rows(tmp_path / "events.jsonl") if event["event"] == "health"]
    assert told == ["the health checks failed and were turned off: KeyError: 'reward'"]


def test_the_line_has_the_worst_finding_first() -> None:
    assert health_line([]) == HEALTHY
    assert health_line([CUT]) == "cut: 3 of 4 were cut off"
    assert health_line([FLAT, CUT]) == "flat: nothing differs  (and cut)"


def test_the_panel_shows_the_line(tmp_path: Path) -> None:
    def panel(step: int) -> str:
        console = Console(record=True, force_terminal=True, width=80, file=io.StringIO())
        display = PanelDisplay(console)
        run_steps(tmp_path / str(step), display, steps=step)
        console.print(display._view.render())
        return console.export_text()

    assert "health  healthy" in panel(1)
    assert "health  flat: nothing differs  (and cut)" in panel(3)
