"""Deals rows out in epochs: every row once in each, in an order derived from the seed, resumable at any point.

Floor 1. Its position is the epoch and the set of ids consumed in it, not a count: each row's place in an epoch is a
hash of its own id, so rows added or removed between two runs move no other row and repeat none.

Epochs follow one another without a seam: a batch that an epoch cannot fill goes on into the next. A short batch at
the end of every epoch would give its rows more weight, since an update takes the mean over its batch, and GRPO needs
as many prompts at each step. A stage that counts in epochs asks for fewer rows at its last step (`stages/sft`).
"""

from collections import deque
from collections.abc import Sequence
from typing import Any

from posttrain.errors import CheckpointError, DataError
from posttrain.seeds import derive_seed


class Loader:
    """Deals out the ids of rows; raises DataError when there are none or one repeats."""

    def __init__(self, ids: Sequence[str], seed: int) -> None:
        self._ids = frozenset(ids)
        self._seed = seed
        if not ids:
            raise DataError("no rows to deal out")
        if len(self._ids) < len(ids):
            raise DataError(f"{len(ids) - len(self._ids)} rows have the id of another row")
        self._begin_epoch(0, consumed=set())

    @property
    def epoch(self) -> float:
        """Passes over the rows so far: 1.5 is half-way through the second."""
        return self._epoch + 1 - len(self._pending) / len(self._ids)

    def next(self, n: int) -> list[str]:
        """Return the next n ids; none twice unless n is more than there are, also where a new epoch begins.

        A row of the new epoch that the batch already holds from the old one waits for the next batch.
        """
        batch: set[str] = set()
        dealt: list[str] = []
        for _ in range(n):
            if not self._pending:
                self._begin_epoch(self._epoch + 1, consumed=set())
            if len(batch) == len(self._ids):
                batch.clear()
            row_id = self._take_first_not_in(batch)
            batch.add(row_id)
            dealt.append(row_id)
        return dealt

    def state(self) -> dict[str, Any]:
        """Return the position as JSON-able values."""
        return {"epoch": self._epoch, "consumed": sorted(self._consumed)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go to a position that `state` gave, whatever rows came or went since; raise CheckpointError on a bad one."""
        epoch, consumed = state.get("epoch"), state.get("consumed")
        if not isinstance(epoch, int) or epoch < 0 or not isinstance(consumed, list):
            raise CheckpointError(f"expected a loader state with epoch and consumed, came {str(state)[:200]}")
        self._begin_epoch(epoch, consumed=set(consumed))

    def _begin_epoch(self, epoch: int, *, consumed: set[str]) -> None:
        self._epoch = epoch
        self._consumed = consumed
        draws = {row_id: derive_seed(self._seed, "epoch", epoch, row_id) for row_id in self._ids}
        order = sorted(self._ids, key=lambda row_id: (draws[row_id], row_id))
        self._pending = deque(row_id for row_id in order if row_id not in consumed)

    def _take_first_not_in(self, batch: set[str]) -> str:
        waiting = []
        while self._pending[0] in batch:
            waiting.append(self._pending.popleft())
        row_id = self._pending.popleft()
        self._pending.extendleft(reversed(waiting))
        self._consumed.add(row_id)
        return row_id
