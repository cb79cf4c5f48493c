"""Compiles `kernels.cpp` for this machine, once, and loads it.

Not torch's C++ extensions, which take 40 s to compile and need Python's headers: plain functions of pointers take five.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILERS = ("c++", "g++", "clang++")
NATIVE = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
SECONDS_TO_COMPILE = 120


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """Return the compiled kernels, from the user's cache where they are; None where they cannot be compiled.

    torch must be imported before: the kernels then share its OpenMP threads instead of bringing their own.
    """
    compiler = find_compiler()
    if compiler is None:
        logger.info("no C++ compiler (%s): torch's operations instead of compiled ones", ", ".join(COMPILERS))
        return None
    try:
        return ctypes.CDLL(str(compiled(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        logger.warning("%s did not compile the kernels, torch's operations serve instead: %s", compiler, reason.strip())
        return None


def find_compiler() -> str | None:
    """Return the path of a C++ compiler, None where there is none."""
    return next((found for name in COMPILERS if (found := shutil.which(name))), None)


def compiled(compiler: str, target: str = NATIVE) -> Path:
    """Return the path of the library for a CPU, compiled now if this source was not yet, by this compiler.

    Raises OSError or subprocess.SubprocessError where that fails.
    """
    command = [compiler, *FLAGS, target, str(SOURCE)]
    sources = [file.read_text() for file in (SOURCE, *sorted(SOURCE.parent.glob("*.h")))]
    identity = "\n".join([*sources, *command, _version(compiler), _cpu_features()])
    path = _cache() / f"kernels-{hashlib.sha256(identity.encode()).hexdigest()[:20]}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        fresh = Path(folder) / path.name
        arguments = [*command, "-o", str(fresh)]
        subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=SECONDS_TO_COMPILE)
        os.replace(fresh, path)  # whole or not at all, whoever compiles beside us
    return path


def compiler_version() -> str | None:
    """Return what the C++ compiler calls itself; None where there is none."""
    compiler = find_compiler()
    if compiler is None:
        return None
    try:
        return _version(compiler).partition("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None


def _version(compiler: str) -> str:
    command = [compiler, "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "posttrain"


def _cpu_features() -> str:
    """Return what tells CPUs apart that cannot run each other's code: home folders are shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model"))}))
