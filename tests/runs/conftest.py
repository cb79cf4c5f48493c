"""Faults planted at the one door for durable writes."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from posttrain.runs import durable
from posttrain.runs.durable import Operation

Plant = Callable[[durable.Observer], AbstractContextManager[None]]


@pytest.fixture
def plant() -> Plant:
    """Return a context in which an observer watches every durable operation."""

    @contextmanager
    def planted(observer: durable.Observer) -> Iterator[None]:
        durable.observers.append(observer)
        try:
            yield
        finally:
            durable.observers.remove(observer)

    return planted


@pytest.fixture
def count_operations(plant: Plant) -> Callable[[Callable[[], object]], list[Operation]]:
    """Return a function that runs an action and lists its durable operations."""

    def count(action: Callable[[], object]) -> list[Operation]:
        seen: list[Operation] = []
        with plant(lambda operation, moment: seen.append(operation) if moment == "before" else None):
            action()
        return seen

    return count


@pytest.fixture
def die_at() -> Callable[[Callable[[], object], int, str], bool]:
    """Return a function that runs an action in a forked child which dies at operation `index`; True if it did."""

    def die(action: Callable[[], object], index: int, moment: str) -> bool:
        child = os.fork()
        if child == 0:
            left = index

            def observer(operation: Operation, when: str) -> None:
                nonlocal left
                if when == moment:
                    if left == 0:
                        os._exit(9)  # no finally, no flush: as kill -9
                    left -= 1

            durable.observers.append(observer)
            try:
                action()
            finally:
                os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

    return die
