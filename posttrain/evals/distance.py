"""How far a model is from a reference: the KL that log-probs of its own completions estimate.

Floor 4, pure numpy. Of completions sampled at temperature 1 from the whole vocabulary, log(policy / reference), the sum
of k1 over the tokens (`algorithms/tokens`), is an unbiased estimate of KL(policy || reference) up to the token limit.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from posttrain.evals.samples import Row, by_problem, mean_with_interval
from posttrain.evals.stats import CONFIDENCE
from posttrain.settings import SamplingSettings

LOG_RATIO = "log_ratio"  # a column: log(policy / reference) of a completion, in nats


def with_log_ratio(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the column LOG_RATIO."""
    return [{**row, LOG_RATIO: row["policy_logprob"] - row["ref_logprob"]} for row in rows]


def summarise_distance(rows: Sequence[Row], sampling: SamplingSettings) -> dict[str, Any]:
    """Return the KL to the reference with its 95% intervals, clustered by problem, and the policy's mean entropy.

    `kl` is of a completion and of a token, where tokens weigh the same. `kl_is_estimate` is False where completions
    were not sampled from the policy itself: greedy, at another temperature, or with a cut vocabulary. The numbers are
    then the log-ratios of those texts and no KL.
    """
    rows = with_log_ratio(rows)
    return {
        "kl": {"sequence": mean_with_interval(rows, LOG_RATIO), "token": _per_token(rows)},
        "kl_is_estimate": samples_itself(sampling),
        "mean_entropy": float(np.mean([row["entropy"] for row in rows])),
    }


def samples_itself(sampling: SamplingSettings) -> bool:
    """Return whether completions are sampled from the whole distribution at temperature 1."""
    return (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1.0, 1.0, 0, 0.0)


def _per_token(rows: Sequence[Row]) -> dict[str, float]:
    """Return all log-ratios over all tokens, with the interval of a ratio of two means of problems, linearised."""
    ratios = np.array([np.sum(values) for values in by_problem(rows, LOG_RATIO).values()])
    tokens = np.array([np.sum(values) for values in by_problem(rows, "num_tokens").values()])
    mean = float(ratios.sum() / tokens.sum())
    if len(ratios) < 2:
        return {"mean": mean, "low": -math.inf, "high": math.inf}
    error = float((ratios - mean * tokens).std(ddof=1)) / (float(tokens.mean()) * math.sqrt(len(ratios)))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(ratios) - 1)) * error
    return {"mean": mean, "low": mean - half, "high": mean + half}
