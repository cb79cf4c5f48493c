"""A real training, killed and stopped at any moment, ends bit-identical to one that was left alone."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.runs.logs import read_rows
from posttrain.runs.rollout_files import read_rollouts

STEPS = 12


class Zygote:
    """Starts trainings in a process that has torch loaded, one at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        )

        assert self.read() == ["ready"]

    def start(self, path: Path, **options: object) -> None:
        self.process.stdin.write(json.dumps({"path": str(path), **options}) + "\n")
        self.process.stdin.flush()

    def read(self) -> list[str]:
        line = self.process.stdout.readline()
        assert line, "the zygote died"
        return line.split()

    def training(self) -> int:
        word, pid = self.read()
        assert word == "training"
        return int(pid)

    def exit_code(self) -> int:
        while (words := self.read())[0] != "exit":
            pass
        return int(words[1])

    def run(self, path: Path, **options: object) -> int:
        self.start(path, **options)
        return self.exit_code()


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.process.stdin.close()
    zygote.process.wait()


def weights(path: Path) -> str:
    return hashlib.sha256((path / "artifact/model.safetensors").read_bytes()).hexdigest()


def losses(path: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in read_rows(path / "metrics.jsonl")]


@pytest.fixture(scope="module")
def reference(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A training that was left alone, and its seconds."""
    path = tmp_path_factory.mktemp("reference") / "run"
    started = time.monotonic()
    assert zygote.run(path) == 0
    return path, time.monotonic() - started


def assert_identical(path: Path, reference: Path) -> None:
    assert weights(path) == weights(reference)
    assert losses(path) == losses(reference)
    assert [step for step, _ in losses(path)] == list(range(1, STEPS + 1))
    names = sorted(os.listdir(path / "rollouts"))
    assert names == [f"step-{step:08d}.parquet" for step in range(1, STEPS + 1)]
    assert [read_rollouts(path / "rollouts" / name)[0]["loss"] for name in names] == [loss for _, loss in losses(path)]
    checkpoints = sorted(os.listdir(path / "checkpoints"))
    assert len(checkpoints) == 2
    assert checkpoints[-1] == "step-00000012"
    assert not [file for file in path.rglob("*") if file.name.startswith((".tmp-", ".trash-"))]


def test_kill_at_random_moments(zygote: Zygote, reference: tuple[Path, float], tmp_path: Path) -> None:
    chance = random.Random(0)
    kills = 0
    for attempt in range(30):
        path = tmp_path / str(attempt)
        while (code := zygote.run(path, signal=9, after=chance.uniform(0, reference[1]))) == -9:
            kills += 1
        assert code == 0
        assert_identical(path, reference[0])
        if kills >= 10:
            return
    pytest.fail(f"only {kills} kills met a living process")


@pytest.mark.parametrize("step", [1, 3, 4, 8, 12])
def test_kill_in_a_given_step(zygote: Zygote, reference: tuple[Path, float], tmp_path: Path, step: int) -> None:
    path = tmp_path / "run"
    assert zygote.run(path, die_in=step) == -9
    assert zygote.run(path) == 0
    assert_identical(path, reference[0])
    saved = (step - 1) // 3 * 3
    redone = [event["text"] for event in read_rows(path / "events.jsonl") if event["event"] == "resumed"]
    assert redone == ([f"resumed from step {saved}, redo {step - 1 - saved} steps"] if step > 1 else [])
    orphan = path / "orphan-2.jsonl"
    assert [row["step"] for row in read_rows(orphan)] == list(range(saved + 1, step))


@pytest.mark.parametrize("forget", ["exp_avg", "seed"])
def test_a_resume_that_forgets_a_part_of_the_state_is_seen(
    zygote: Zygote, reference: tuple[Path, float], tmp_path: Path, forget: str
) -> None:
    assert zygote.run(tmp_path / "run", die_in=8) == -9
    assert zygote.run(tmp_path / "run", forget=forget) == 0
    assert weights(tmp_path / "run") != weights(reference[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_a_step_boundary_and_the_run_resumes(
    zygote: Zygote, reference: tuple[Path, float], tmp_path: Path, number: signal.Signals
) -> None:
    chance = random.Random(int(number))
    stopped = 0
    for attempt in range(20):
        path = tmp_path / str(attempt)
        code = zygote.run(path, signal=int(number), after=chance.uniform(0.2, 0.9) * reference[1])
        assert code in (0, 75, -number)  # the last: before the handlers were in place
        if code == -number:
            continue
        if code == 75:
            stopped += 1
            event = read_rows(path / "events.jsonl")[-1]
            assert event["event"] == "stopped"
            assert number.name in event["text"]
            assert event["step"] == (losses(path) or [(0, 0.0)])[-1][0]  # the finished steps were all saved
            assert zygote.run(path) == 0
            assert not (path / "orphan-2.jsonl").exists()
        assert_identical(path, reference[0])
        if stopped == 2:
            return
    pytest.fail(f"only {stopped} signals met a run between its steps")


def test_a_second_ctrl_c_leaves_at_once_and_consistent(
    zygote: Zygote, reference: tuple[Path, float], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    zygote.start(path, hang_in=5)
    pid = zygote.training()
    while not (path / "metrics.jsonl").is_file() or len(losses(path)) < 5:
        time.sleep(0.005)
    os.kill(pid, signal.SIGINT)
    assert zygote.read() == ["stop", "seen"]
    os.kill(pid, signal.SIGINT)
    assert zygote.exit_code() == 130
    assert zygote.run(path) == 0
    assert_identical(path, reference[0])
