"""What the health checks read: the rows of metrics.jsonl so far, and the rollouts of the present step.

Floor 5: means, differences and groups of plain values; no words.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, groupby
from statistics import fmean

import numpy as np

from posttrain.evals.objectives import Objective, Row, find_parting, values
from posttrain.evals.splits import Split, rose
from posttrain.runs.findings import RolloutPlace
from posttrain.settings import PolicyStageSettings

NOW = 5  # steps whose mean is the present state
LONG = 10  # steps at the beginning, and now, whose means are compared
SHOWN = 5  # rollouts named with a finding
EQUAL = 1e-5  # rewards that differ by no more, relative to the largest, are equal (as for the advantages)


@dataclass(frozen=True)
class Course:
    """A run up to the present step."""

    settings: PolicyStageSettings
    rows: Sequence[Row]
    rollouts: Sequence[Row]

    def holds(self, check: str) -> bool:
        """Whether a check had found something at the step before."""
        return len(self.rows) > 1 and check in self.rows[-2].get("health", ())

    def values(self, metric: str) -> np.ndarray:
        """Return a metric at every step, NaN where it has no value."""
        return values(self.rows, metric)

    def now(self, metric: str, steps: int = NOW) -> float:
        """Return a metric's mean over the latest steps; NaN where there are fewer, or one has no value."""
        return _mean(self.rows[-steps:], metric, steps)

    def first(self, metric: str, steps: int = LONG) -> float:
        """Return a metric's mean over the first steps, NaN as in `now`."""
        return _mean(self.rows[:steps], metric, steps)

    @cached_property
    def objective(self) -> Objective:
        """What is trained on, and what says the truth."""
        return Objective(self.settings.rewards, self.settings.gold_reward, self.settings.reward_combination)

    @property
    def gold(self) -> str | None:
        """The reward that says the truth and is not trained on."""
        return self.objective.gold

    @property
    def graded(self) -> str | None:
        """The reward that says the truth, trained on or not."""
        return self.objective.graded

    def rose(self, metric: str) -> bool:
        """Whether a metric is higher now than in the first steps, beyond the noise from step to step."""
        return rose(self.values(metric), LONG)

    def split(self, proxy: np.ndarray, gold: str, *, proxy_spread: float, check: str) -> Split | None:
        """Return where a course and that of a reward have parted, by the steps that have both; `at` is a step."""
        return find_parting(self.rows, proxy, gold, proxy_spread=proxy_spread, known=self.holds(check))

    def proxy(self) -> np.ndarray:
        """Return what is trained on, at every step."""
        return self.objective.proxy(self.rows)

    def proxy_spread(self) -> float:
        """Return the deviation of that among the completions of a step, in the first steps."""
        return self.objective.proxy_spread(self.rows)

    def by_reward(self) -> list[Row]:
        """Return this step's rollouts, the highest reward first, without those that have none."""
        return sorted((row for row in self.rollouts if row["reward"] is not None), key=lambda row: -row["reward"])

    def longer_is_better(self) -> float | None:
        """Return the share of this step's pairs to one prompt in which the longer completion has the higher reward."""
        pairs = [
            (one["length"] - other["length"]) * (one["reward"] - other["reward"])
            for group in groups_of(self.rollouts)
            for one, other in combinations([row for row in group if row["reward"] is not None], 2)
        ]
        told = [product for product in pairs if product]
        return sum(product > 0 for product in told) / len(told) if told else None


def groups_of(rollouts: Iterable[Row]) -> list[list[Row]]:
    """Return the rollouts of each prompt; they lie together."""
    return [list(group) for _, group in groupby(rollouts, key=lambda row: row["prompt_id"])]


def flat_groups(rollouts: Iterable[Row]) -> list[list[Row]]:
    """Return the groups whose rewards are equal, or of which none has a reward."""

    def flat(group: Sequence[Row]) -> bool:
        rewards = [row["reward"] for row in group if row["reward"] is not None]
        return not rewards or max(rewards) - min(rewards) <= EQUAL * max(1.0, *map(abs, rewards))

    return [group for group in groups_of(rollouts) if flat(group)]


def duplicates(rollouts: Iterable[Row]) -> list[Row]:
    """Return the rollouts whose text another one of the same prompt has too."""
    found: list[Row] = []
    for group in groups_of(rollouts):
        counts = Counter(row["completion"] for row in group)
        found += [row for row in group if counts[row["completion"]] > 1]
    return found


def places(rollouts: Sequence[Row]) -> tuple[RolloutPlace, ...]:
    """Return where the first few of these lie."""
    return tuple(RolloutPlace(row["prompt_id"], row["sample"]) for row in rollouts[:SHOWN])


def _mean(rows: Sequence[Row], metric: str, steps: int) -> float:
    values = [float(row.get(metric, np.nan)) for row in rows]
    return fmean(values) if len(values) == steps else float("nan")
