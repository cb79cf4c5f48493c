"""Several tries: curves by known chances, crossings only where both ends are shown, votes by seed."""

import numpy as np
import pytest

from posttrain.reports.inputs import Evaluation
from posttrain.reports.parts.pass_at_k import pass_at_k_part, tries
from posttrain.reports.style import png
from tests.reports.parts.made_up import evaluation, inputs, model, sample, strict_json, texts

PROBLEMS, SAMPLES = 200, 8


def sampled(name: str, chances: np.ndarray, *, seed: int = 0, **columns: int) -> Evaluation:
    """Return an evaluation whose problems are solved with these chances, (P,), and whose wrong answers all differ."""
    right = np.random.default_rng(seed).random((len(chances), SAMPLES)) < chances[:, None]
    rows = [
        sample(f"p{i:03d}", j, right=bool(right[i, j])) | {"extracted": "42" if right[i, j] else f"wrong {j}"} | columns
        for i in range(len(chances))
        for j in range(SAMPLES)
    ]
    return evaluation(name, rows)


WIDE = np.full(PROBLEMS, 0.35)  # solves anything now and then
SHARP = np.where(np.arange(PROBLEMS) < PROBLEMS / 2, 0.95, 0.0)  # solves half of them nearly always


def test_a_sharpened_model_is_better_at_first_and_worse_in_the_end_and_the_crossing_is_named() -> None:
    part = pass_at_k_part(inputs(model("base", sampled("base", WIDE)), model("tuned", sampled("tuned", SHARP, seed=1))))
    better, worse, crossing = texts(part)
    assert better.startswith("nano: tuned solves more problems than base with one try: +")
    assert worse.startswith("nano: tuned solves fewer problems than base with 8 tries: -")
    (found,) = strict_json(part)["crossings"]["nano"]
    assert crossing == f"nano: tuned and base cross at about k = {found['k']}."
    assert found["k"] == 2  # 1 - 0.65**k passes 0.5 * (1 - 0.05**k) between 1 and 2
    assert png(part.figures[0].draw)


def test_a_model_that_is_better_throughout_crosses_nothing() -> None:
    part = pass_at_k_part(
        inputs(model("base", sampled("base", WIDE)), model("tuned", sampled("tuned", WIDE + 0.3, seed=1)))
    )
    assert [finding.tone for finding in part.findings] == ["better", "better"]
    assert strict_json(part)["crossings"]["nano"] == []


def test_equal_models_cross_nothing_and_claim_nothing() -> None:
    alarms = 0
    for seed in range(20):
        tuned = model("tuned", sampled("tuned", WIDE[:60], seed=2 * seed + 1))
        alarms += bool(pass_at_k_part(inputs(model("base", sampled("base", WIDE[:60], seed=2 * seed)), tuned)).findings)
    assert alarms <= 2


def test_curves_follow_the_chances_and_their_bands_hold_them() -> None:
    part = pass_at_k_part(inputs(model("base", sampled("base", WIDE))))
    found = strict_json(part)["tasks"]["nano"]["base"]
    assert list(found["pass"]) == ["1", "2", "4", "8"]
    for k, band in found["pass"].items():
        assert band["low"] < 1 - 0.65 ** int(k) < band["high"]
    assert found["maj"]["8"]["mean"] > 0.6  # 0.35 right, and wrong answers that never agree
    assert part.findings == ()


def test_no_interval_is_a_point_where_nothing_is_solved() -> None:
    band = strict_json(pass_at_k_part(inputs(model("base", sampled("base", 0 * WIDE)))))
    found = band["tasks"]["nano"]["base"]["pass"]["8"]
    assert (found["mean"], found["low"]) == (0.0, 0.0)
    assert 0.01 < found["high"] < 0.03


def test_votes_are_taken_within_a_seed() -> None:
    first, second = (sampled("x", np.full(2, chance), seed=0, seed_=0) for chance in (1.0, 0.0))
    rows = [{**row, "seed": 0} for row in first.samples]
    rows += [{**row, "seed": 1, "sample": row["sample"] + SAMPLES} for row in second.samples]
    found = tries(evaluation("x", rows, num_samples=SAMPLES))
    assert found.solved[8] == found.majority[8] == {"p000": 0.5, "p001": 0.5}


def test_answers_that_are_written_apart_are_one_vote_and_missing_ones_none() -> None:
    said = [("12", True), ("7  apples", False), ("7 apples", False), (None, False)]
    rows = [sample("p", j, right=right) | {"extracted": text} for j, (text, right) in enumerate(said)]
    assert tries(evaluation("x", rows)).majority[4] == {"p": 0.0}  # two votes against one


@pytest.mark.parametrize("samples", [1])
def test_single_answers_say_how_to_get_several(samples: int) -> None:
    rows = [sample(f"p{i}", j) for i in range(3) for j in range(samples)]
    assert "--num_samples 8" in pass_at_k_part(inputs(model("x", evaluation("x", rows)))).absent
