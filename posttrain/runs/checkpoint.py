"""Checkpoints: directories of safetensors and JSON files that are complete and verified, or not there at all.

Floor 1: knows the protocol, not what is saved; loads torch only with tensors, so that a reader of runs needs none.
A checkpoint is written under a temporary name, sealed by its manifest, and renamed; older ones go only after that.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import CheckpointError, StorageError
from posttrain.runs import durable
from posttrain.runs.durable import Buffer
from posttrain.runs.manifest import ManifestError, verify, write_manifest

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
_STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint: its state is in memory, its tensors are read on request."""

    path: Path
    step: int
    sequence: int  # counts the saves of a run, through all its attempts
    manifest_sha256: str
    offsets: Mapping[str, int]  # bytes of each log at the save
    state: Mapping[str, Any]

    def tensors(self, name: str) -> "dict[str, Tensor]":
        """Read one of the tensor files; read what is needed before later saves retire this checkpoint."""
        from posttrain.runs.tensor_files import load_tensors

        return load_tensors(self.path / f"{name}.safetensors")


def save_checkpoint(
    directory: Path,
    step: int,
    *,
    tensors: "Mapping[str, Mapping[str, Tensor]]",
    state: Mapping[str, Any],
    offsets: Mapping[str, int],
    keep: int,
    parent: Checkpoint | None = None,
) -> Checkpoint:
    """Save `tensors` (a safetensors file each) and `state` (a JSON file each), then retire all but `keep` checkpoints.

    Nothing is deleted before the new checkpoint is on disk and was read back. Raises StorageError, and then the
    earlier checkpoints are as they were.
    """
    assert keep >= 2, "the newest checkpoint must never be the only one"
    durable.make_directory(directory)
    final = directory / f"step-{step:08d}"
    earlier = step_directories(directory)
    files = _files(tensors, state)
    assert MANIFEST not in files
    temporary = durable.temporary_directory(directory, str(step))
    header = {
        "step": step,
        "sequence": parent.sequence + 1 if parent else 1,
        "parent": parent.manifest_sha256 if parent else None,
        "offsets": dict(offsets),
    }
    try:
        with durable.storage_errors(temporary):
            digests = {name: durable.create_file(temporary / name, chunks) for name, chunks in files.items()}
            write_manifest(temporary, MANIFEST, digests, header)
            durable.publish_directory(temporary, final)
    except Exception:
        durable.discard(temporary)
        raise
    try:
        saved = load_checkpoint(final)
    except ManifestError as error:
        raise StorageError(f"{final} reads back damaged: {error}", fix="check the disk (dmesg | tail)") from None
    for _, retired in sorted(earlier)[: max(0, len(earlier) + 1 - keep)]:
        durable.remove_tree(retired)
    return saved


def _files(tensors: "Mapping[str, Mapping[str, Tensor]]", state: Mapping[str, Any]) -> dict[str, Iterable[Buffer]]:
    files: dict[str, Iterable[Buffer]] = {}
    if tensors:
        from posttrain.runs.tensor_files import tensor_chunks

        files = {f"{name}.safetensors": tensor_chunks(content) for name, content in tensors.items()}
    return files | {f"{name}.json": [durable.json_bytes(content)] for name, content in state.items()}


def load_latest(directory: Path, *, notice: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest checkpoint that verifies, or None where none was ever saved.

    Damaged ones are renamed to `*.bad` and `notice` is told which file was wrong; raises CheckpointError when nothing
    else is left: a run never starts afresh in silence. The caller holds the run's lock.
    """
    if not directory.is_dir():
        return None
    durable.sweep(directory)
    for _, path in sorted(step_directories(directory), reverse=True):
        try:
            return load_checkpoint(path)
        except ManifestError as error:
            quarantine = _quarantine_name(path)
            durable.move(path, quarantine)
            notice(f"checkpoint {path.name} is damaged ({error}); moved to {quarantine.name}")
    damaged = sorted(path.name for path in directory.glob("*.bad"))
    if damaged:
        raise CheckpointError(
            f"no usable checkpoint in {directory}: damaged are {', '.join(damaged)}",
            fix="restore one of them from a copy, or start over with --overwrite",
        )
    return None


def _quarantine_name(path: Path) -> Path:
    candidates = (path.with_name(f"{path.name}{f'-{n}' if n > 1 else ''}.bad") for n in count(1))
    return next(name for name in candidates if not name.exists())


def step_directories(directory: Path) -> list[tuple[int, Path]]:
    """Return `(step, path)` of what is named like a checkpoint, in no order and unverified."""
    if not directory.is_dir():
        return []
    matches = ((_STEP.fullmatch(path.name), path) for path in directory.iterdir())
    return [(int(match[1]), path) for match, path in matches if match]


def load_checkpoint(path: Path) -> Checkpoint:
    """Verify size and sha256 of every file, then return the checkpoint; raises ManifestError naming the bad file."""
    manifest = verify(path, MANIFEST)
    match = _STEP.fullmatch(path.name)
    if not match or manifest["step"] != int(match[1]):
        raise ManifestError(f"{MANIFEST} is that of step {manifest['step']}")
    names = [entry["path"] for entry in manifest["files"]]
    return Checkpoint(
        path=path,
        step=manifest["step"],
        sequence=manifest["sequence"],
        manifest_sha256=manifest["sha256"],
        offsets=manifest["offsets"],
        state={name[:-5]: json.loads((path / name).read_bytes()) for name in names if name.endswith(".json")},
    )
