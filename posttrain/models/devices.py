"""Where to compute and in which precision: the one place that decides both.

Floor 1: knows torch's devices; no model.
"""

import ctypes
import functools
import logging
import platform

import torch

from posttrain.errors import ModelError

logger = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_device(name: str = "auto") -> torch.device:
    """Return the device of a setting; "auto" takes cuda, then mps, then cpu. Raises ModelError if it is absent."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, present in available.items() if present)
    if not available[name]:
        raise ModelError(f"device {name} was asked for, and this machine has none", fix='device = "auto"')
    return torch.device(name)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the precision of a setting; "auto" takes bfloat16 where `device` multiplies it fast, else float32.

    Tells once where bfloat16 is asked for of a CPU or GPU that emulates it.
    """
    fast = multiplies_bfloat16_fast(device)
    if name == "bfloat16" and not fast and device.type != "mps":
        _tell_emulated(device.type)
    if name != "auto":
        return DTYPES[name]
    return torch.bfloat16 if fast else torch.float32


@functools.cache
def _tell_emulated(device: str) -> None:
    logger.warning(
        "this %s has no instructions for bfloat16 and emulates it, many times slower than float32; "
        'model.dtype = "auto" takes float32 here',
        device,
    )


def multiplies_bfloat16_fast(device: torch.device) -> bool:
    """Say whether the device has instructions for bfloat16; products without them are emulated."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        # Without these instructions bfloat16 is emulated: several times slower than float32.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def keep_freed_memory() -> None:
    """Let the process keep the memory of freed tensors of up to 32 MiB for the next ones, where its C library is glibc.

    By default glibc returns it to the system at once, and every operation pays for fresh pages again: a GRPO update of
    SmolLM2-135M's shape took 2.23 and 2.41 s without, 1.95 and 2.18 s with it (2 cores, bf16), in the same memory.
    """
    if _has_glibc():
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the largest that glibc takes
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Give the memory of freed tensors to the system: for after work that is done once."""
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"
