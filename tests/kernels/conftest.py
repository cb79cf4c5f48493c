"""The kernels as compiled for this CPU, and for older ones whose instructions it has too."""

import ctypes
import functools
import itertools
import platform
import subprocess

import pytest
import torch

from posttrain.kernels.library import NATIVE, compiled, find_compiler, load_library
from posttrain.kernels.operations import Kernels

TARGETS = [NATIVE]
if platform.machine() in ("x86_64", "AMD64"):
    TARGETS += ["-march=x86-64"]  # vectors of 4 floats, in pairs of pairs
    if torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        TARGETS += ["-march=x86-64-v3"]  # of 8, in pairs
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=itertools.product(TARGETS, DTYPES), ids=str)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    torch.manual_seed(0)
    return kernels_for(*request.param)


def kernels_for(target: str, dtype: torch.dtype) -> Kernels:
    """Return the kernels for a CPU; skips where they cannot be compiled for it."""
    library = _library(target)
    if library is None:
        pytest.skip(f"no C++ compiler on this machine, or none that knows {target}")
    return Kernels(library, dtype)


@functools.cache
def _library(target: str) -> ctypes.CDLL | None:
    if target == NATIVE:
        return load_library()
    compiler = find_compiler()
    try:
        return None if compiler is None else ctypes.CDLL(str(compiled(compiler, target)))
    except (OSError, subprocess.SubprocessError):
        return None
