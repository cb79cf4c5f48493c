"""The sequences an engine is decoding: a row of tokens, log-probs and uniform numbers for each.

Floor 2: tensors only; knows neither models nor tokenizers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from posttrain.engines.sampling import Sampled, exact_dtype, uniforms
from posttrain.settings import SamplingSettings


class Branch(NamedTuple):
    """Which completion of a request a row decodes, and its seed."""

    prompt_index: int
    sample_index: int
    seed: int


class Rows:
    """State of the decoding sequences; live rows are the first `len(rows)`, in no particular order."""

    def __init__(self, capacity: int, sampling: SamplingSettings, device: torch.device) -> None:
        max_length = sampling.max_completion_length
        self.branches: list[Branch] = []
        self.lengths = torch.zeros(capacity, dtype=torch.long, device=device)  # tokens sampled so far
        self._sampling = sampling
        self._ids = torch.zeros(capacity, max_length, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(capacity, max_length, device=device)
        self._uniforms = torch.zeros(capacity, max_length, dtype=exact_dtype(device), device=device)

    def __len__(self) -> int:
        return len(self.branches)

    def enter(self, branches: Sequence[Branch]) -> slice:
        """Append rows for `branches`, nothing sampled yet, and return where they are."""
        rows = slice(len(self), len(self) + len(branches))
        self.lengths[rows] = 0
        if self._sampling.temperature > 0:
            draws = [uniforms(branch.seed, self._sampling.max_completion_length) for branch in branches]
            self._uniforms[rows] = torch.from_numpy(np.stack(draws)).to(self._uniforms)
        self.branches.extend(branches)
        return rows

    @property
    def latest(self) -> Tensor:
        """The last id of each live row, `(B,)`."""
        return self._ids[: len(self)].gather(1, self.lengths[: len(self), None] - 1).squeeze(1)

    def next_uniforms(self, rows: slice) -> Tensor:
        """Return the uniform number `(B,)` that each of `rows` spends on its next token."""
        return self._uniforms[rows].gather(1, self.lengths[rows, None]).squeeze(1)

    def append(self, rows: slice, sampled: Sampled) -> None:
        """Append one sampled token to each of `rows`."""
        position = self.lengths[rows, None]
        self._ids[rows].scatter_(1, position, sampled.ids[:, None])
        self._logprobs[rows].scatter_(1, position, sampled.logprobs[:, None])
        self.lengths[rows] += 1

    def tails(self, rows: slice, width: int) -> Tensor:
        """Return the last `width` ids of each of `rows`, `(B, width)`, with -1 before the first one."""
        positions = self.lengths[rows, None] + torch.arange(-width, 0, device=self.lengths.device)
        return self._ids[rows].gather(1, positions.clamp(min=0)).where(positions >= 0, -1)

    def sequence(self, row: int, length: int) -> tuple[list[int], list[float]]:
        """Return the ids and log-probs of one row."""
        return self._ids[row, :length].tolist(), self._logprobs[row, :length].tolist()

    def keep(self, kept: int, sources: Tensor, destinations: Tensor) -> None:
        """Move rows `sources` over `destinations`, then drop all but the first `kept`."""
        for state in (self.lengths, self._ids, self._logprobs, self._uniforms):
            state[destinations] = state[sources]
        for source, destination in zip(sources.tolist(), destinations.tolist(), strict=True):
            self.branches[destination] = self.branches[source]
        del self.branches[kept:]
