"""The KL controller and the running moments: numbers by hand, and equality with one pass over everything."""

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def test_the_controller_by_hand(controllers):
    # Ziegler et al. 2019: 6 nats a sequence, horizon 10,000; 256 sequences move the coefficient by at most 0.512%.
    controller = controllers.KlController(0.2, target=6.0, horizon=10_000)
    assert controller.after(6.6, 256).coef == pytest.approx(0.2 * (1 + 0.1 * 256 / 10_000))
    assert controller.after(5.4, 256).coef == pytest.approx(0.2 * (1 - 0.1 * 256 / 10_000))
    assert controller.after(6.0, 256).coef == 0.2
    for kl in (7.2, 60.0, 1e9):
        assert controller.after(kl, 256).coef == pytest.approx(0.2 * (1 + 0.2 * 256 / 10_000))
    assert controller.after(-3.0, 256).coef == pytest.approx(0.2 * (1 - 0.2 * 256 / 10_000))


def test_a_controller_without_target_or_with_a_broken_kl_stays(controllers):
    assert controllers.KlController(0.2).after(50.0, 256).coef == 0.2
    controller = controllers.KlController(0.2, target=6.0)
    assert controller.after(float("nan"), 256) == controller
    assert controller.after(float("inf"), 256) == controller


def test_the_controller_brings_the_kl_to_its_target(controllers):
    """On a policy whose KL is inverse to the coefficient."""
    controller = controllers.KlController(1.0, target=2.0, horizon=100)
    for _ in range(400):
        controller = controller.after(0.5 / controller.coef, 16)
    assert 0.5 / controller.coef == pytest.approx(2.0, rel=1e-2)


def test_moments_by_hand(controllers):
    moments = controllers.RunningMoments()
    assert (moments.std, moments.mean) == (1.0, 0.0)
    moments = moments.after([1.0, 3.0])
    assert (moments.count, moments.mean, moments.std) == (2, 2.0, pytest.approx(2**0.5))
    moments = moments.after([5.0])
    assert (moments.count, moments.mean, moments.std) == (3, 3.0, 2.0)
    assert moments.after([]) == moments
    assert controllers.RunningMoments().after([4.0]).std == 1.0
    assert controllers.RunningMoments().after([4.0, 4.0]).std == 1.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-100, 100).map(lambda x: round(x, 9)), max_size=5), min_size=1, max_size=6))
def test_moments_of_batches_are_those_of_everything(controllers, batches):
    moments = controllers.RunningMoments()
    for batch in batches:
        moments = moments.after(batch)
    everything = [value for batch in batches for value in batch]
    assert moments.count == len(everything)
    if len(set(everything)) > 1:
        assert moments.mean == pytest.approx(statistics.fmean(everything), abs=1e-9)
        assert moments.std == pytest.approx(statistics.stdev(everything), rel=1e-6, abs=1e-6)
