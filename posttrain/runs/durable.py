"""The one door for writes that must survive a crash: atomic, synced to disk, hashed in the same pass.

Floor 1: knows files, not runs. A reader sees the old file or the new one, never a part of it; every failure is a
StorageError. Each system call that changes the disk is announced to `observers`, where tests plant their faults.
"""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrain.errors import StorageError

Buffer = bytes | bytearray | memoryview
Kind = Literal["mkdir", "create", "append", "write", "truncate", "sync", "sync_directory", "rename", "unlink", "rmdir"]

TEMPORARY = ".tmp-"  # prefix of what is being written
TRASH = ".trash-"  # prefix of what is being deleted
WRITE_BYTES = 1 << 24  # of one system call
READ_BYTES = 1 << 20

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SERIALIZER_MESSAGES = ("no space left", "file too large", "quota exceeded", "failed writing file", "i/o error")


@dataclass(frozen=True, slots=True)
class Operation:
    """A system call that changes the disk; `target` is the new name in a rename."""

    kind: Kind
    path: Path
    target: Path | None = None


@dataclass(frozen=True, slots=True)
class Digest:
    """Size in bytes and hexadecimal sha256 of a file's content."""

    size: int
    sha256: str


Observer = Callable[[Operation, Literal["before", "after"]], None]
observers: list[Observer] = []


def storage_error(error: BaseException, path: Path) -> StorageError:
    """Return the StorageError for a failed write at or under `path`."""
    full = not isinstance(error, OSError) or error.errno in _FULL
    place = path.parent if path.suffix else path
    fix = f"free space (df -h {place})" if full else f"make {place} writable (ls -ld {place})"
    return StorageError(
        f"cannot write {path}: {error}", fix=f"{fix}, then run the same command again: it resumes from its checkpoint"
    )


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk under foreign writers into StorageError: safetensors and torch raise RuntimeError-like ones."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(error, path) from error
    except Exception as error:
        if any(message in str(error).lower() for message in _SERIALIZER_MESSAGES):
            raise storage_error(error, path) from error
        raise


@contextmanager
def _operation(kind: Kind, path: Path, target: Path | None = None) -> Iterator[None]:
    operation = Operation(kind, path, target)
    try:
        for observer in observers:
            observer(operation, "before")
        yield
        for observer in observers:
            observer(operation, "after")
    except OSError as error:
        raise storage_error(error, path) from error


@contextmanager
def _opened(kind: Kind, path: Path, flags: int) -> Iterator[int]:
    with _operation(kind, path):
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write(descriptor: int, path: Path, chunks: Iterable[Buffer]) -> Digest:
    sha256, size = hashlib.sha256(), 0
    for chunk in chunks:
        view = memoryview(chunk)
        while view:
            with _operation("write", path):
                written = os.write(descriptor, view[:WRITE_BYTES])
            sha256.update(view[:written])
            size += written
            view = view[written:]
    return Digest(size, sha256.hexdigest())


def _rename(source: Path, target: Path) -> None:
    with _operation("rename", source, target):
        os.replace(source, target)


def sync_file(path: Path) -> int:
    """Force a file's content to disk and return its size in bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with _operation("sync", path):
            os.fsync(descriptor)
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Force a directory's names to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _operation("sync_directory", path):
            try:
                os.fsync(descriptor)
            except OSError as error:
                if error.errno != errno.EINVAL:  # some network file systems cannot sync a directory
                    raise
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Create a directory and its missing parents, durably."""
    if path.is_dir():
        return
    make_directory(path.parent)
    with _operation("mkdir", path):
        path.mkdir(exist_ok=True)
    sync_directory(path.parent)


def temporary_directory(parent: Path, label: str) -> Path:
    """Create an empty directory beside the final place of what will be written into it."""
    path = parent / f"{TEMPORARY}{label}-{uuid.uuid4().hex[:8]}"
    with _operation("mkdir", path):
        path.mkdir()
    return path


def create_file(path: Path, chunks: Iterable[Buffer]) -> Digest:
    """Write a new file of a temporary directory; it becomes durable when the directory is published."""
    with _opened("create", path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
        return _write(descriptor, path, chunks)


def write_file(path: Path, data: Buffer) -> Digest:
    """Create or replace a file atomically and durably."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        digest = create_file(temporary, [data])
        sync_file(temporary)
        _rename(temporary, path)
    except Exception:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)
    return digest


def json_bytes(value: Any) -> bytes:
    """Return indented JSON; `NaN` and `Infinity` are written as Python's reader accepts them."""
    return (json.dumps(value, indent=1) + "\n").encode()


def write_json(path: Path, value: Any) -> Digest:
    """Write a JSON file atomically and durably."""
    return write_file(path, json_bytes(value))


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Append whole lines to a log in one system call; `sync_file` makes them durable."""
    data = "".join(f"{line}\n" for line in lines).encode()
    with _opened("append", path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as descriptor:
        _write(descriptor, path, [data])


def truncate(path: Path, size: int) -> None:
    """Cut a file to its first `size` bytes, durably."""
    with _operation("truncate", path):
        os.truncate(path, size)
    sync_file(path)


def move(source: Path, target: Path) -> None:
    """Rename a file or directory durably; an existing target is refused."""
    if os.path.lexists(target):
        raise storage_error(FileExistsError(errno.EEXIST, "exists already", str(target)), target)
    _rename(source, target)
    sync_directory(target.parent)
    if source.parent != target.parent:
        sync_directory(source.parent)


def publish_directory(temporary: Path, final: Path) -> None:
    """Give a finished temporary directory its final name, with all its content on disk before the name is."""
    for folder, _, names in os.walk(temporary, topdown=False):
        for name in sorted(names):
            sync_file(Path(folder, name))
        sync_directory(Path(folder))
    move(temporary, final)


def remove_tree(path: Path) -> None:
    """Delete a file or directory; it loses its name first, so that no reader meets a part of it."""
    trash = path if path.name.startswith((TRASH, TEMPORARY)) else None
    if trash is None:
        trash = path.with_name(f"{TRASH}{path.name}-{uuid.uuid4().hex[:8]}")
        move(path, trash)
    if trash.is_dir() and not trash.is_symlink():
        for folder, folders, names in os.walk(trash, topdown=False):
            for name in names + [child for child in folders if Path(folder, child).is_symlink()]:
                _unlink(Path(folder, name))
            with _operation("rmdir", Path(folder)):
                os.rmdir(folder)
    else:
        _unlink(trash)


def _unlink(path: Path) -> None:
    with _operation("unlink", path):
        path.unlink(missing_ok=True)


def sweep(directory: Path) -> list[str]:
    """Delete what earlier processes left half written or half deleted, and return the names."""
    leftovers = sorted(path for path in directory.iterdir() if path.name.startswith((TEMPORARY, TRASH)))
    for path in leftovers:
        remove_tree(path)
    return [path.name for path in leftovers]


def discard(temporary: Path) -> None:
    """Delete a temporary directory after a failed write, as far as the disk allows."""
    shutil.rmtree(temporary, ignore_errors=True)


def hash_file(path: Path) -> Digest:
    """Return size and sha256 of a file's content."""
    sha256, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            sha256.update(block)
            size += len(block)
    return Digest(size, sha256.hexdigest())
