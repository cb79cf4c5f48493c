"""The directory of one stage of one run: its lock, settings, logs, checkpoints, artifact and end.

Floor 1: knows steps and files, not models or losses. Opening the same directory again resumes it: what was logged
after the checkpoint moves aside, and the steps are done again.
"""

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from posttrain.errors import CheckpointError, PosttrainError, Stopped
from posttrain.runs import durable, logs
from posttrain.runs.artifact import publish_artifact
from posttrain.runs.checkpoint import Checkpoint, load_latest, save_checkpoint
from posttrain.runs.display import Display, GuardedDisplay, make_display
from posttrain.runs.environment import command_line, describe_environment
from posttrain.runs.findings import Finding, Watch, health_line, warning
from posttrain.runs.identity import claim, clear, refuse_foreign
from posttrain.runs.lock import RunLock
from posttrain.runs.memory import accelerator_peak, begin_peak, resident_peak
from posttrain.runs.policies import drop_policies_after, keep_policy
from posttrain.runs.rollout_files import write_rollouts
from posttrain.runs.signals import stop_request
from posttrain.settings import OptimizedStageSettings, PolicyTrainingSettings, StageSettings

if TYPE_CHECKING:
    from torch import Tensor

TrainerState: TypeAlias = "tuple[Mapping[str, Mapping[str, Tensor]], Mapping[str, Any]]"

METRICS, EVENTS, RESULT = "metrics.jsonl", "events.jsonl", "result.json"


