"""The live panel: progress, phases and the few metrics that tell most, at most 15 lines.

Floor 1: turns numbers into rich renderables; knows no run. Colour carries no meaning that the text does not.
"""

import math
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from posttrain.runs.findings import HEALTHY

METRICS_SHOWN = 6
HISTORY = 200  # values of each metric that a sparkline may show
BARS = "▁▂▃▄▅▆▇█"
_TELLING = (
    "reward",
    "accuracy",
    "loss",
    "kl",
    "entropy",
    "completions/mean_length",
    "completions/clipped_ratio",
    "frac_reward_zero_std",
    "grad_norm",
    "learning_rate",
)


def telling(metrics: Mapping[str, float]) -> list[str]:
    """Return the names of the metrics to show: the field's usual ones first, never times."""
    known = [name for name in _TELLING if name in metrics]
    others = [name for name in metrics if name not in known and not name.startswith("time")]
    return (known + others)[:METRICS_SHOWN]


def number(value: float) -> str:
    """Return a number as one reads it at a glance: four digits, or an exponent."""
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    size = abs(value)
    if size < 1e-3 or size >= 1e6:
        return f"{value:.2e}"
    return f"{value:.{3 if size < 10 else 1}f}"


def duration(seconds: float) -> str:
    """Return a time span as one says it: 0.42 s, 12.3 s, 3:07, 2:03:07."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def sparkline(values: list[float], width: int) -> str:
    """Return the course of `values` in `width` characters: means of equal spans; a gap where nothing is finite."""
    width = min(width, len(values))
    spans = [values[index * len(values) // width : (index + 1) * len(values) // width] for index in range(width)]
    means = [_mean([value for value in span if math.isfinite(value)]) for span in spans]
    finite = [mean for mean in means if mean is not None]
    if not finite:
        return " " * width
    low, extent = min(finite), max(finite) - min(finite)
    heights = [None if mean is None else (mean - low) / extent if extent else 0.5 for mean in means]
    return "".join(" " if height is None else BARS[min(7, int(height * 8))] for height in heights)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def peak_memory() -> str:
    """Return the largest memory that this process has held, and the accelerator's where torch uses one."""
    unit = 1 if sys.platform == "darwin" else 1024
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    text = f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        text += f" + GPU {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    return text


class PanelView:
    """The state of the panel; `render` may be called from another thread at any time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.start("", 0, 0)

    def start(self, title: str, total: int, done: int) -> None:
        self._title, self._total, self._first, self._step = title, total, done, done
        self._started = self._clock()
        self._phase: tuple[str, float] | None = None
        self._seconds: dict[str, float] = {}  # of each phase in this step; before it comes, in the last one
        self._entered: dict[str, int] = {}  # the step in which each phase was last entered
        self._history: dict[str, deque[float]] = {}
        self.health = ""  # how the run is, in one line; empty where nothing watches it

    def enter(self, name: str) -> None:
        if self._entered.get(name) != self._step:
            self._seconds[name] = 0.0
        self._entered[name] = self._step
        self._phase = (name, self._clock())

    def leave(self) -> None:
        if self._phase:
            name, entered = self._phase
            self._seconds[name] += self._clock() - entered
        self._phase = None

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        self._step = step
        free = METRICS_SHOWN - len(self._history)
        new = [name for name in telling(metrics) if name not in self._history][:free]
        self._history = {
            **self._history,
            **{name: deque(maxlen=HISTORY) for name in new},
        }  # a new dict: render may be reading the old
        for name, values in self._history.items():
            if name in metrics:
                values.append(float(metrics[name]))

    def render(self) -> RenderableType:
        """Return the panel as of now."""
        blocks: list[RenderableType] = [self._progress()]
        if self._seconds:
            blocks.append(self._phases())
        if self._history:
            blocks += [Text(), self._metrics()]
        if self.health:
            style = "green" if self.health == HEALTHY else "bold yellow"
            blocks += [
                Text(),
                Text.assemble(("health  ", "dim"), (self.health, style), no_wrap=True, overflow="ellipsis"),
            ]
        return Panel(
            Group(*blocks),
            title=Text(self._title, style="bold"),
            title_align="left",
            subtitle=Text(f"memory {peak_memory()}", style="dim"),
            subtitle_align="right",
            border_style="bright_black",
            padding=(0, 1),
        )

    def _progress(self) -> RenderableType:
        elapsed = self._clock() - self._started
        done = self._step - self._first
        pace = f"{duration(elapsed / done)}/step" if done else "first step"
        left = f"{duration(elapsed / done * (self._total - self._step))} left" if done else duration(elapsed)
        row = Table.grid(padding=(0, 2), expand=True)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(justify="right", no_wrap=True)
        row.add_column(justify="right", no_wrap=True)
        bar = ProgressBar(total=max(1, self._total), completed=self._step, complete_style="cyan", finished_style="cyan")
        row.add_row(Text.assemble((str(self._step), "bold"), f"/{self._total}"), bar, pace, left)
        return row

    def _phases(self) -> RenderableType:
        current, entered = self._phase or ("", 0.0)
        parts = []
        for name, seconds in self._seconds.items():
            active = name == current
            shown = seconds + self._clock() - entered if active else seconds
            parts.append((f"{name} {duration(shown)}", "bold cyan" if active else "dim"))
        text = Text(no_wrap=True, overflow="ellipsis")
        for index, (part, style) in enumerate(parts):
            text.append("   " if index else "").append(part, style=style)
        return text

    def _metrics(self) -> RenderableType:
        rows = Table.grid(padding=(0, 2))
        rows.add_column(no_wrap=True, style="dim")
        rows.add_column(justify="right", no_wrap=True, min_width=8, style="bold")
        rows.add_column(no_wrap=True, overflow="crop", style="cyan")
        for name, values in list(self._history.items()):
            rows.add_row(name, number(values[-1]), sparkline(list(values), 32))
        return rows
