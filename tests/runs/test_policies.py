"""Kept policies: which steps, and the same set wherever a run died."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.errors import DataError, StorageError
from posttrain.runs.artifact import verify_artifact
from posttrain.runs.directory import StageRun
from posttrain.runs.display import NoDisplay
from posttrain.runs.policies import POLICIES, kept_policies
from posttrain.settings import GrpoSettings

SETTINGS = GrpoSettings(save_steps=4, keep_policy_steps=3)
STEPS = 8


def train(path: Path, settings: GrpoSettings = SETTINGS, *, attempt: str = "") -> None:
    """Train for 8 steps; a policy tells its step, and the attempt that wrote it."""
    with StageRun.open(path, settings=settings, fingerprint="f", display=NoDisplay()) as run:
        if run.finished:
            return
        for step in run.steps(STEPS):
            run.log(step, {"reward": 0.0})
            run.keep_policy(step, lambda place, step=step: (place / "weights").write_text(f"{step}{attempt}") and None)
            run.save(step, lambda step=step: ({}, {"counters": {"step": step}}))
        run.finish({})


def content(path: Path) -> dict[int, str]:
    return {step: (policy / "weights").read_text() for step, policy in kept_policies(path).items()}


def test_every_so_many_steps_and_the_last_are_kept_sealed(tmp_path: Path) -> None:
    train(tmp_path)
    assert content(tmp_path) == {3: "3", 6: "6", 8: "8"}
    manifest = verify_artifact(tmp_path / POLICIES / "step-00000006")
    assert (manifest["step"], manifest["fingerprint"], manifest["stage"]) == (6, "f", tmp_path.name)


def test_none_are_kept_unless_asked_for(tmp_path: Path) -> None:
    train(tmp_path, GrpoSettings())
    assert not (tmp_path / POLICIES).exists()
    with pytest.raises(DataError, match=r"keeps no policies.*\n  fix: .*keep_policy_steps = 10"):
        kept_policies(tmp_path)


def test_a_run_killed_at_any_durable_operation_leaves_the_same_set(
    tmp_path: Path, count_operations: Callable, die_at: Callable
) -> None:
    operations = count_operations(lambda: train(tmp_path / "whole"))
    expected = content(tmp_path / "whole")
    for index in range(len(operations)):
        path = tmp_path / "killed"
        assert die_at(lambda path=path: train(path), index, "before")
        train(path)
        assert content(path) == expected, operations[index]
        assert len(list((path / POLICIES).iterdir())) == len(expected), operations[index]  # nothing half-written
        shutil.rmtree(path)


def test_a_step_done_again_keeps_the_policy_of_the_attempt_that_went_on(tmp_path: Path, die_at: Callable) -> None:
    """On devices that don't repeat themselves exactly, a policy of the abandoned attempt would be another run's."""

    def die_in_step_7() -> None:
        train(tmp_path, attempt=" of the first")

    die = _operation_of_step(tmp_path.parent / "count", 7)
    assert die_at(die_in_step_7, die, "before")
    assert content(tmp_path) == {3: "3 of the first", 6: "6 of the first"}
    train(tmp_path, attempt=" of the second")  # from the checkpoint of step 4
    assert content(tmp_path) == {3: "3 of the first", 6: "6 of the second", 8: "8 of the second"}


def _operation_of_step(path: Path, step: int) -> int:
    """Return the index of the durable operation that logs a step."""
    from posttrain.runs import durable

    seen: list[durable.Operation] = []
    durable.observers.append(lambda operation, moment: seen.append(operation) if moment == "before" else None)
    try:
        train(path)
    finally:
        durable.observers.pop()
    logged = [
        i for i, operation in enumerate(seen) if operation.kind == "append" and operation.path.name == "metrics.jsonl"
    ]
    return logged[step]  # the first one creates the file


def test_a_damaged_policy_is_named(tmp_path: Path) -> None:
    train(tmp_path)
    (tmp_path / POLICIES / "step-00000003" / "weights").write_text("4")
    with pytest.raises(StorageError, match=r"step-00000003 is damaged: weights has another sha256"):
        kept_policies(tmp_path)
