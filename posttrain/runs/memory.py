"""The most memory that this process held since it was last asked to count anew.

Floor 1: the system's own numbers, and those of torch where it is loaded.
"""

import resource
import sys
from contextlib import suppress
from pathlib import Path


def begin_peak() -> int:
    """Let peaks count from here where the system can (Linux, CUDA), and return the resident bytes, or their peak."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: the peak is what is resident now
    return resident_peak()


def resident_peak() -> int:
    """Return the most bytes that were resident: since `begin_peak` on Linux, elsewhere since the process started."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def accelerator_peak() -> int:
    """Return the most bytes that torch held on a CUDA device; 0 where it uses none."""
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_allocated() if torch is not None and torch.cuda.is_initialized() else 0
