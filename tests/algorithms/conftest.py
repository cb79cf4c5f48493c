"""The modules under test, as fixtures: `test_planted_faults.py` calls the same tests with faulty copies."""

from types import ModuleType

import pytest

import posttrain.algorithms.advantages
import posttrain.algorithms.controllers
import posttrain.algorithms.losses
import posttrain.algorithms.preferences
import posttrain.algorithms.returns
import posttrain.algorithms.tokens


@pytest.fixture(scope="session")
def tokens() -> ModuleType:
    return posttrain.algorithms.tokens


@pytest.fixture(scope="session")
def advantages() -> ModuleType:
    return posttrain.algorithms.advantages


@pytest.fixture(scope="session")
def losses() -> ModuleType:
    return posttrain.algorithms.losses


@pytest.fixture(scope="session")
def preferences() -> ModuleType:
    return posttrain.algorithms.preferences


@pytest.fixture(scope="session")
def controllers() -> ModuleType:
    return posttrain.algorithms.controllers


@pytest.fixture(scope="session")
def returns() -> ModuleType:
    return posttrain.algorithms.returns
