"""Peaks count from where they were asked to; in a process of its own, for another test's freed memory would be used."""

import subprocess
import sys

import pytest

BLOCK = 64 * 2**20
MEASURE = f"""
import numpy
from posttrain.runs.memory import accelerator_peak, begin_peak, resident_peak

before = begin_peak()
block = numpy.ones({BLOCK}, dtype=numpy.uint8)
del block
print(before, resident_peak(), begin_peak(), accelerator_peak())
"""


def test_a_peak_outlives_what_made_it_until_it_is_begun_anew() -> None:
    found = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True).stdout
    before, peak, anew, accelerator = map(int, found.split())
    assert peak > before + BLOCK - 2**23
    assert accelerator == 0
    if anew == peak:
        pytest.skip("this system counts peaks since the process started")
    assert anew < peak - BLOCK + 2**23
