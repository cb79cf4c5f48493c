"""Compiling once, and what happens where that is not possible."""

import logging
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from posttrain.kernels import library
from posttrain.kernels.library import COMPILERS, compiler_version, load_library


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    load_library.cache_clear()
    yield tmp_path / "cache" / "posttrain"
    load_library.cache_clear()


def put_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder.mkdir()
    compiler = folder / "c++"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")


@pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C++ compiler on this machine")
def test_it_is_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_library() is not None
    (compiled,) = cache.iterdir()
    written = compiled.stat().st_mtime_ns
    load_library.cache_clear()
    assert load_library() is not None
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [written]
    load_library.cache_clear()
    monkeypatch.setattr(library, "_cpu_features", lambda: "another machine")
    assert load_library() is not None
    assert len(list(cache.iterdir())) == 2


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.INFO):
        assert load_library() is None
    assert "no C++ compiler" in caplog.text
    assert compiler_version() is None


def test_a_compiler_that_fails_is_quoted(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put_compiler(tmp_path / "bin", monkeypatch, 'test "$1" = --version && exit 0; echo no such flag >&2; exit 1')
    assert load_library() is None
    assert "no such flag" in caplog.text
    assert list(cache.iterdir()) == []


def test_a_library_that_cannot_be_loaded_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put_compiler(tmp_path / "bin", monkeypatch, 'for last; do :; done; test "$1" = --version || echo junk > "$last"')
    assert load_library() is None
    assert "torch's operations serve instead" in caplog.text
