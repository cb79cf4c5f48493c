"""The report on a reward model's held-out scores, by hand."""

import numpy as np
import pytest

from posttrain.evals.pairs import pair_report, verdict
from posttrain.evals.stats import wilson_interval

CHOSEN = np.array([2.0, 1.0, 0.0, -1.0])
REJECTED = np.array([0.0, 1.5, -3.0, -1.0])  # right, wrong, right, a tie
LENGTHS = np.array([10, 30, 20, 8]), np.array([20, 10, 20, 9])


def test_report_by_hand() -> None:
    report = pair_report(CHOSEN, REJECTED, *LENGTHS)
    assert (report["pairs"], report["accuracy"], report["mean_margin"]) == (4, 0.625, 1.125)
    assert report["ties"] == 0.25
    assert report["accuracy_interval"] == list(wilson_interval(2.5, 4))
    # Three pairs are of unequal length: chosen is the longer in the second, the scores' choice in half the fourth.
    assert report["longer_chosen"] == pytest.approx(1 / 3)
    assert report["prefers_longer"] == pytest.approx(1 / 6)


def test_accuracy_by_length_gap_covers_every_pair_once() -> None:
    gaps = np.arange(-10, 10)
    report = pair_report((gaps > 0) * 2.0 - 1, np.zeros(20), gaps + 50, np.full(20, 50))
    groups = report["by_length_gap"]
    assert [group["pairs"] for group in groups] == [5, 5, 5, 5] or sum(group["pairs"] for group in groups) == 20
    assert (groups[0]["gap_min"], groups[-1]["gap_max"]) == (-10, 9)
    assert (groups[0]["accuracy"], groups[-1]["accuracy"]) == (0.0, 1.0)
    assert report["prefers_longer"] == 1.0
    equal = pair_report(CHOSEN, REJECTED, LENGTHS[0], LENGTHS[0])
    assert [group["pairs"] for group in equal["by_length_gap"]] == [4]
    assert equal["prefers_longer"] is None


def test_calibration_by_hand() -> None:
    """Confidence 0.6 in ten pairs of which 6 are right is calibrated; 0.9 in ten of which 5 are right is off by 0.4."""
    margin = np.log(np.array([0.6 / 0.4, 0.9 / 0.1]))
    signs = np.array([1] * 6 + [-1] * 4), np.array([1] * 5 + [-1] * 5)
    chosen = np.concatenate([signs[0] * (margin[0] + 1e-6), signs[1] * (margin[1] - 1e-6)])
    report = pair_report(chosen, np.zeros(20), np.arange(20), np.zeros(20))["calibration"]
    assert [(row["pairs"], round(row["confidence"], 3), row["accuracy"]) for row in report["reliability"]] == [
        (10, 0.6, 0.6),
        (10, 0.9, 0.5),
    ]
    assert report["ece"] == pytest.approx(0.2, abs=1e-5)


@pytest.mark.parametrize(
    ("right", "words"), [(80, "better than chance"), (52, "no better than chance"), (20, "worse than chance")]
)
def test_verdicts(right: int, words: str) -> None:
    chosen = np.where(np.arange(100) < right, 1.0, -1.0)
    text = verdict(pair_report(chosen, np.zeros(100), np.arange(100), np.zeros(100)))
    assert text.startswith(f"{words}: it orders {right}.0% [")


def test_scores_that_are_all_equal_say_nothing() -> None:
    report = pair_report(np.zeros(100), np.zeros(100), np.arange(100), np.zeros(100))
    assert (report["accuracy"], report["ties"], report["prefers_longer"]) == (0.5, 1.0, 0.5)
    assert report["calibration"]["ece"] == 0.0
    assert verdict(report).startswith("no better than chance: it orders 50.0% [")
