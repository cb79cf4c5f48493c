"""How the peer is set up: the choices that are tried on a smaller batch, of which its fastest is measured."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.pairs import Side
from benchmarks.workloads import SMOL, WORKLOADS, Workload

PEER_DTYPES = ("float32", "bfloat16 autocast", "bfloat16 weights", "bfloat16 weights and autocast")


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """Choices that change the peer's speed and memory, and not its result."""

    dtype: str = "bfloat16 weights"
    padding_free: bool = False  # SFT: rows in one sequence, without padding, as packing makes them
    micro_batches: int = 1  # forwards that a step is cut into
    gradient_checkpointing: bool = False

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
        if self.micro_batches > 1:
            choices.append(f"{self.micro_batches} forwards")
        if self.gradient_checkpointing:
            choices.append("gradient checkpointing")
        return ", ".join(choices)


def tuning_workload(kind: str) -> Workload:
    """Return the smaller batch on which settings are compared: half of the first workload of its kind."""
    workload = next(workload for workload in WORKLOADS if workload.kind == kind and workload.shape == SMOL)
    return replace(workload, rows=max(2, workload.rows // 2))


def variants(best: PeerSettings, kind: str) -> list[PeerSettings]:
    """Return what is tried with the fastest dtype: fewer rows in a forward, packing, and the leanest in memory."""
    if kind in ("generate", "forward_backward"):
        return []
    tried = [replace(best, micro_batches=2), replace(best, gradient_checkpointing=True)]
    return [*tried, replace(best, padding_free=True)] if kind == "sft" else tried


def find_fastest(kind: str, run: Callable[[PeerSettings], Side]) -> dict[str, Any]:
    """Return the fastest settings for a kind of work, and what every one that was tried took.

    First each dtype, then, with the fastest of them, the variants.
    """
    sides = {settings: run(settings) for settings in map(PeerSettings, PEER_DTYPES)}
    best_dtype = min(sides, key=lambda settings: sides[settings].median)
    sides |= {settings: run(settings) for settings in variants(best_dtype, kind)}
    best = min(sides, key=lambda settings: sides[settings].median)
    tried = {str(settings): side.to_json() for settings, side in sides.items()}
    return {"chosen": str(best), "settings": asdict(best), "tried": tried}
