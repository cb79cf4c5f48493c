"""What this machine offers a run: versions, devices, precision, memory, disk, offline state.

Floor 6: reads the machine, changes nothing.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from posttrain.runs.environment import describe_environment

GIB = 2**30


def diagnose(directory: str | Path = ".") -> dict[str, Any]:
    """Return facts to paste into a report; sizes are in GiB, and those of the disk are of `directory`'s."""
    import torch

    from posttrain.kernels.library import load_library
    from posttrain.models.devices import resolve_device, resolve_dtype

    device = resolve_device()
    described = describe_environment(seed=0)
    versions = {name: value for name, value in described.items() if name not in ("seed", "command", "threads", "cpus")}
    disk = shutil.disk_usage(directory)
    return {
        **versions,
        "device": str(device),
        "devices": _devices(),
        "dtype auto": str(resolve_dtype("auto", device)).removeprefix("torch."),
        "compiled kernels": "yes" if load_library() is not None else "no: torch's operations serve, slower on a CPU",
        "usable cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "memory GiB": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, 1),
        "disk free GiB": round(disk.free / GIB, 1),
        "disk total GiB": round(disk.total / GIB, 1),
        "offline": any(
            os.environ.get(name, "0") not in ("", "0") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        ),
        "hub cache": _hub_cache(),
    }


def _devices() -> list[str]:
    """Return the devices that torch can use, accelerators with name and memory."""
    import torch

    found = ["cpu"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        bfloat16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
        found.append(f"cuda:{index} {properties.name}, {properties.total_memory / GIB:.0f} GiB, {bfloat16}")
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def _hub_cache() -> str:
    """Return where downloaded models lie and how many there are."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    return f"{cache} ({len(list(cache.glob('models--*')))} models)"
