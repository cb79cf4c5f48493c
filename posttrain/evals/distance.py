"""How far a model is from a reference: the KL that log-probs of its own completions estimate.

Floor 4, pure numpy. Of completions sampled at temperature 1 from the whole vocabulary, log(policy / reference), the sum
of k1 over the tokens (`algorithms/tokens`), is an unbiased estimate of KL(policy || reference) up to the token limit.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from posttrain.evals.samples import Row, by_problem
from posttrain.evals.stats import mean_interval
from posttrain.settings import SamplingSettings


def summarise_distance(rows: Sequence[Row], sampling: SamplingSettings) -> dict[str, Any]:
    """Return the KL to the reference with its 95% intervals, clustered by problem, and the policy's mean entropy.

    `kl` is of a completion and of a token, where tokens weigh the same. `kl_is_estimate` is False where completions
    were not sampled from the policy itself: greedy, at another temperature, or with a cut vocabulary. The numbers are
    then the log-ratios of those texts and no KL.
    """
    return {
        "kl": {"sequence": sequence_kl(rows), "token": token_kl(rows)},
        "kl_is_estimate": samples_itself(sampling),
        "mean_entropy": float(np.mean([row["entropy"] for row in rows])),
    }


def distance_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return the distance in a line; none of an evaluation without a reference."""
    if "kl" not in summary:
        return []
    kls = (summary["kl"]["sequence"], summary["kl"]["token"])
    sequence, token = (f"{kl['mean']:.3g} (95% CI {kl['low']:.3g} to {kl['high']:.3g})" for kl in kls)
    name = "KL" if summary["kl_is_estimate"] else "log-ratio, no KL of samples that are greedy or cut,"
    return [f"{name} to {summary['reference']}: {sequence} nats a completion, {token} a token"]


def samples_itself(sampling: SamplingSettings) -> bool:
    """Return whether completions are sampled from the whole distribution at temperature 1."""
    return (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1.0, 1.0, 0, 0.0)


def sequence_kl(rows: Sequence[Row]) -> dict[str, float]:
    """Return the mean log-ratio of a completion over problems, with its t interval."""
    means = np.array([[np.mean(ratios)] for ratios, _ in _by_problem(rows)])
    interval = mean_interval(means)
    return {"mean": float(means.mean()), "low": interval.low, "high": interval.high}


def token_kl(rows: Sequence[Row]) -> dict[str, float]:
    """Return all log-ratios over all tokens, with the t interval of a ratio of two means over problems, linearised."""
    sums = np.array([(np.sum(ratios), np.sum(tokens)) for ratios, tokens in _by_problem(rows)])  # (P, 2)
    mean = float(sums[:, 0].sum() / sums[:, 1].sum())
    interval = mean_interval(mean + (sums[:, :1] - mean * sums[:, 1:]) / sums[:, 1].mean())
    return {"mean": mean, "low": interval.low, "high": interval.high}


def _by_problem(rows: Sequence[Row]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the log-ratios in nats and the lengths in tokens of each problem's completions."""
    columns = [by_problem(rows, name) for name in ("policy_logprob", "ref_logprob", "num_tokens")]
    for policy, ref, tokens in zip(*(column.values() for column in columns), strict=True):
        yield np.subtract(policy, ref), np.array(tokens)
