"""The machine: its matrix peaks and memory bandwidth, measured, and the versions of what runs on it."""

import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")
SIZES = (512, 1024, 2048, 4096)
LONGEST_SECONDS = 1.0  # of a product; where it takes more, larger ones are not tried
REPEATS = 3
STREAMED_BYTES = 2**30


def describe_machine(threads: int) -> dict[str, Any]:
    """Return processor, memory, threads and versions."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "bfloat16_instructions": bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def processor() -> str:
    """Return the name of the processor."""
    file = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in file.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class SquareProduct(NamedTuple):
    """A product of two square matrices, by which the machine's matrix peak is measured."""

    dtype: str
    size: int

    def flops(self) -> float:
        """Return its operations a second just now."""
        a, b = torch.randn(2, self.size, self.size).to(getattr(torch, self.dtype)).unbind()
        return 2 * self.size**3 / _fastest(lambda: a @ b)


def matrix_peak(dtype: str) -> tuple[float, SquareProduct]:
    """Return the operations a second of the fastest of products of several sizes, and which one it is."""
    peaks: list[tuple[float, SquareProduct]] = []
    for product in (SquareProduct(dtype, size) for size in SIZES):
        peaks.append((product.flops(), product))
        if 2 * product.size**3 / peaks[-1][0] > LONGEST_SECONDS:
            break
    return max(peaks, key=lambda peak: peak[0])


def bandwidth() -> float:
    """Return the bytes a second at which memory is read by a sum."""
    values = torch.ones(STREAMED_BYTES // 4)
    return STREAMED_BYTES / _fastest(values.sum)


def _fastest(run: Callable[[], object]) -> float:
    run()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
