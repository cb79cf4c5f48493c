"""What PPO adapts from step to step: the coefficient of its KL penalty, and the scale of its scores.

Floor 0: plain numbers, immutable; each step gives the next state, which a checkpoint holds as it is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_ERROR = 0.2  # relative distance from the target that counts at most


@dataclass(frozen=True, slots=True)
class KlController:
    """The KL coefficient, moved towards the one that holds the KL at `target`; None holds the coefficient.

    Ziegler et al. 2019, arXiv 1909.08593, section 2.2. `target` and the KL that is shown must be on one scale: per
    sequence or per token.
    """

    coef: float
    target: float | None = None
    horizon: int = 10_000  # sequences

    def after(self, kl: float, num_sequences: int) -> "KlController":
        """Return the controller after a batch of sequences with this KL; a KL that is not finite changes nothing."""
        if self.target is None or not math.isfinite(kl):
            return self
        error = max(-MAX_ERROR, min(MAX_ERROR, kl / self.target - 1))
        return KlController(self.coef * (1 + error * num_sequences / self.horizon), self.target, self.horizon)


@dataclass(frozen=True, slots=True)
class RunningMoments:
    """Mean and spread of all scores so far (Chan et al. 1979: batches are joined without loss of precision)."""

    count: int = 0
    mean: float = 0.0
    sum_of_squares: float = 0.0  # of the distances from the mean

    def after(self, values: Sequence[float]) -> "RunningMoments":
        """Return the moments with these values among them."""
        if not values:
            return self
        count = self.count + len(values)
        mean_of_batch = math.fsum(values) / len(values)
        distance = mean_of_batch - self.mean
        of_batch = math.fsum((value - mean_of_batch) ** 2 for value in values)
        between = distance**2 * self.count * len(values) / count
        return RunningMoments(
            count, self.mean + distance * len(values) / count, self.sum_of_squares + of_batch + between
        )

    @property
    def std(self) -> float:
        """The unbiased deviation; 1 where there is none yet."""
        if self.count < 2 or self.sum_of_squares == 0:
            return 1.0
        return math.sqrt(self.sum_of_squares / (self.count - 1))
