import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from posttrain.errors import CheckpointError, ConfigError, RunLockedError, Stopped, StorageError
from posttrain.runs.artifact import verify_artifact
from posttrain.runs.directory import StageRun
from posttrain.runs.display import NoDisplay
from posttrain.runs.logs import read_rows
from posttrain.runs.rollout_files import read_rollouts
from posttrain.runs.signals import stop_on_signals, stop_request
from posttrain.settings import DataSettings, EvalSettings, SftSettings, StageSettings

SETTINGS = SftSettings(save_steps=2, seed=7)


def opened(path: Path, settings: StageSettings = SETTINGS, fingerprint: str = "f", **options: object) -> StageRun:
    return StageRun.open(path, settings=settings, fingerprint=fingerprint, display=NoDisplay(), **options)


def train(run: StageRun, steps: int = 5, until: int | None = None) -> None:
    for step in run.steps(steps):
        if step == until:
            return
        run.log(step, {"loss": 1 / step}, rollouts=[{"text": f"step {step}"}])
        run.save(step, lambda step=step: ({}, {"counters": {"step": step}}))


def tree(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def events(path: Path) -> list[str]:
    return [event["event"] for event in read_rows(path / "events.jsonl")]


def test_a_run_from_start_to_finish(tmp_path: Path) -> None:
    path = tmp_path / "demo/sft"
    with opened(path) as run:
        assert run.checkpoint is None
        assert not run.finished
        train(run)
        run.publish_artifact(lambda place: (place / "weights.txt").write_text("w") and None)
        run.finish({"loss": 0.2, "best": math.inf})
    assert json.loads((path / "settings.json").read_text())["seed"] == 7
    environment = json.loads((path / "environment.json").read_text())
    assert environment["seed"] == 7
    assert environment["torch"]
    result = json.loads((path / "result.json").read_text())
    assert result.pop("peak_memory_bytes")["resident"] > 2**20
    assert result == {
        "fingerprint": "f",
        "summary": {"loss": 0.2, "best": "Infinity"},
    }
    assert [row["step"] for row in read_rows(path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert sorted(os.listdir(path / "checkpoints")) == ["step-00000004", "step-00000005"]  # the last step is saved
    assert events(path) == ["opened", "saved", "saved", "saved", "finished"]
    assert [entry["path"] for entry in verify_artifact(run.artifact)["files"]] == ["weights.txt"]
    before = tree(path)
    with opened(path) as again:
        assert again.finished
    assert {name: data for name, data in tree(path).items() if name != "run.lock"} == {
        name: data for name, data in before.items() if name != "run.lock"
    }


def test_resume_redoes_what_followed_the_checkpoint(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        train(run, until=4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # torn
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "sa')
    with opened(tmp_path) as run:
        assert run.checkpoint.step == 2
        assert run.checkpoint.state == {"counters": {"step": 2}}
        assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]
        assert [row["step"] for row in read_rows(tmp_path / "orphan-2.jsonl")] == [3]
        assert os.listdir(tmp_path / "orphan-2-rollouts") == ["step-00000003.parquet"]
        train(run)
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert len(os.listdir(tmp_path / "rollouts")) == 5
    resumed = [event for event in read_rows(tmp_path / "events.jsonl") if event["event"] == "resumed"]
    assert resumed[0]["text"] == "resumed from step 2, redo 1 steps"


def test_another_fingerprint_is_refused_naming_the_settings(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        train(run, until=3)
    before = tree(tmp_path)
    changed = SETTINGS.model_copy(update={"learning_rate": 1e-3, "data": DataSettings(source="gsm8k")})
    with pytest.raises(ConfigError, match=r"learning_rate was 2e-05, is 0\.001") as caught:
        opened(tmp_path, changed, "g")
    assert 'data.source was "nano", is "gsm8k"' in str(caught.value)
    with pytest.raises(ConfigError, match="outside its settings"):
        opened(tmp_path, SETTINGS, "g")
    assert tree(tmp_path) == before
    with opened(tmp_path, changed, "g", overwrite=True) as run:
        assert run.checkpoint is None
    assert not (tmp_path / "checkpoints").exists()
    assert json.loads((tmp_path / "settings.json").read_text())["learning_rate"] == 1e-3


def test_settings_outside_the_fingerprint_may_change(tmp_path: Path) -> None:
    opened(tmp_path).close()
    opened(tmp_path, SETTINGS.model_copy(update={"save_steps": 9})).close()
    assert json.loads((tmp_path / "settings.json").read_text())["save_steps"] == 9
    assert "save_steps was 2, is 9" in read_rows(tmp_path / "events.jsonl")[-1]["text"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_directory_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"has thesis\.tex"):
        opened(tmp_path, overwrite=overwrite)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_damaged_checkpoints_fall_back_and_never_start_afresh(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        train(run, until=5)
    (tmp_path / "checkpoints/step-00000004/counters.json").write_text("{}")
    with opened(tmp_path) as run:
        assert run.checkpoint.step == 2
    damaged = [event["text"] for event in read_rows(tmp_path / "events.jsonl") if event["event"] == "damaged"]
    assert "step-00000004 is damaged (counters.json has" in damaged[0]
    for file in (tmp_path / "checkpoints").rglob("*.json"):
        file.unlink()
    for _ in range(2):
        with pytest.raises(CheckpointError):
            opened(tmp_path)
    for directory in (tmp_path / "checkpoints").iterdir():
        os.rename(directory, tmp_path.parent / directory.name)
    with pytest.raises(CheckpointError, match="none is left"):
        opened(tmp_path)
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]
    with opened(tmp_path, overwrite=True) as run:
        assert run.checkpoint is None


def forked(action: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        except RunLockedError as error:
            code = error.exit_code
        finally:
            os._exit(code)
    return child


def test_of_two_processes_one_gets_the_directory(tmp_path: Path) -> None:
    for race in range(10):
        go, hold = os.pipe(), os.pipe()

        def contend(go: tuple = go, hold: tuple = hold, race: int = race) -> None:
            os.close(go[1])
            os.close(hold[1])
            os.read(go[0], 1)  # both wait for the same end of file
            opened(tmp_path / str(race))
            os.read(hold[0], 1)

        children = [forked(contend), forked(contend)]
        os.close(go[1])
        loser, status = os.wait()  # the winner is still holding
        assert os.waitstatus_to_exitcode(status) == 8
        os.close(hold[1])
        winner = next(child for child in children if child != loser)
        assert os.waitstatus_to_exitcode(os.waitpid(winner, 0)[1]) == 0
        for end in (go[0], hold[0]):
            os.close(end)


def test_a_directory_that_becomes_a_run_while_it_is_looked_at_is_not_foreign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = Path.iterdir

    def won_meanwhile(directory: Path) -> Iterator[Path]:
        monkeypatch.undo()
        opened(tmp_path).close()
        return listed(directory)

    monkeypatch.setattr(Path, "iterdir", won_meanwhile)
    with opened(tmp_path) as run:
        assert [row["event"] for row in read_rows(run.path / "events.jsonl")] == ["opened", "opened"]


def test_the_loser_changes_nothing_and_names_the_holder(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        train(run, until=3)
        before = tree(tmp_path)
        for overwrite in (False, True):
            with pytest.raises(RunLockedError, match=f"process {os.getpid()} on "):
                opened(tmp_path, overwrite=overwrite)
        assert tree(tmp_path) == before
    opened(tmp_path).close()


def test_a_killed_holder_frees_the_lock_even_if_a_child_of_it_lives(tmp_path: Path) -> None:
    ready, told = os.pipe()

    def hold() -> None:
        run = opened(tmp_path)
        if os.fork() == 0:
            os.write(told, str(os.getpid()).encode())
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
        run.close()

    holder = forked(hold)
    worker = int(os.read(ready, 20))
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    try:
        opened(tmp_path).close()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_an_artifact_appears_whole_and_once(tmp_path: Path) -> None:
    calls = []

    def write(place: Path) -> None:
        calls.append(place)
        (place / "sub").mkdir()
        (place / "sub/a.txt").write_text("a")

    def fail(place: Path) -> None:
        (place / "half.txt").write_text("h")
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    with opened(tmp_path) as run:
        with pytest.raises(StorageError):
            run.publish_artifact(fail)
        assert not run.artifact.exists()
        assert not list(tmp_path.glob(".tmp-*"))
        run.publish_artifact(write)
        run.publish_artifact(write)
        assert len(calls) == 1
        (run.artifact / "sub/a.txt").write_text("b")
        with pytest.raises(StorageError, match=r"sub/a\.txt has another sha256"):
            verify_artifact(run.artifact)
        run.publish_artifact(write)
        assert verify_artifact(run.artifact)["fingerprint"] == "f"


def test_metrics_stay_json_whatever_the_numbers(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        for step in run.steps(1):
            with run.phase("generate"), run.phase("score"):
                pass
            run.log(step, {"loss": math.nan, "kl": -math.inf, "reward": 0.1})
    line = (tmp_path / "metrics.jsonl").read_text()
    strict = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (strict["loss"], strict["kl"]) == ("NaN", "-Infinity")
    row = read_rows(tmp_path / "metrics.jsonl")[0]
    assert math.isnan(row["loss"])
    assert row["kl"] == -math.inf
    assert {"time/generate", "time/score", "time/step", "time"} <= row.keys()


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot json\n{"step": 3}\n{"st')
    with pytest.raises(StorageError, match=r"metrics\.jsonl:2 is damaged"):
        read_rows(path)


def test_rollouts_keep_columns_that_come_late(tmp_path: Path) -> None:
    with opened(tmp_path) as run:
        run.write_rollouts(40, [{"text": "é\n"}, {"text": "b", "reward": 0.5, "ids": [1, 2]}])
    rows = read_rollouts(tmp_path / "rollouts/step-00000040.parquet")
    assert rows == [{"text": "é\n", "reward": None, "ids": None}, {"text": "b", "reward": 0.5, "ids": [1, 2]}]


def test_state_is_collected_only_when_a_save_is_due(tmp_path: Path) -> None:
    collected = []
    with opened(tmp_path) as run:
        for step in run.steps(5):
            run.log(step, {})
            run.save(step, lambda step=step: collected.append(step) or ({}, {}))
    assert collected == [2, 4, 5]


def test_a_stop_inside_a_step_drops_it(tmp_path: Path) -> None:
    def train_until_stopped(run: StageRun) -> None:
        for step in run.steps(5):
            if step == 4:
                os.kill(os.getpid(), signal.SIGTERM)
                run.check_stop()
            run.log(step, {})
            run.save(step, lambda: ({}, {}))

    with stop_on_signals(), opened(tmp_path) as run:
        with pytest.raises(Stopped, match="saved up to step 2") as caught:
            train_until_stopped(run)
        assert caught.value.exit_code == 75
        assert "the same command again resumes it" in caught.value.fix
    with opened(tmp_path) as run:
        assert not run.stop_requested  # the flag does not outlive its context
        assert list(run.steps(5)) == [3, 4, 5]


def test_a_stop_after_a_save_that_was_not_due_loses_no_finished_step(tmp_path: Path) -> None:
    def train_until_stopped(run: StageRun) -> None:
        for step in run.steps(9):
            run.log(step, {})
            run.save(step, lambda step=step: ({}, {"counters": {"step": step}}))
            if step == 3:  # saved steps: 2
                os.kill(os.getpid(), signal.SIGTERM)

    with stop_on_signals(), opened(tmp_path) as run, pytest.raises(Stopped, match="saved up to step 4"):
        train_until_stopped(run)
    with opened(tmp_path) as run:
        assert run.checkpoint.state == {"counters": {"step": 4}}
        assert not (tmp_path / "orphan-2.jsonl").exists()


def test_a_stop_before_the_first_step_ends_the_run(tmp_path: Path) -> None:
    with stop_on_signals(), opened(tmp_path) as run:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            next(run.steps(9))


def test_a_stage_without_an_optimizer_keeps_every_step(tmp_path: Path) -> None:
    with opened(tmp_path, EvalSettings()) as run:
        train(run, until=4)
    with opened(tmp_path, EvalSettings()) as run:
        assert run.checkpoint.step == 3


def test_the_first_ctrl_c_is_answered_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with stop_on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop_request() == "SIGINT"
        os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err == "stopping at the next safe point; Ctrl-C again leaves at once\n"


def test_a_failure_is_recorded_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), opened(tmp_path):
        1 / 0  # noqa: B018
    last = read_rows(tmp_path / "events.jsonl")[-1]
    assert last["event"] == "failed"
    assert "test_directory.py" in last["traceback"]
    opened(tmp_path).close()  # and the lock is free
