"""The frontier of made-up policies: by hand, fits that find their own coefficients, and how often it cries wolf."""

import math

import numpy as np
import pytest

from posttrain.errors import DataError
from posttrain.evals.frontier import course, fit, frontier, mean_of, sentence


def rows(proxy: np.ndarray, gold: np.ndarray, kl: float) -> list[dict[str, object]]:
    """Return the samples `(P, N)` of a policy, each as far from the start as the others."""
    return [
        {
            "problem_id": f"{problem:03}",
            "sample": sample,
            "num_tokens": 10 + sample,
            "reward": float(proxy[problem, sample]),
            "score": float(gold[problem, sample]),
            "policy_logprob": kl - 20.0,
            "ref_logprob": -20.0,
        }
        for problem, sample in np.ndindex(proxy.shape)
    ]


def policy(draw: np.random.Generator, *, accuracy: float, proxy: float, kl: float) -> list[dict[str, object]]:
    return rows(draw.normal(proxy, 1.0, (60, 4)), (draw.uniform(size=(60, 4)) < accuracy).astype(float), kl)


def test_points_best_of_n_and_peak_of_an_over_optimised_run() -> None:
    draw = np.random.default_rng(0)
    accuracies, proxies, kls = (0.5, 0.8, 0.6, 0.1), (0.0, 1.0, 3.0, 5.0), (0.0, 1.0, 4.0, 9.0)
    policies = {
        step: policy(draw, accuracy=a, proxy=p, kl=kl)
        for step, a, p, kl in zip((0, 4, 8, 12), accuracies, proxies, kls, strict=True)
    }
    found = frontier(policies, gold="score")
    assert [point["step"] for point in found["points"]] == [0, 4, 8, 12]
    assert [point["sqrt_kl"] for point in found["points"]] == [0.0, 1.0, 2.0, 3.0]
    for point, accuracy, proxy in zip(found["points"], accuracies, proxies, strict=True):
        assert point["gold"]["low"] < accuracy < point["gold"]["high"]
        assert point["proxy"]["low"] < proxy < point["proxy"]["high"]
    assert found["points"][0]["mean_length"] == 11.5
    assert [chosen["n"] for chosen in found["best_of_n"]] == [1, 2, 3, 4]
    assert found["best_of_n"][0]["gold"]["mean"] == pytest.approx(found["points"][0]["gold"]["mean"])
    assert found["best_of_n"][3]["proxy"]["mean"] == pytest.approx(1.03, abs=0.3)  # of 4 normal draws
    assert (found["prompts"], found["left_out_prompts"], found["num_samples"]) == (60, 0, 4)
    assert (found["peak"], found["verdict"]) == (4, "over-optimised")
    assert sentence(found).startswith("over-optimised: gold peaked at step 4 (KL 1) and fell by 0.")
    assert " to step 12 (KL 9), while the proxy rose by " in sentence(found)


def test_a_fall_with_the_proxy_is_not_called_over_optimisation() -> None:
    draw = np.random.default_rng(0)
    found = frontier(
        {
            0: policy(draw, accuracy=0.8, proxy=2.0, kl=0.0),
            4: policy(draw, accuracy=0.2, proxy=-1.0, kl=30.0),
        },
        gold="score",
    )
    assert (found["peak"], found["verdict"]) == (0, "fell")
    assert sentence(found).startswith("gold peaked at the start and fell by 0.")
    assert "; the proxy did not rise with it: -" in sentence(found)


def test_a_healthy_run_is_named_so() -> None:
    draw = np.random.default_rng(0)
    policies = {step: policy(draw, accuracy=a, proxy=a, kl=a) for step, a in {0: 0.3, 4: 0.6, 8: 0.8, 12: 0.8}.items()}
    found = frontier(policies, gold="score")
    assert found["verdict"] == "holds"
    assert sentence(found).startswith("gold holds: +0.")


def test_prompts_without_all_their_scores_are_left_out_everywhere() -> None:
    draw = np.random.default_rng(0)
    policies = {step: policy(draw, accuracy=0.5, proxy=0.0, kl=0.0) for step in (0, 4)}
    policies[0][0]["reward"] = None  # of prompt 0
    policies[4][9]["score"] = None  # of prompt 2
    found = frontier(policies, gold="score")
    assert (found["prompts"], found["left_out_prompts"]) == (58, 2)
    with pytest.raises(DataError, match="no prompt has samples with a reward and score under all of 2 policies"):
        frontier({0: policies[0][:4], 4: policies[4]}, gold="score")


def test_fits_find_their_own_coefficients_and_need_points() -> None:
    d = np.linspace(0.3, 4, 9)
    assert fit("best_of_n", d, d * (0.6 - 0.1 * d)) == pytest.approx((0.6, 0.1, 0.0), abs=1e-9)
    assert fit("rl", d, d * (0.6 - 0.3 * np.log(d))) == pytest.approx((0.6, 0.3, 0.0), abs=1e-9)
    assert fit("rl", d, d * (0.6 - 0.1 * d)).rmse > 0.01
    draw = np.random.default_rng(0)
    few = {step: policy(draw, accuracy=0.5, proxy=0.0, kl=float(step)) for step in range(4)}
    assert frontier(few, gold="score")["fits"]["rl"] is None
    enough = few | {4: policy(draw, accuracy=0.5, proxy=0.0, kl=4.0)}
    assert frontier(enough, gold="score")["fits"]["rl"] is not None


def healthy(draw: np.random.Generator, policies: int) -> tuple[np.ndarray, np.ndarray]:
    """Return prompts' means of a run whose gold stays where it is, while its proxy rises; prompts differ in both."""
    hardness = draw.uniform(0.1, 0.9, 100)
    gold = draw.binomial(8, hardness, (policies, 100)) / 8
    rise = np.linspace(0, 3, policies)[:, None]
    return rise + draw.normal(0, 1, 100) + draw.normal(0, 0.5, (policies, 100)), gold


@pytest.mark.parametrize("policies", [3, 9])
def test_a_gold_that_stays_is_said_to_fall_in_at_most_5_percent(policies: int) -> None:
    draw = np.random.default_rng(policies)
    runs = 1000
    alarms = uncorrected = 0
    for _ in range(runs):
        proxy, gold = healthy(draw, policies)
        found = course(range(policies), proxy=proxy, gold=gold)
        alarms += found["verdict"] != "holds"
        peak = int(gold.mean(axis=1).argmax())
        uncorrected += mean_of(gold[-1] - gold[peak]).high < 0
    assert alarms / runs <= 0.05
    if policies == 9:
        assert uncorrected / runs > 0.10  # the best of noisy steps looks better than it is


def test_a_fall_of_a_tenth_is_seen() -> None:
    draw = np.random.default_rng(0)
    seen = 0
    for _ in range(100):
        proxy, gold = healthy(draw, 9)
        gold[-1] = draw.binomial(8, np.clip(gold[:-1].mean(axis=0) - 0.1, 0, 1)) / 8
        seen += course(range(9), proxy=proxy, gold=gold)["verdict"] == "over-optimised"
    assert seen > 90


def test_one_prompt_says_nothing() -> None:
    assert mean_of(np.array([1.0])) == (1.0, -math.inf, math.inf)
    assert course([0, 4], proxy=np.zeros((2, 1)), gold=np.array([[1.0], [0.0]]))["verdict"] == "holds"
