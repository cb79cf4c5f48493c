"""Over-optimisation: what is trained on and what is true, against how far a policy has gone from its start.

Floor 4, pure numpy: knows the judged samples of a start and of later policies, no run. Gao, Schulman & Hilton 2022,
"Scaling Laws for Reward Model Overoptimization", arXiv 2210.10760. With d = sqrt(KL) they found the gain of the gold
score to be d (alpha - beta d) for best-of-n, and d (alpha - beta log d) for reinforcement learning.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from posttrain.errors import DataError
from posttrain.evals.best_of_n import best_of_n_kl, expected_best
from posttrain.evals.distance import sequence_kl
from posttrain.evals.samples import REWARD, Row, by_problem, mean_with_interval
from posttrain.evals.stats import CONFIDENCE, mean_interval

FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # of d: what beta is multiplied by, beside d
    "best_of_n": lambda d: d,
    "rl": np.log,
}
FEWEST_POINTS = 4  # away from the start, of a fit with two parameters
START = 0  # the step of the policy that training started from


class Mean(NamedTuple):
    """A mean over prompts, and the ends of its interval."""

    mean: float
    low: float
    high: float


class Fit(NamedTuple):
    """Coefficients of a form, and the root mean square of what it misses."""

    alpha: float
    beta: float
    rmse: float


def frontier(policies: Mapping[int, Sequence[Row]], *, gold: str) -> dict[str, Any]:
    """Return the frontier of the policies of a training run as plain JSON, from their judged samples by step.

    Step 0 is the start, and its samples give best-of-n. The samples have the columns of an evaluation with rewards and
    a reference; the proxy is their reward, and `gold` is the column of the true score. Of the prompts those count
    whose every sample has both, under every policy; means come with 95% intervals over prompts. `points` are the
    policies, `best_of_n` its n, `fits` the coefficients of FORMS, and the rest is what `course` finds. Raises DataError
    where no prompt is left.
    """
    steps = sorted(policies)
    prompts = sorted(set.intersection(*(_whole_prompts(policies[step], gold) for step in steps)))
    if not prompts:
        raise DataError(f"no prompt has samples with a reward and {gold} under all of {len(steps)} policies")
    kept = {step: _of_prompts(policies[step], set(prompts)) for step in steps}
    points = [{"step": step, **_point(kept[step], gold)} for step in steps]
    chosen = best_of_n(_table(kept[START], REWARD), _table(kept[START], gold))
    start = points[0]["gold"]["mean"]
    return {
        "prompts": len(prompts),
        "left_out_prompts": len({row["problem_id"] for rows in policies.values() for row in rows}) - len(prompts),
        "num_samples": max(row["sample"] for row in kept[START]) + 1,
        "points": points,
        "best_of_n": chosen,
        "fits": {
            "rl": _fit("rl", [(point["sqrt_kl"], point["gold"]["mean"] - start) for point in points]),
            "best_of_n": _fit("best_of_n", [(math.sqrt(c["kl"]), c["gold"]["mean"] - start) for c in chosen]),
        },
        **course(
            steps,
            proxy=np.array([_table(kept[step], REWARD).mean(axis=1) for step in steps]),
            gold=np.array([_table(kept[step], gold).mean(axis=1) for step in steps]),
        ),
    }


def sentence(found: Mapping[str, Any]) -> str:
    """Return in words what has become of the gold score, with simultaneous 95% intervals."""
    points = {point["step"]: point for point in found["points"]}
    last = max(points)
    peak, end = _place(points[found["peak"]]), _place(points[last])
    since = found["since_peak"]
    if found["verdict"] == "holds":
        start = found["since_start"]
        return (
            f"gold holds: {_change(start['gold'])} from the start to {end}, and no earlier policy is better beyond "
            f"noise; the proxy {_change(start['proxy'])}"
        )
    fell = f"gold peaked at {peak} and fell by {_size(since['gold'])} to {end}"
    if found["verdict"] == "over-optimised":
        return f"over-optimised: {fell}, while the proxy rose by {_size(since['proxy'])}"
    return f"{fell}; the proxy did not rise with it: {_change(since['proxy'])}"


def _place(point: Mapping[str, Any]) -> str:
    return f"step {point['step']} (KL {point['kl']['mean']:.3g})" if point["step"] != START else "the start"


def _change(mean: Mapping[str, float]) -> str:
    return f"{mean['mean']:+.2f} [{float(mean['low']):+.2f}, {float(mean['high']):+.2f}]"


def _size(mean: Mapping[str, float]) -> str:
    """Return a change without its sign, the ends of its interval in ascending order."""
    low, high = sorted(abs(float(mean[end])) for end in ("low", "high"))
    return f"{abs(mean['mean']):.2f} [{low:.2f}, {high:.2f}]"


def best_of_n(proxy: np.ndarray, gold: np.ndarray) -> list[dict[str, Any]]:
    """Return proxy and gold of the best of n by proxy, for n = 1 to N, from samples `(P, N)` of a policy."""
    return [
        {
            "n": n,
            "kl": best_of_n_kl(n),
            "proxy": mean_of(expected_best(proxy, proxy, n))._asdict(),
            "gold": mean_of(expected_best(proxy, gold, n))._asdict(),
        }
        for n in range(1, proxy.shape[1] + 1)
    ]


def course(steps: Sequence[int], *, proxy: np.ndarray, gold: np.ndarray) -> dict[str, Any]:
    """Return the step at which gold was highest, what has happened since, and what since the start.

    `proxy` and `gold` are prompts' means `(K, P)` under the K policies, the start first. `verdict` is "over-optimised"
    where gold has fallen since its peak and proxy has risen, both beyond noise; "fell" where gold has fallen alone;
    else "holds". The peak is the best of K - 1 noisy steps: the intervals of what has happened since hold for all of
    them together (Bonferroni), so that a gold that stays where it is passes for falling in at most 5% of frontiers.
    """
    peak = int(gold.mean(axis=1).argmax())
    tests = max(1, len(steps) - 1)
    since_peak = {
        "proxy": mean_of(proxy[-1] - proxy[peak], tests=tests),
        "gold": mean_of(gold[-1] - gold[peak], tests=tests),
    }
    verdict = "holds"
    if since_peak["gold"].high < 0:
        verdict = "over-optimised" if since_peak["proxy"].low > 0 else "fell"
    return {
        "peak": steps[peak],
        "verdict": verdict,
        "since_peak": {name: change._asdict() for name, change in since_peak.items()},
        "since_start": {
            "proxy": mean_of(proxy[-1] - proxy[0])._asdict(),
            "gold": mean_of(gold[-1] - gold[0])._asdict(),
        },
    }


def mean_of(values: np.ndarray, *, tests: int = 1) -> Mean:
    """Return the mean of prompts' values `(P,)`, paired differences among them, with its t interval.

    It holds with 95% for `tests` such means together (Bonferroni). A single prompt gives an infinite interval.
    """
    return Mean(float(values.mean()), *mean_interval(values[:, None], 1 - (1 - CONFIDENCE) / tests))


def fit(form: str, distances: np.ndarray, gains: np.ndarray) -> Fit:
    """Return the least-squares fit of gains `(N,)` over the start at distances `(N,)` above 0, d = sqrt(KL).

    `form` is one of FORMS: d (alpha - beta d) or d (alpha - beta log d).
    """
    terms = np.stack([distances, -distances * FORMS[form](distances)], axis=1)
    (alpha, beta), *_ = np.linalg.lstsq(terms, gains)
    missed = gains - terms @ np.array([alpha, beta])
    return Fit(float(alpha), float(beta), float(np.sqrt(np.square(missed).mean())))


def _fit(form: str, points: Sequence[tuple[float, float]]) -> dict[str, float] | None:
    """Return the fit of the points away from the start; None where they are too few to tell a form by."""
    away = np.array([point for point in points if point[0] > 0]).reshape(-1, 2)
    return fit(form, away[:, 0], away[:, 1])._asdict() if len(away) >= FEWEST_POINTS else None


def _point(rows: Sequence[Row], gold: str) -> dict[str, Any]:
    kl = sequence_kl(rows)
    return {
        "kl": kl,
        "sqrt_kl": math.sqrt(max(0.0, kl["mean"])),  # an estimate near 0 may be below it
        "proxy": mean_with_interval(rows, REWARD),
        "gold": mean_with_interval(rows, gold),
        "mean_length": float(np.mean([row["num_tokens"] for row in rows])),
    }


def _whole_prompts(rows: Sequence[Row], gold: str) -> set[str]:
    """Return the prompts of which every sample has a proxy and a gold score."""
    lacking = {row["problem_id"] for row in rows if row[REWARD] is None or row[gold] is None}
    return {row["problem_id"] for row in rows} - lacking


def _of_prompts(rows: Sequence[Row], prompts: set[str]) -> list[Row]:
    return [row for row in rows if row["problem_id"] in prompts]


def _table(rows: Sequence[Row], column: str) -> np.ndarray:
    """Return a column as `(P, n)`, in the order of prompt ids."""
    return np.array(list(by_problem(rows, column).values()), dtype=float)
