"""A process that runs one side of one workload, a step at a time, on the parent's command.

Started as `python -m benchmarks.worker`. Commands come as lines on stdin ("step", "stop"), answers go as JSON lines to
stdout; whatever libraries print goes to stderr. A step's seconds are all that passes between command and answer.
"""

import json
import os
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.workloads import Workload


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker is to do, and with which files."""

    side: str  # "ours" or "peer"
    workload: Workload
    base: str
    adapter: str
    rows: str
    directory: str  # to write into
    dtype: str  # ours: auto, float32 or bfloat16
    peer: dict[str, Any]  # the peer's settings, as `peer_settings.PeerSettings` has them

    def to_line(self) -> str:
        """Return the task as a JSON line."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> "Task":
        """Return the task that `to_line` wrote."""
        values = json.loads(line)
        values["workload"] = Workload.from_json(values["workload"])
        return cls(**values)


class Channel:
    """The worker's end of the two pipes."""

    def __init__(self) -> None:
        self._commands = os.fdopen(os.dup(0), "r")
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._started = 0.0

    def task(self) -> Task:
        """Return the task, which comes first."""
        return Task.from_line(self._commands.readline())

    def wait(self) -> None:
        """Wait for the next step; where there is none, answer with the peak memory and end the process."""
        if not self._started:
            self._answer({"ready": True})
        command = self._commands.readline().strip()
        if command != "step":
            self._answer({"peak_bytes": peak_bytes()})
            raise SystemExit(0)
        self._started = time.perf_counter()

    def report(self, **values: Any) -> None:
        """Answer with the seconds since the command, and what the step gave."""
        self._answer({"seconds": time.perf_counter() - self._started, **values})

    def _answer(self, values: dict[str, Any]) -> None:
        self._answers.write(json.dumps(values) + "\n")
        self._answers.flush()


def peak_bytes() -> int:
    """Return the largest resident memory that this process has had."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Run the task until the parent stops it."""
    channel = Channel()
    task = channel.task()
    if task.side == "ours":
        from benchmarks import ours as side
    else:
        from benchmarks import peer as side  # type: ignore[no-redef]
    side.run(task, channel)


if __name__ == "__main__":
    main()
