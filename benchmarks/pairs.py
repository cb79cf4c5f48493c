"""Both sides of a workload in turn: two worker processes, of which only one computes at a time."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Self

import psutil

from benchmarks.check import compare
from benchmarks.machine import SquareProduct
from benchmarks.worker import Task


class WorkerError(Exception):
    """A side ended before its work was done."""


@dataclass(slots=True)
class Side:
    """What one side gave: counted steps, what the machine could do beside each of them, and its peak memory."""

    seconds: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)  # operations a second of a square product after each counted step
    peak_bytes: int = 0
    steps: list[dict[str, Any]] = field(default_factory=list)  # all of them, the uncounted ones too

    @property
    def median(self) -> float:
        """Return the median of the counted steps, in seconds."""
        return median(self.seconds)

    def to_json(self) -> dict[str, Any]:
        """Return medians, spread, memory, phases and the losses seen."""
        last = self.steps[-1]
        return {
            "seconds": round(self.median, 4),
            "all_seconds": [round(value, 4) for value in self.seconds],
            "matrix_peaks": [round(value) for value in self.peaks],
            "peak_bytes": self.peak_bytes,
            "phases": last.get("phases") or {},
            "tokens": last.get("tokens"),
            "losses": [step.get("loss") for step in self.steps],
            "grad_norms": [step.get("grad_norm") for step in self.steps],
        }


class Worker:
    """A process that runs one side; a context manager that ends it."""

    def __init__(self, task: Task, threads: int) -> None:
        self._log = Path(task.directory) / "log.txt"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._name = f"{task.side} of {task.workload.name}"
        settings = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            text=True,
            env={**os.environ, **settings, "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        self._usage = psutil.Process(self._process.pid)
        self._send(task.to_line())

    def ready(self) -> None:
        """Wait until the side waits for its first step, so that loading overlaps no step of the other."""
        self._answer()

    def step(self) -> dict[str, Any]:
        """Run a step and return its report."""
        self._send("step\n")
        return self._answer()

    def stop(self) -> int:
        """End the process; return its peak memory in bytes."""
        self._send("stop\n")
        return int(self._answer()["peak_bytes"])

    def cpu_seconds(self) -> float:
        """Return the processor time used so far."""
        times = self._usage.cpu_times()
        return float(times.user + times.system)

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._error() from None

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._error()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _error(self) -> WorkerError:
        code = self._process.wait()
        tail = "\n  ".join(self._log.read_text(errors="replace").splitlines()[-12:])
        return WorkerError(f"{self._name} ended with code {code}; its last lines ({self._log}):\n  {tail}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


@dataclass(frozen=True, slots=True)
class Pair:
    """The two sides of a workload, how far they differ, and how much the waiting one disturbed the other."""

    ours: Side
    peer: Side
    differences: dict[str, float]
    idle_share: float  # largest processor time of the waiting side over the seconds of the other's step


def run_pair(ours: Task, peer: Task, *, repeats: int, warmup: int, threads: int, product: SquareProduct) -> Pair:
    """Run both sides in turn: a step that is compared, `warmup` steps, and `repeats` counted ones with a product each.

    Raises DisagreementError when the sides do not compute the same thing, WorkerError when one of them fails.
    """
    sides = {"ours": Side(), "peer": Side()}
    idle = 0.0
    with Worker(ours, threads) as our_worker, Worker(peer, threads) as peer_worker:
        workers = {"ours": our_worker, "peer": peer_worker}
        for worker in workers.values():
            worker.ready()
        for index in range(1 + warmup + repeats):
            for name, other in (("ours", peer_worker), ("peer", our_worker)):
                before = other.cpu_seconds()
                report = workers[name].step()
                sides[name].steps.append(report)
                if index > warmup:
                    sides[name].seconds.append(report["seconds"])
                    idle = max(idle, (other.cpu_seconds() - before) / report["seconds"])
                    sides[name].peaks.append(product.flops())
            if index == 0:
                differences = compare(sides["ours"].steps[0], sides["peer"].steps[0], ours.workload)
        for name, worker in workers.items():
            sides[name].peak_bytes = worker.stop()
    return Pair(sides["ours"], sides["peer"], differences, idle)


def run_alone(task: Task, *, repeats: int, threads: int) -> Side:
    """Run one side: an uncounted step, then `repeats` counted ones."""
    side = Side()
    with Worker(task, threads) as worker:
        worker.ready()
        side.steps = [worker.step() for _ in range(1 + repeats)]
        side.seconds = [step["seconds"] for step in side.steps[1:]]
        side.peak_bytes = worker.stop()
    return side


def spread(seconds: Sequence[float]) -> float:
    """Return the range of the counted steps over their median."""
    return (max(seconds) - min(seconds)) / median(seconds)
