"""What a machine's arithmetic and memory can do at most, measured: the yardstick for what a model reaches on it.

Floor 6: times torch's own kernels; knows no model.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from posttrain.models.devices import resolve_device, resolve_dtype
from posttrain.settings import ModelSettings

SECONDS = 0.6  # for each yardstick
SMALL_SIDE = 256
MATRIX_SIDE = {"cpu": 2048, "mps": 4096, "cuda": 8192}  # large enough for the peak, small enough for a laptop
COPIED_BYTES = 2**28  # more than the caches hold


@dataclass(frozen=True, slots=True)
class Machine:
    """One device in one precision."""

    device: str
    dtype: str
    cores: int  # that this process may use
    threads: int  # that torch uses
    tflops: float  # of a large matrix product
    copy_gb_per_second: float  # read and written


def measure_machine(model: ModelSettings) -> Machine:
    """Measure the device and precision that a model's settings ask for. Raises ModelError where there is none."""
    device = resolve_device(model.device)
    dtype = resolve_dtype(model.dtype, device)
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Machine(
        device=_name(device),
        dtype=str(dtype).removeprefix("torch."),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        tflops=_tflops(device, dtype),
        copy_gb_per_second=2 * COPIED_BYTES / _best_seconds(lambda: target.copy_(source), device) / 1e9,
    )


def _tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the speed of a large matrix product; of a smaller one where the device emulates the precision."""

    def product(side: int) -> Callable[[], object]:
        matrix = torch.randn(side, side, device=device).to(dtype)
        return partial(torch.mm, matrix, matrix, out=torch.empty_like(matrix))

    side = SMALL_SIDE
    while side < MATRIX_SIDE[device.type] and _best_seconds(product(side), device, 0.0) < SECONDS / 20:
        side *= 2
    return 2 * side**3 / _best_seconds(product(side), device) / 1e12


def _name(device: torch.device) -> str:
    return f"cuda, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def _best_seconds(work: Callable[[], object], device: torch.device, seconds: float = SECONDS) -> float:
    """Return the fewest seconds that the work took; the first time, which warms up, does not count."""
    work()
    _wait(device)
    best, end = float("inf"), time.monotonic() + seconds
    while time.monotonic() < end or best == float("inf"):
        started = time.perf_counter()
        work()
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
