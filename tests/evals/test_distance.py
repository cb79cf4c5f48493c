"""The KL of a table of samples by hand, and how often its intervals hold the truth."""

import numpy as np
import pytest

from posttrain.evals.distance import distance_lines, samples_itself, summarise_distance
from posttrain.settings import SamplingSettings


def row(problem: int, sample: int, ratio: float, tokens: int) -> dict[str, object]:
    logprobs = {"policy_logprob": ratio - 5.0, "ref_logprob": -5.0, "entropy": 0.5 + sample}
    return {"problem_id": str(problem), "sample": sample, "num_tokens": tokens, **logprobs}


def test_by_hand() -> None:
    rows = [row(0, 0, 1.0, 2), row(0, 1, 3.0, 6), row(1, 0, 2.0, 4), row(1, 1, 2.0, 4)]
    found = summarise_distance(rows, SamplingSettings())
    assert found["kl"]["sequence"] == {"mean": 2.0, "low": 2.0, "high": 2.0}  # both problems have a mean of 2
    assert found["kl"]["token"]["mean"] == pytest.approx(8 / 16)
    assert found["mean_entropy"] == 1.0
    alone = summarise_distance(rows[:2], SamplingSettings())
    assert alone["kl"]["token"] == {"mean": 0.5, "low": -np.inf, "high": np.inf}


def test_in_a_line_it_is_called_a_kl_only_where_it_is_one() -> None:
    rows = [row(0, 0, 1.0, 2), row(1, 0, 2.0, 4), row(2, 0, 3.0, 6)]
    found = {"reference": "sft", **summarise_distance(rows, SamplingSettings())}
    assert distance_lines(found)[0].startswith("KL to sft: 2 (95% CI ")
    assert distance_lines(found)[0].endswith(" nats a completion, 0.5 (95% CI 0.5 to 0.5) a token")
    found |= summarise_distance(rows, SamplingSettings(temperature=0.0))
    assert distance_lines(found)[0].startswith("log-ratio, no KL of samples that are greedy or cut, to sft: 2 ")
    assert distance_lines({"reference": None}) == []


@pytest.mark.parametrize("cut", [{"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.1}])
def test_a_cut_distribution_is_not_the_policys_own(cut: dict[str, float]) -> None:
    assert samples_itself(SamplingSettings())
    assert not samples_itself(SamplingSettings(**cut))


def simulated(draw: np.random.Generator, problems: int, samples: int) -> list[dict[str, object]]:
    """Return samples whose ratios are 0.1 a token on average, in problems that differ in ratio and in length."""
    rows = []
    for problem in range(problems):
        length, rate = draw.integers(10, 60), draw.normal(0.1, 0.05)
        rows += [row(problem, sample, rate * length + draw.normal(0, 1.0), int(length)) for sample in range(samples)]
    return rows


def test_the_intervals_hold_the_truth_and_ignoring_problems_would_not() -> None:
    draw = np.random.default_rng(0)
    held = {"sequence": 0, "token": 0, "as if apart": 0}
    runs = 400
    for _ in range(runs):
        rows = simulated(draw, problems=60, samples=6)
        for name, truth in (("sequence", 0.1 * 34.5), ("token", 0.1)):
            found = summarise_distance(rows, SamplingSettings())["kl"][name]
            held[name] += found["low"] <= truth <= found["high"]
        apart = [{**one, "problem_id": str(index), "sample": 0} for index, one in enumerate(rows)]
        found = summarise_distance(apart, SamplingSettings())["kl"]["token"]
        held["as if apart"] += found["low"] <= 0.1 <= found["high"]
    assert 0.92 <= held["sequence"] / runs <= 0.98
    assert 0.92 <= held["token"] / runs <= 0.98
    assert held["as if apart"] / runs < 0.88
