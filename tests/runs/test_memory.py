"""Peaks count from where they were asked to."""

import numpy as np
import pytest

from posttrain.runs.memory import accelerator_peak, begin_peak, resident_peak

MEGABYTES = 64


def test_a_peak_outlives_what_made_it_until_it_is_begun_anew() -> None:
    before = begin_peak()
    block = np.ones(MEGABYTES * 2**20, dtype=np.uint8)
    del block
    peak = resident_peak()
    assert peak > before + (MEGABYTES - 8) * 2**20
    if begin_peak() >= peak:
        pytest.skip("this system counts peaks since the process started")
    assert resident_peak() < peak
    assert accelerator_peak() == 0
