"""What a machine's arithmetic and memory can do at most, measured: the yardstick for what a model reaches on it.

Floor 6: times torch's own kernels; knows no model.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from posttrain.models.devices import resolve_device, resolve_dtype
from posttrain.settings import ModelSettings

SECONDS = 0.6  # for each yardstick
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
    side = MATRIX_SIDE[device.type]
    matrix = torch.randn(side, side, device=device).to(dtype)
    product = torch.empty_like(matrix)
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return Machine(
        device=_name(device),
        dtype=str(dtype).removeprefix("torch."),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        tflops=2 * side**3 / _best_seconds(lambda: torch.mm(matrix, matrix, out=product), device) / 1e12,
        copy_gb_per_second=2 * COPIED_BYTES / _best_seconds(lambda: target.copy_(source), device) / 1e9,
    )


def _name(device: torch.device) -> str:
    return f"cuda, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the fewest seconds that the work took; the first time, which warms up, does not count."""
    best, end = float("inf"), time.monotonic() + SECONDS
    work()
    _wait(device)
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
