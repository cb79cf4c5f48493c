"""A stage's run that only measures: the stage's own function works for a few steps, in a directory that goes away.

Floor 6: knows steps, phases and seconds. What a stage does is never repeated here, so that a measure cannot drift
from it.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.utils.flop_counter import FlopCounterMode

from posttrain.engines import Interrupted
from posttrain.pipeline.stages import StageFunction
from posttrain.runs.directory import StageRun, TrainerState
from posttrain.runs.display import NoDisplay
from posttrain.runs.memory import accelerator_peak, begin_peak, resident_peak
from posttrain.settings import StageSettings

GENERATE, UPDATE = "generate", "update"  # the phases that a step's time is told by; the rest is counted together
MAX_STEPS = 8  # timed at most, where the time would allow more


class Measured(Exception):
    """Leaves a stage's function: enough was measured."""


@dataclass(slots=True)
class Step:
    """One step of a stage, in seconds, with what it logged."""

    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    num_sequences: int = 0  # completions that it sampled
    flops: int = 0  # of the matrix products in its updates; 0 where they were not counted, which costs time


@dataclass(slots=True)
class Measurement:
    """What a pass over the first steps of a stage showed."""

    setup_seconds: float = math.nan
    num_steps: int = 0  # that the whole stage would take
    steps: list[Step] = field(default_factory=list)
    decoded: int = 0  # tokens of each live sequence when generation was interrupted
    resident_before: int = 0  # bytes
    resident_peak: int = 0
    accelerator_peak: int = 0

    @property
    def timed(self) -> list[Step]:
        """The steps to take times from: where FLOPs were counted, the others, if there are any."""
        return [step for step in self.steps if not step.flops] or self.steps


class MeasuredRun(StageRun):
    """A run that leaves its stage after `budget` seconds of steps, and saves no checkpoint."""

    def plan(self, measurement: Measurement, *, budget: float, max_steps: int) -> None:
        """Say where to note what happens, and when to stop; to be called before the stage."""
        self._measurement, self._budget, self._limit = measurement, budget, max_steps
        self._opened = time.monotonic()
        self._deadline = math.inf
        self._polls = 0

    @property
    def stop_requested(self) -> bool:
        """Whether the time is over; engines ask before every decoding step."""
        self._polls += 1
        return time.monotonic() > self._deadline

    def check_stop(self) -> None:
        """Do nothing: no signal is handled while measuring."""

    def steps(self, max_steps: int) -> Iterator[int]:
        """Yield steps until the time is over, and then leave the stage."""
        self._measurement.num_steps = max_steps
        started = time.monotonic()
        self._measurement.setup_seconds = started - self._opened
        self._deadline = started + self._budget
        for number in range(1, min(max_steps, self._limit) + 1):
            self._step, self._polls = Step(), 0
            started = time.monotonic()
            yield number
            _synchronize()
            self._step.seconds = time.monotonic() - started
            self._measurement.steps.append(self._step)
            if time.monotonic() > self._deadline:
                break
        raise Measured

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add up a phase's seconds; the FLOPs of the first step's updates are counted."""
        counts = name == UPDATE and not any(step.flops for step in self._measurement.steps)
        counter = FlopCounterMode(display=False) if counts else None
        _synchronize()
        started = time.monotonic()
        with counter or nullcontext():
            yield
        _synchronize()
        self._step.phases[name] = self._step.phases.get(name, 0.0) + time.monotonic() - started
        self._step.flops += counter.get_total_flops() if counter else 0

    def log(
        self, step: int, metrics: Mapping[str, float], *, rollouts: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Keep what was logged; it is written as well, since that takes a part of a step's time."""
        self._step.metrics = dict(metrics)
        self._step.num_sequences = len(rollouts or ())
        super().log(step, metrics, rollouts=rollouts)

    def save(self, step: int, trainer_state: Callable[[], TrainerState]) -> None:
        """Write no checkpoint: it may be many times the model's size."""

    def publish_artifact(self, write: Callable[[Path], None]) -> NoReturn:
        """Leave a stage that took no step."""
        raise Measured

    def interrupted(self) -> None:
        """Note how far generation came."""
        self._measurement.decoded = self._polls


def measure(stage: StageFunction, settings: StageSettings, *, budget: float, max_steps: int = MAX_STEPS) -> Measurement:
    """Run a stage's function for at most `budget` seconds of steps (a step is finished, a generation interrupted).

    Raises what the stage raises about its settings, rows and model. With `max_steps` 0 only the way to the first step
    is measured.
    """
    measurement = Measurement(resident_before=begin_peak())
    with tempfile.TemporaryDirectory(prefix="posttrain-bench-") as directory:
        run = MeasuredRun.open(Path(directory) / "stage", settings=settings, fingerprint="bench", display=NoDisplay())
        run.plan(measurement, budget=budget, max_steps=max_steps)
        try:
            stage(settings, run)
        except Measured:
            pass
        except Interrupted:
            run.interrupted()
        finally:
            run.close()
    measurement.resident_peak = resident_peak()
    measurement.accelerator_peak = accelerator_peak()
    return measurement


def _synchronize() -> None:
    """Wait for what an accelerator was given: its work goes on after the call returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()
