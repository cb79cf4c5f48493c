import errno
import itertools
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.errors import CheckpointError, StorageError
from posttrain.runs import durable
from posttrain.runs.checkpoint import Checkpoint, load_checkpoint, load_latest, save_checkpoint, step_directories
from posttrain.runs.durable import Operation
from posttrain.runs.manifest import ManifestError

NAMES = ("model", "optimizer", "loader", "counters", "random")


def content(step: int) -> dict[str, dict[str, object]]:
    return {
        name: {"name": name, "step": step, "payload": "x" * (step + (400 if name == "model" else 0))} for name in NAMES
    }


def save(directory: Path, step: int, parent: Checkpoint | None = None, keep: int = 2) -> Checkpoint:
    return save_checkpoint(
        directory, step, tensors={}, state=content(step), offsets={"metrics.jsonl": step}, keep=keep, parent=parent
    )


def latest(directory: Path) -> Checkpoint | None:
    notices: list[str] = []
    checkpoint = load_latest(directory, notice=notices.append)
    assert notices == [], notices
    return checkpoint


@pytest.fixture
def two_saved(tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoints"
    save(directory, 6, save(directory, 3))
    return directory


@pytest.fixture(autouse=True)
def small_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "WRITE_BYTES", 250)  # so that a fault also falls inside a file


def test_round_trip_and_retention(two_saved: Path) -> None:
    third = save(two_saved, 9, latest(two_saved))
    assert sorted(os.listdir(two_saved)) == ["step-00000006", "step-00000009"]
    found = latest(two_saved)
    assert found == third
    assert (found.step, found.sequence, found.state) == (9, 3, content(9))
    parent = json.loads((two_saved / "step-00000009/manifest.json").read_text())["parent"]
    assert parent == json.loads((two_saved / "step-00000006/manifest.json").read_text())["sha256"]


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert latest(tmp_path / "absent") is None
    assert latest(tmp_path) is None


def test_an_existing_step_is_refused(two_saved: Path) -> None:
    with pytest.raises(StorageError, match="exists already"):
        save(two_saved, 6)
    assert latest(two_saved).state == content(6)
    assert sorted(os.listdir(two_saved)) == ["step-00000003", "step-00000006"]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_every_operation_leaves_the_old_or_the_new_checkpoint(
    two_saved: Path, tmp_path: Path, count_operations: Callable, die_at: Callable, moment: str
) -> None:
    copy = tmp_path / "counted"
    shutil.copytree(two_saved, copy)
    operations = count_operations(lambda: save(copy, 9))
    assert {"mkdir", "create", "write", "sync", "sync_directory", "rename", "unlink", "rmdir"} == {
        operation.kind for operation in operations
    }
    published = next(i for i, o in enumerate(operations) if o.target and o.target.name == "step-00000009")
    for index, operation in enumerate(operations):
        work = tmp_path / f"{moment}-{index}"
        shutil.copytree(two_saved, work)
        assert die_at(lambda work=work: save(work, 9), index, moment)
        new = index > published or (index == published and moment == "after")
        expected = 9 if new else 6
        found = latest(work)
        assert (found.step, found.state) == (expected, content(expected)), operation
        assert all(name.startswith("step-") for name in os.listdir(work)), operation  # leftovers are swept
        if not new:
            save(work, 9, found)
        assert latest(work).state == content(9)
        shutil.rmtree(work)