class StageRun:
    """A stage's directory, locked while open; a context manager that releases it and records how it ended."""

    def __init__(self, path: Path, settings: StageSettings, fingerprint: str, lock: RunLock, display: Display) -> None:
        self.path = path
        self.fingerprint = fingerprint
        self.settings = settings
        self.checkpoint: Checkpoint | None = None  # where this attempt starts; None is the very beginning
        self._lock = lock
        self._display = GuardedDisplay(display)
        self._saved: Checkpoint | None = None
        self._save_steps, self._keep = 1, 2  # a stage without an optimizer has no state to speak of: each step is kept
        if isinstance(settings, OptimizedStageSettings):
            self._save_steps, self._keep = settings.save_steps, settings.save_total_limit
        self._policy_steps = settings.keep_policy_steps if isinstance(settings, PolicyTrainingSettings) else 0
        self._max_steps = 0
        self._phase_seconds: dict[str, float] = {}
        self._watch: Watch | None = None
        self._history: list[dict[str, Any]] = []  # the rows of metrics.jsonl, where something watches them
        self._step_started = time.monotonic()

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        settings: StageSettings,
        fingerprint: str,
        display: Display | None = None,
        overwrite: bool = False,
    ) -> Self:
        """Lock the directory, creating it where needed, and find where to resume.

        `fingerprint` identifies everything that decides the result. Raises RunLockedError when another process has
        the directory, ConfigError when it holds another fingerprint or no run at all, CheckpointError when it has no
        usable checkpoint left; no run is harmed by that. `overwrite` deletes an earlier run.
        """
        path = Path(path)
        refuse_foreign(path)
        durable.make_directory(path)
        lock = RunLock(path)
        try:
            if overwrite:
                clear(path)
            changed = claim(path, settings, fingerprint)
            run = cls(path, settings, fingerprint, lock, make_display() if display is None else display)
            if not run.finished:
                run._begin(changed)
        except BaseException:
            lock.release()
            raise
        return run

    def _begin(self, changed: list[str]) -> None:
        begin_peak()
        durable.sweep(self.path)
        logs.drop_torn_line(self.path / EVENTS)
        events = logs.read_rows(self.path / EVENTS)
        attempt = 1 + sum(event["event"] == "opened" for event in events)
        durable.write_json(self.path / "environment.json", describe_environment(self.settings.seed))
        self._record("opened", f"attempt {attempt}: {command_line()}")
        logs.append_rows(self.path / METRICS, [])
        durable.sync_file(self.path / EVENTS)
        durable.sync_directory(self.path)
        if changed:
            self.event(
                "settings", f"changed since the last attempt, without effect on the result: {'; '.join(changed)}"
            )
        self.checkpoint = self._saved = load_latest(
            self.path / "checkpoints", notice=lambda text: self.event("damaged", text)
        )
        if self.checkpoint is None and any(event["event"] == "saved" for event in events):
            raise CheckpointError(
                f"{self.path} has saved checkpoints, and none is left",
                fix="restore the folder checkpoints/ from a copy, or start over with --overwrite",
            )
        self._set_aside(attempt)

    def _set_aside(self, attempt: int) -> None:
        step = self.checkpoint.step if self.checkpoint else 0
        offset = self.checkpoint.offsets[METRICS] if self.checkpoint else 0
        if (size := (self.path / METRICS).stat().st_size) < offset:
            self.event("damaged", f"{METRICS} lost {offset - size} bytes that were logged before step {step}")
        redo = logs.cut(self.path / METRICS, offset, self.path / f"orphan-{attempt}.jsonl")
        rollouts = self.path / "rollouts"
        if rollouts.is_dir():
            durable.sweep(rollouts)
        for file in sorted(rollouts.glob("step-*.parquet")):
            if int(file.stem.removeprefix("step-")) > step:
                aside = self.path / f"orphan-{attempt}-rollouts"
                durable.make_directory(aside)
                durable.move(file, aside / file.name)
        drop_policies_after(self.path, step)
        if self.checkpoint or redo:
            self.event("resumed", f"resumed from step {step}, redo {redo} steps", step=step)

    @property
    def finished(self) -> bool:
        """Whether the stage has ended and written its result."""
        return (self.path / RESULT).is_file()

    @property
    def artifact(self) -> Path:
        """The directory of the stage's output; it exists once it is complete."""
        return self.path / "artifact"

    @property
    def stop_requested(self) -> bool:
        """Whether a signal asked the process to stop; loops inside a step poll it."""
        return stop_request() is not None

    def steps(self, max_steps: int) -> Iterator[int]:
        """Yield the steps still to do, counted from 1.

        A requested stop ends the run before the first of them, then in `save`: nowhere else are all steps done kept.
        """
        self._max_steps = max_steps
        done = self.checkpoint.step if self.checkpoint else 0
        self._display.start(f"{self.path.parent.name}/{self.path.name}", max_steps, done=done)
        self.check_stop()
        for step in range(done + 1, max_steps + 1):
            self._phase_seconds.clear()
            self._step_started = time.monotonic()
            yield step

    def check_stop(self) -> None:
        """Raise Stopped when a stop was requested; a step in progress is dropped and done again on resume."""
        if self.stop_requested:
            step = self._saved.step if self._saved else 0
            self._record("stopped", f"stopped by {stop_request()} at the checkpoint of step {step}", step=step)
            raise Stopped(
                f"stopped by {stop_request()}; {self.path} is saved up to step {step}",
                fix=f"{command_line()}  # the same command again resumes it",
            )

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show a phase of the step and add its seconds to the metric `time/<name>`."""
        started = time.monotonic()
        try:
            with self._display.phase(name):
                yield
        finally:
            self._phase_seconds[name] = self._phase_seconds.get(name, 0.0) + time.monotonic() - started

    def watch(self, watch: Watch) -> None:
        """Let `watch` look at each step that is logged: its row gets the names of what is wrong, as `health`.

        What it says depends on the logged rows and the step's rollouts alone, so a resumed run says the same.
        """
        self._watch, self._history = watch, logs.read_rows(self.path / METRICS)

    def log(
        self, step: int, metrics: Mapping[str, float], *, rollouts: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Append a line to metrics.jsonl, with the seconds of the step and its phases, and write its rollouts."""
        if rollouts:
            self.write_rollouts(step, rollouts)
        seconds = {f"time/{name}": value for name, value in self._phase_seconds.items()}
        seconds["time/step"] = time.monotonic() - self._step_started
        row: dict[str, Any] = {"step": step, **metrics, **seconds}
        findings = self._look(row, rollouts or ())
        logs.append_rows(self.path / METRICS, [{**row, "time": time.time()}])
        self._display.update(step, {**metrics, **seconds})
        if findings is not None:
            self._tell(step, findings)

    def _look(self, row: dict[str, Any], rollouts: Sequence[Mapping[str, Any]]) -> Sequence[Finding] | None:
        """Add to a step's row what is wrong with it, and return that; a watch that fails is told and turned off."""
        if self._watch is None:
            return None
        self._history.append(row)
        try:
            findings = self._watch(self._history, rollouts)
        except Exception as error:
            self._watch = None
            self.event("health", f"the health checks failed and were turned off: {type(error).__name__}: {error}")
            return None
        row["health"] = [finding.check for finding in findings]
        return findings

    def _tell(self, step: int, findings: Sequence[Finding]) -> None:
        """Show the health line, and tell each finding once when it begins and once when it has ended."""
        before = self._history[-2].get("health", []) if len(self._history) > 1 else []
        for finding in findings:
            if finding.check not in before:
                places = [{"step": step, **place._asdict()} for place in finding.rollouts]
                text = warning(finding, step, self.path)
                self.event("health", text, check=finding.check, step=step, rollouts=places)
        for check in before:
            if check not in self._history[-1]["health"]:
                self.event("health", f"step {step}: {check} has ended", check=check, step=step, rollouts=[])
        self._display.health(health_line(findings))

    def write_rollouts(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rollouts of a step to rollouts/step-<step>.parquet."""
        durable.make_directory(self.path / "rollouts")
        write_rollouts(self.path / "rollouts" / f"step-{step:08d}.parquet", rows)

    def event(self, kind: str, text: str, **fields: Any) -> None:
        """Record a sentence in events.jsonl and show it."""
        self._record(kind, text, **fields)
        self._display.message(text)

    def _record(self, kind: str, text: str, **fields: Any) -> None:
        logs.append_rows(self.path / EVENTS, [{"event": kind, "text": text, **fields, "time": time.time()}])

    def should_save(self, step: int) -> bool:
        """Whether `save` would write a checkpoint after this step."""
        return step % self._save_steps == 0 or step == self._max_steps or self.stop_requested

    def save(self, step: int, trainer_state: Callable[[], TrainerState]) -> None:
        """Write a checkpoint when one is due, and then stop when that was requested.

        `trainer_state` returns `(tensors, state)`, as `save_checkpoint` takes them; it is called only when needed.
        """
        if not self.should_save(step):
            return
        if step > (self._saved.step if self._saved else 0):
            self._write_checkpoint(step, *trainer_state())
        self.check_stop()

    def _write_checkpoint(
        self, step: int, tensors: "Mapping[str, Mapping[str, Tensor]]", state: Mapping[str, Any]
    ) -> None:
        self._saved = save_checkpoint(
            self.path / "checkpoints",
            step,
            tensors=tensors,
            state=state,
            offsets={METRICS: durable.sync_file(self.path / METRICS)},
            keep=self._keep,
            parent=self._saved,
        )
        self._record("saved", f"saved {self._saved.path.name}", step=step)

    def keep_policy(self, step: int, write: Callable[[Path], None]) -> None:
        """Let `write` fill policies/step-<step> where the settings keep that step's policy, as the last one's.

        Call it before `save`: a resume deletes the policies after its checkpoint, whose steps are done again.
        """
        if self._policy_steps and (step % self._policy_steps == 0 or step == self._max_steps):
            keep_policy(self.path, step, write, {"fingerprint": self.fingerprint, "stage": self.path.name})

    def publish_artifact(self, write: Callable[[Path], None]) -> Path:
        """Let `write` fill a temporary directory and make it the artifact; one that is there and intact stays."""
        return publish_artifact(self.artifact, write, {"fingerprint": self.fingerprint, "stage": self.path.name})

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write result.json, which marks the stage as finished; its peak of memory is that of the last attempt."""
        memory = {"resident": resident_peak(), "accelerator": accelerator_peak()}
        result = {"fingerprint": self.fingerprint, "summary": logs.plain(summary), "peak_memory_bytes": memory}
        durable.sync_file(self.path / METRICS)
        durable.write_json(self.path / RESULT, result)
        self._record("finished", f"finished after {self._max_steps} steps")

    def close(self) -> None:
        """End the display and free the directory for another process."""
        self._display.stop()
        if self._display.fault:
            self._record("display", f"the display failed and was turned off: {self._display.fault}")
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if isinstance(error, Exception) and not isinstance(error, Stopped):
                cause = str(error) if isinstance(error, PosttrainError) else f"{type(error).__name__}: {error}"
                error.add_note(f"traceback: {self.path / EVENTS}")
                self._record("failed", cause, traceback="".join(traceback.format_exception(error)))
        finally:
            self.close()
