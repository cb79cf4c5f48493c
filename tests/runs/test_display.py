import io
import math

import pytest
from rich.console import Console

from posttrain.runs.display import GuardedDisplay, NoDisplay, PanelDisplay, PlainDisplay, make_display
from posttrain.runs.panel import PanelView, duration, number, sparkline, telling


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


METRICS = {
    "time/generate": 1.2,
    "loss": 0.012,
    "reward": 0.5,
    "kl": 1e-4,
    "entropy": 1.0,
    "completions/mean_length": 61.2,
    "grad_norm": 0.3,
    "learning_rate": 1e-5,
    "zeta": 3.0,
}


def rendered(view: PanelView, width: int = 80) -> list[str]:
    console = Console(record=True, force_terminal=True, width=width, file=io.StringIO())
    console.print(view.render())
    return console.export_text().rstrip("\n").split("\n")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_panel_is_aligned_and_at_most_15_lines(width: int) -> None:
    clock = Clock()
    view = PanelView(clock)
    view.start("demo/[grpo]", 100, 0)
    assert len(rendered(view, width)) <= 15
    for step in range(1, 43):
        for name in ("generate", "score", "update"):
            view.enter(name)
            clock.now += 0.5
            view.leave()
        view.update(step, {**METRICS, "grad_norm": math.nan if step % 2 else 0.3, "kl": math.inf})
        view.health = "truncation: " + "a long sentence " * 20
    view.enter("generate")
    clock.now += 2
    lines = rendered(view, width)
    assert len(lines) <= 15
    assert {len(line) for line in lines} == {width}
    text = "\n".join(lines)
    assert "demo/[grpo]" in text
    assert "42/100" in text
    assert "generate 2.0 s" in text
    if width == 80:
        assert "score 0.50 s" in text
        assert "reward" in text
        assert "zeta" not in text  # six metrics, the telling ones
        assert "health  truncation: a long sentence" in text


def test_phases_of_one_step_add_up() -> None:
    clock = Clock()
    view = PanelView(clock)
    view.start("x", 2, 0)
    for _ in range(2):
        view.enter("update")
        clock.now += 1
        view.leave()
    assert "update 2.0 s" in "\n".join(rendered(view))
    view.update(1, {})
    view.enter("update")
    clock.now += 3
    view.leave()
    assert "update 3.0 s" in "\n".join(rendered(view))


def test_plain_shows_first_last_and_one_line_in_30_seconds() -> None:
    clock, stream = Clock(), io.StringIO()
    display = PlainDisplay(stream, clock)
    display.start("sft", 100)
    for step in range(1, 101):
        clock.now += 1
        display.update(step, METRICS)
    lines = stream.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == ["1/100", "31/100", "61/100", "91/100", "100/100"]
    assert "\x1b" not in stream.getvalue()
    assert "reward 0.500" in lines[0]
    assert lines[1].endswith("1.0 s/step  1:09 left")


def test_a_display_that_fails_is_turned_off_and_the_step_goes_on() -> None:
    class Broken(NoDisplay):
        def update(self, step: int, metrics: object) -> None:
            raise OSError("terminal is gone")

    display = GuardedDisplay(Broken())
    display.update(1, {})
    assert display.fault == "OSError: terminal is gone"
    display.update(2, {})
    with pytest.raises(KeyError), display.phase("generate"):
        raise KeyError("the step's own error passes")


def test_the_live_panel_leaves_a_clean_terminal() -> None:
    stream = io.StringIO()
    display = PanelDisplay(Console(file=stream, force_terminal=True, width=60))
    display.start("sft", 2)
    with display.phase("update"):
        display.update(1, METRICS)
    display.message("saved [bold]")
    display.stop()
    display.stop()
    assert "saved [bold]" in stream.getvalue()
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_a_pipe_gets_plain_lines() -> None:
    assert isinstance(make_display("auto"), PlainDisplay)
    assert isinstance(make_display("full"), PanelDisplay)
    assert type(make_display("none")) is NoDisplay


def test_numbers_and_durations_read_at_a_glance() -> None:
    values = [0.5, 12.345, 1e-5, 3, 2_500_000.0, math.nan, 0.0]
    assert [number(value) for value in values] == ["0.500", "12.3", "1.00e-05", "3", "2.50e+06", "nan", "0"]
    assert [duration(s) for s in (0.42, 12.34, 187, 7387)] == ["0.42 s", "12.3 s", "3:07", "2:03:07"]


def test_sparkline_scales_averages_and_leaves_gaps() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7], 2) == "▁█"
    assert sparkline([0.0, math.nan, 7.0], 3) == "▁ █"
    assert sparkline([5.0, 5.0], 2) == "▅▅"
    assert sparkline([math.inf], 4) == " "
    assert sparkline([], 4) == ""


def test_telling_metrics_come_first_and_times_never() -> None:
    assert telling(METRICS) == ["reward", "loss", "kl", "entropy", "completions/mean_length", "grad_norm"]
    assert telling({"time": 1.0, "time/x": 2.0, "own": 3.0}) == ["own"]
