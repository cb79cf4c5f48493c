"""How the peer is set up: the choices that are tried on a smaller batch, of which its fastest is measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.pairs import Side
from benchmarks.workloads import SMOL, WORKLOADS, Workload

PEER_DTYPES = ("float32", "bfloat16 autocast", "bfloat16 weights", "bfloat16 weights and autocast")
HOPELESS = 1 / 4  # of the peak in float32: products in bfloat16 that are slower than that are not tried


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """Choices that change the peer's speed and memory, and not its result."""

    dtype: str = "bfloat16 weights"
    padding_free: bool = False  # SFT: rows in one sequence, without padding, as packing makes them
    rows_per_forward: int | None = None  # rows, pairs or completions; None takes a step in one forward

    @property
    def weights_dtype(self) -> str:
        """Return the dtype of the frozen weights."""
        return "bfloat16" if "weights" in self.dtype else "float32"

    @property
    def autocast(self) -> bool:
        """Return whether products are cast to bfloat16."""
        return "autocast" in self.dtype

    def __str__(self) -> str:
        choices = [self.dtype]
        if self.padding_free:
            choices.append("padding-free")
        if self.rows_per_forward is not None:
            choices.append(f"{self.rows_per_forward} at a time")
        return ", ".join(choices)


def peer_dtypes(machine: Mapping[str, Any]) -> Sequence[str]:
    """Return the dtypes that are tried: float32 alone on a machine whose products in bfloat16 are emulated."""
    hopeless = machine["bfloat16_flops"] < HOPELESS * machine["float32_flops"]
    return PEER_DTYPES[:1] if hopeless else PEER_DTYPES


def full_workload(kind: str) -> Workload:
    """Return the workload on which settings are compared: the first of its kind."""
    return next(workload for workload in WORKLOADS if workload.kind == kind and workload.shape == SMOL)


def small_workload(kind: str) -> Workload:
    """Return the smaller batch on which dtypes are compared: a quarter of the full one."""
    workload = full_workload(kind)
    return replace(workload, rows=max(1 if kind == "grpo" else 2, workload.rows // 4))


def variants(best: PeerSettings, kind: str) -> list[PeerSettings]:
    """Return what is tried with the fastest dtype: all rows in one forward or fewer, and for SFT without padding.

    Fewer rows are faster on a CPU where TRL's head holds tokens x vocabulary several times over.
    """
    if kind in ("generate", "forward_backward"):
        return []
    sizes = (2, 1) if kind in ("dpo", "rm") else (4, 2)
    tried = [best, *(replace(best, rows_per_forward=size) for size in sizes)]
    return [*tried, *(replace(settings, padding_free=True) for settings in tried[:2])] if kind == "sft" else tried


def find_fastest(
    kind: str, run: Callable[[PeerSettings, Workload], Side], dtypes: Sequence[str] = PEER_DTYPES
) -> dict[str, Any]:
    """Return the fastest settings for a kind of work, and what every one that was tried took.

    First each dtype on a smaller batch, then, with the fastest of them, the variants on the full one.
    """
    small, full = small_workload(kind), full_workload(kind)
    batches = {settings: run(settings, small) for settings in map(PeerSettings, dtypes)}
    best = min(batches, key=lambda settings: batches[settings].median)
    sides = {settings: run(settings, full) for settings in variants(best, kind)}
    if sides:
        best = min(sides, key=lambda settings: sides[settings].median)
    return {
        "chosen": str(best),
        "settings": asdict(best),
        "small": {str(settings): side.to_json() for settings, side in batches.items()},
        "full": {str(settings): side.to_json() for settings, side in sides.items()},
    }
