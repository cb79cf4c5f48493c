import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from posttrain.errors import StorageError
from posttrain.runs import durable


def test_write_file_returns_the_digest_and_leaves_nothing_else(tmp_path: Path) -> None:
    digest = durable.write_file(tmp_path / "a.json", b"one")
    assert digest == durable.Digest(3, hashlib.sha256(b"one").hexdigest()) == durable.hash_file(tmp_path / "a.json")
    durable.write_file(tmp_path / "a.json", b"")
    assert (tmp_path / "a.json").read_bytes() == b""
    assert os.listdir(tmp_path) == ["a.json"]


def test_killed_anywhere_in_write_file_shows_the_old_or_the_new(
    tmp_path: Path, count_operations: Callable, die_at: Callable
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    operations = count_operations(lambda: durable.write_file(tmp_path / "b.txt", b"new"))
    assert [operation.kind for operation in operations] == ["create", "write", "sync", "rename", "sync_directory"]
    for index, operation in enumerate(operations):
        for moment in ("before", "after"):
            path.write_bytes(b"old")
            assert die_at(lambda: durable.write_file(path, b"new"), index, moment)
            renamed = index > 3 or (index == 3 and moment == "after")
            assert path.read_bytes() == (b"new" if renamed else b"old"), (operation, moment)
    assert durable.sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_a_storage_error_with_a_fix_and_keeps_the_old(
    tmp_path: Path, plant: Callable, code: int
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")

    def full(operation: durable.Operation, moment: str) -> None:
        if operation.kind == "write":
            raise OSError(code, os.strerror(code))

    with plant(full), pytest.raises(StorageError, match=os.strerror(code)) as caught:
        durable.write_file(path, b"new")
    assert "df -h" in caught.value.fix
    assert os.listdir(tmp_path) == ["a.txt"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at inline_container.cc:659] . PytorchStreamWriter failed writing file data/0: file write failed",
        "Error while serializing: I/O error: No space left on device (os error 28)",
    ],
)
def test_serializers_that_hide_a_full_disk(tmp_path: Path, message: str) -> None:
    with pytest.raises(StorageError), durable.storage_errors(tmp_path):
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="size mismatch"), durable.storage_errors(tmp_path):
        raise RuntimeError("size mismatch")


def test_publish_refuses_an_existing_target_and_remove_tree_follows_no_link(tmp_path: Path) -> None:
    temporary = durable.temporary_directory(tmp_path, "x")
    durable.create_file(temporary / "a", [b"1", b"23"])
    (tmp_path / "final").mkdir()
    with pytest.raises(StorageError, match="exists already"):
        durable.publish_directory(temporary, tmp_path / "final")
    (tmp_path / "final").rmdir()
    (temporary / "sub").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/keep").write_text("")
    (temporary / "sub/link").symlink_to(tmp_path / "outside")
    durable.remove_tree(temporary)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["keep", "outside"]


def test_make_directory_syncs_every_new_name(tmp_path: Path, count_operations: Callable) -> None:
    operations = count_operations(lambda: durable.make_directory(tmp_path / "a/b"))
    assert [(o.kind, o.path.name) for o in operations] == [
        ("mkdir", "a"),
        ("sync_directory", tmp_path.name),
        ("mkdir", "b"),
        ("sync_directory", "a"),
    ]