def test_killed_in_recovery_too(two_saved: Path, count_operations: Callable, die_at: Callable, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(two_saved, broken)
    (broken / ".tmp-9-abc").mkdir()
    (broken / ".tmp-9-abc/model.json").write_text("{")
    (broken / ".trash-step-1-abc").mkdir()
    (broken / "step-00000006/model.json").write_text("{}")
    copy = tmp_path / "copy"
    shutil.copytree(broken, copy)
    recover = lambda where: load_latest(where, notice=lambda text: None)  # noqa: E731
    for index, operation in enumerate(count_operations(lambda: recover(copy))):
        work = tmp_path / f"work-{index}"
        shutil.copytree(broken, work)
        assert die_at(lambda work=work: recover(work), index, "before")
        assert recover(work).state == content(3), operation


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_at_every_operation_keeps_the_earlier_checkpoints(
    two_saved: Path, tmp_path: Path, plant: Callable, count_operations: Callable, code: int
) -> None:
    copy = tmp_path / "counted"
    shutil.copytree(two_saved, copy)
    for index in range(len(count_operations(lambda: save(copy, 9)))):
        work = tmp_path / f"work-{index}"
        shutil.copytree(two_saved, work)
        left = itertools.count()

        def fail(operation: Operation, moment: str, left: itertools.count = left, index: int = index) -> None:
            if moment == "before" and next(left) == index:
                raise OSError(code, os.strerror(code))

        with plant(fail), pytest.raises(StorageError, match=os.strerror(code)) as caught:
            save(work, 9)
        assert caught.value.exit_code == 7
        assert ("free space" in caught.value.fix) == (code != errno.EIO)
        found = latest(work)
        assert found.state == content(found.step)
        assert found.step in (6, 9)
        if found.step == 6:
            save(work, 9, found)  # space is back
        shutil.rmtree(work)


def damage(path: Path, how: str, other: Path) -> None:
    data = path.read_bytes()
    match how:
        case "absent":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "half":
            path.write_bytes(data[: len(data) // 2])
        case "swapped":
            shutil.copy(other / path.name, path)
        case "replaced by a directory":
            path.unlink()
            path.mkdir()
        case _:
            bit = random.Random(how + path.name).randrange(8 * len(data))
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)


DAMAGES = ["absent", "empty", "half", "swapped", "replaced by a directory", *(f"flip {n}" for n in range(20))]


@pytest.mark.parametrize("name", [*(f"{name}.json" for name in NAMES), "manifest.json"])
def test_every_damage_is_found_and_the_earlier_checkpoint_returned(two_saved: Path, tmp_path: Path, name: str) -> None:
    for how in DAMAGES:
        work = tmp_path / how.replace(" ", "-")
        shutil.copytree(two_saved, work)
        damage(work / "step-00000006" / name, how, work / "step-00000003")
        notices: list[str] = []
        found = load_latest(work, notice=notices.append)
        assert found.state == content(3), how
        assert len(notices) == 1
        assert "step-00000006" in notices[0]
        assert name in notices[0] or how == "swapped", (how, notices)
        assert sorted(os.listdir(work)) == ["step-00000003", "step-00000006.bad"]
        if not how.startswith("flip"):
            save(work, 6, found)
            assert latest(work).state == content(6)


def test_an_extra_file_and_a_renamed_checkpoint_are_found(two_saved: Path) -> None:
    (two_saved / "step-00000006/extra.json").write_text("{}")
    (two_saved / "step-00000003").rename(two_saved / "step-00000012")
    notices: list[str] = []
    with pytest.raises(CheckpointError):
        load_latest(two_saved, notice=notices.append)
    assert "is that of step 3" in notices[0]
    assert "extra.json is not in manifest.json" in notices[1]


def test_all_damaged_is_an_error_every_time_never_a_fresh_start(two_saved: Path) -> None:
    for step in (3, 6):
        (two_saved / f"step-{step:08d}/model.json").write_text("")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"step-00000006.bad") as caught:
            load_latest(two_saved, notice=lambda text: None)
        assert caught.value.exit_code == 4


class DiskShadow:
    """What a power loss would leave: file data as of the last sync, names as of the last sync of their directory."""

    def __init__(self, root: Path, ignored_sync: int | None = None) -> None:
        self.root, self.ignored, self.syncs = root, ignored_sync, 0
        self.held: dict[int, int] = {}  # open descriptors keep inode numbers from being used again
        self.data: dict[int, bytes] = {}
        self.names: dict[int, dict[str, int]] = {}
        self.kept_names: dict[int, dict[str, int]] = {}
        self.states: list[tuple[dict, dict, dict]] = []
        for path in [root, *root.rglob("*")]:
            self._hold(path)
            self._sync(path)

    def _hold(self, path: Path) -> int:
        inode = path.stat().st_ino
        if inode not in self.held:
            self.held[inode] = os.open(path, os.O_RDONLY)
        if path.is_dir():
            self.names[inode] = {child.name: child.stat().st_ino for child in path.iterdir()}
        return inode

    def _sync(self, path: Path) -> None:
        inode = self._hold(path)
        if path.is_dir():
            self.kept_names[inode] = dict(self.names[inode])
        else:
            self.data[inode] = path.read_bytes()

    def __call__(self, operation: Operation, moment: str) -> None:
        if moment == "before":
            return
        if operation.kind in ("sync", "sync_directory"):
            if self.syncs != self.ignored:
                self._sync(operation.path)
            self.syncs += 1
        for path in [self.root, *self.root.rglob("*")]:
            self._hold(path)
        state = (dict(self.data), dict(self.names), dict(self.kept_names))
        if not self.states or state != self.states[-1]:
            self.states.append(state)

    def close(self) -> None:
        for descriptor in self.held.values():
            os.close(descriptor)

    def crashes(self, state: tuple[dict, dict, dict], target: Path) -> list[Path]:
        """Write out each outcome: for every directory, its latest names or only the synced ones."""
        data, names, kept = state
        unsure = [inode for inode in names if names[inode] != kept.get(inode, {})]
        outcomes = []
        for number, choice in enumerate(itertools.product([False, True], repeat=len(unsure))):
            applied = dict(zip(unsure, choice, strict=True))
            place = target / str(number)
            self._write(self.root.stat().st_ino, place, data, names, kept, applied)
            outcomes.append(place)
        return outcomes

    def _write(self, inode: int, place: Path, data: dict, names: dict, kept: dict, applied: dict) -> None:
        if inode not in names:
            place.write_bytes(data.get(inode, b""))
            return
        place.mkdir(parents=True, exist_ok=True)
        children = names[inode] if applied.get(inode, True) else kept.get(inode, {})
        for name, child in children.items():
            self._write(child, place / name, data, names, kept, applied)


def survives(saved: Path, work: Path, plant: Callable, keep: int, ignored_sync: int | None) -> tuple[bool, int]:
    """Save step 9 in a copy, lose power after every operation; return whether all recovered, and the syncs seen."""
    shutil.copytree(saved, work / "disk")
    shadow = DiskShadow(work / "disk", ignored_sync)
    with plant(shadow):
        save(work / "disk", 9, keep=keep)
    shadow.close()
    last = len(shadow.states) - 1
    for index, state in enumerate(shadow.states):
        for crashed in shadow.crashes(state, work / f"crash-{index}"):
            try:  # whatever still has a checkpoint's name must be one
                steps = {step: load_checkpoint(path).state == content(step) for step, path in step_directories(crashed)}
            except ManifestError:
                return False, shadow.syncs
            if not all(steps.values()) or max(steps, default=0) not in ((9,) if index == last else (6, 9)):
                return False, shadow.syncs
        shutil.rmtree(work / f"crash-{index}")
    return True, shadow.syncs


@pytest.mark.parametrize(("keep", "syncs"), [(3, 5), (2, 6)])
def test_power_loss_after_every_operation_and_no_sync_is_idle(
    tmp_path: Path, plant: Callable, monkeypatch: pytest.MonkeyPatch, keep: int, syncs: int
) -> None:
    monkeypatch.setattr(durable, "WRITE_BYTES", 1 << 20)
    monkeypatch.setitem(globals(), "NAMES", ("model", "loader"))
    two_saved = tmp_path / "saved"
    save(two_saved, 6, save(two_saved, 3))
    # Files and manifest, their directory, its name; with keep = 2 also the name that retention takes away, whose sync
    # covers the new name's as well.
    assert survives(two_saved, tmp_path / "all", plant, keep, None) == (True, syncs)
    needed = range(syncs) if keep == 3 else [syncs - 1]
    for ignored in needed:
        work = tmp_path / f"without-{ignored}"
        assert not survives(two_saved, work, plant, keep, ignored)[0], f"sync {ignored} is idle"
