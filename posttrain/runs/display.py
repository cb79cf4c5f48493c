"""Live progress: a panel on a terminal, a line now and then in a pipe, or nothing.

Floor 1: reads numbers, computes none. A display goes to stderr, and a fault in it never ends a run.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol, TextIO

from rich.console import Console
from rich.live import Live

from posttrain.runs.panel import PanelView, duration, number, telling

Mode = Literal["auto", "full", "plain", "none"]
PLAIN_SECONDS = 30.0


class Display(Protocol):
    """What a run tells of its progress."""

    def start(self, title: str, total: int, *, done: int = 0) -> None:
        """Begin a stage of `total` steps, of which `done` were done before."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Show that the step is in this phase while the context lasts."""

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a finished step."""

    def health(self, line: str) -> None:
        """Show how the run is, until the next step."""

    def message(self, text: str) -> None:
        """Show a sentence that stays."""

    def stop(self) -> None:
        """End the display; further calls change nothing."""


class NoDisplay:
    """Shows nothing."""

    def start(self, title: str, total: int, *, done: int = 0) -> None:
        pass

    def phase(self, name: str) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def health(self, line: str) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def stop(self) -> None:
        pass


class PlainDisplay(NoDisplay):
    """A line for the first and the last step, and one every 30 seconds between, without escape codes."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock

    def start(self, title: str, total: int, *, done: int = 0) -> None:
        self._title, self._total, self._done = title, total, done
        self._started = self._clock()
        self._shown: float | None = None

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        now = self._clock()
        if self._shown is not None and now - self._shown < PLAIN_SECONDS and step < self._total:
            return
        self._shown = now
        pace = (now - self._started) / max(1, step - self._done)
        values = "  ".join(f"{name} {number(metrics[name])}" for name in telling(metrics))
        left = duration(pace * (self._total - step))
        self.message(f"{self._title}  step {step}/{self._total}  {values}  {duration(pace)}/step  {left} left")

    def message(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class PanelDisplay(NoDisplay):
    """A panel of at most 15 lines at the bottom of the terminal; messages and prints scroll above it."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True)
        self._view = PanelView(clock)
        self._live: Live | None = None

    def start(self, title: str, total: int, *, done: int = 0) -> None:
        self.stop()
        self._view.start(title, total, done)
        self._live = Live(get_renderable=self._view.render, console=self._console, refresh_per_second=4)
        self._live.start()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._view.enter(name)
        try:
            yield
        finally:
            self._view.leave()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        self._view.update(step, metrics)

    def health(self, line: str) -> None:
        self._view.health = line

    def message(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, style="dim")

    def stop(self) -> None:
        live, self._live = self._live, None
        if live:
            live.stop()


class GuardedDisplay:
    """Passes everything on to a display until that fails, and then goes on without one."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self.fault: str | None = None

    def _call(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        failed, self._display = self._display, NoDisplay()
        self.fault = f"{type(error).__name__}: {error}"
        with contextlib.suppress(Exception):
            failed.stop()

    def start(self, title: str, total: int, *, done: int = 0) -> None:
        self._call(lambda: self._display.start(title, total, done=done))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        stack = contextlib.ExitStack()
        self._call(lambda: stack.enter_context(self._display.phase(name)))
        try:
            yield
        finally:
            self._call(stack.close)

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        self._call(lambda: self._display.update(step, metrics))

    def health(self, line: str) -> None:
        self._call(lambda: self._display.health(line))

    def message(self, text: str) -> None:
        self._call(lambda: self._display.message(text))

    def stop(self) -> None:
        self._call(self._display.stop)


def make_display(mode: Mode = "auto") -> Display:
    """Return the display of a mode; auto is the panel on a terminal that can draw it, else plain lines."""
    if mode == "none":
        return NoDisplay()
    console = Console(stderr=True)
    drawable = console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")
    return PanelDisplay(console) if mode == "full" or (mode == "auto" and drawable) else PlainDisplay()
