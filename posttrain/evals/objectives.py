"""What a policy stage trains on and what says the truth, in the rows of its metrics; and where the two part.

Floor 4, pure numpy: one reading for the health of a run and for its report.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.evals.splits import ALPHA, Split, find_split
from posttrain.rewards.grades import GRADES

FIRST = 10  # steps whose deviation among completions is the unit of a gain

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Objective:
    """The rewards of a policy stage with their weights, as its settings say."""

    rewards: Mapping[str, float]
    gold_reward: str | None = None
    combination: str = "sum"

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Objective":
        """Return the objective in a stage's settings, as settings.json has them."""
        return cls(settings["rewards"], settings.get("gold_reward"), settings.get("reward_combination", "sum"))

    @property
    def gold(self) -> str | None:
        """The reward that says the truth: the one that the settings name, or one that grades and is only watched."""
        if self.gold_reward is not None:
            return self.gold_reward
        return next((name for name, weight in self.rewards.items() if weight == 0 and name in GRADES), None)

    @property
    def graded(self) -> str | None:
        """The reward that says the truth, trained on or not."""
        return self.gold or next((name for name in self.rewards if name in GRADES), None)

    @property
    def weights(self) -> dict[str, float]:
        """The rewards that are trained on."""
        return {name: weight for name, weight in self.rewards.items() if weight}

    def proxy(self, rows: Sequence[Row]) -> np.ndarray:
        """Return what is trained on, (T,): the reward, or the parts' weighted sum where each is normalised by group."""
        if self.combination != "normalized_sum":
            return values(rows, "reward")
        means = [weight * values(rows, f"rewards/{name}/mean") for name, weight in self.weights.items()]
        return np.asarray(np.sum(means, axis=0))

    def proxy_spread(self, rows: Sequence[Row]) -> float:
        """Return the deviation of that among the completions of a step, in the first steps."""
        if self.combination != "normalized_sum":
            return float(values(rows[:FIRST], "reward_std").mean())
        stds = [weight * values(rows[:FIRST], f"rewards/{name}/std").mean() for name, weight in self.weights.items()]
        return float(np.linalg.norm(stds))


def values(rows: Sequence[Row], metric: str) -> np.ndarray:
    """Return a metric at every row, (T,), NaN where it has no value."""
    return np.array([row.get(metric, np.nan) for row in rows], dtype=float)


def find_parting(
    rows: Sequence[Row], proxy: np.ndarray, gold: str, *, proxy_spread: float, known: bool = False, alpha: float = ALPHA
) -> Split | None:
    """Return where a course (T,) and that of the reward `gold` have parted, by the rows that have both; `at` is a step.

    `known` and `alpha` are those of `find_split`.
    """
    truth = values(rows, f"rewards/{gold}/mean")
    kept = np.flatnonzero(np.isfinite(proxy) & np.isfinite(truth))
    spreads = values(rows, f"rewards/{gold}/std")[kept][:FIRST]
    found = find_split(
        proxy[kept],
        truth[kept],
        proxy_spread=proxy_spread,
        gold_spread=float(spreads.mean()) if len(spreads) else 0.0,
        ceiling=1.0 if gold in GRADES else None,
        known=known,
        alpha=alpha,
    )
    return None if found is None else found._replace(at=int(rows[kept[found.at]]["step"]))
