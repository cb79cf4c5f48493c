"""The loader: each row once an epoch, resumable anywhere, whatever rows come and go."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.loader import Loader
from posttrain.errors import CheckpointError, DataError

IDS = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=12, unique=True)
BATCHES = st.lists(st.integers(1, 7), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(ids=IDS, seed=st.integers(0, 99), batch_sizes=BATCHES)
def test_each_row_once_an_epoch(ids: list[str], seed: int, batch_sizes: list[int]) -> None:
    """An item of a new epoch may wait one batch, so epochs are told apart by the loader's own position."""
    loader = Loader(ids, seed)
    times = dict.fromkeys(ids, 0)
    for size in batch_sizes:
        batch = loader.next(size)
        assert len(batch) == size
        for row_id in batch:
            times[row_id] += 1
        state = loader.state()
        assert times == {row_id: state["epoch"] + (row_id in state["consumed"]) for row_id in ids}


@settings(max_examples=200, deadline=None)
@given(ids=IDS, batch_sizes=BATCHES)
def test_no_row_twice_in_a_batch_that_fits(ids: list[str], batch_sizes: list[int]) -> None:
    loader = Loader(ids, 3)
    for size in batch_sizes:
        batch = loader.next(size)
        for start in range(0, size, len(ids)):  # a larger batch is rounds of distinct rows
            part = batch[start : start + len(ids)]
            assert len(set(part)) == len(part)


@settings(max_examples=200, deadline=None)
@given(ids=IDS, seed=st.integers(0, 99), batch_sizes=BATCHES, stop=st.integers(0, 12))
def test_resume_at_any_point_is_no_interruption(ids: list[str], seed: int, batch_sizes: list[int], stop: int) -> None:
    loader = Loader(ids, seed)
    expected = [loader.next(size) for size in batch_sizes]
    first = Loader(ids, seed)
    got = [first.next(size) for size in batch_sizes[:stop]]
    resumed = Loader(sorted(ids), seed)  # the order of the file plays no part
    resumed.restore(json.loads(json.dumps(first.state())))
    got += [resumed.next(size) for size in batch_sizes[stop:]]
    assert got == expected
    assert resumed.state() == loader.state()


@settings(max_examples=200, deadline=None)
@given(ids=IDS, taken=st.integers(0, 12), removed=st.integers(0, 12), added=IDS)
def test_rows_that_come_or_go_repeat_none_and_move_none(
    ids: list[str], taken: int, removed: int, added: list[str]
) -> None:
    loader = Loader(ids, 5)
    consumed = loader.next(min(taken, len(ids)))
    rest = [row_id for row_id in Loader(ids, 5).next(len(ids)) if row_id not in consumed]
    changed = list(dict.fromkeys([*ids[removed:], *(f"new-{row_id}" for row_id in added)]))
    resumed = Loader(changed, 5)
    resumed.restore(loader.state())
    left = len([row_id for row_id in changed if row_id not in consumed])
    dealt = resumed.next(left) if left else []
    assert not set(dealt) & set(consumed)
    assert sorted(dealt) == sorted(row_id for row_id in changed if row_id not in consumed)
    assert [row_id for row_id in dealt if row_id in ids] == [row_id for row_id in rest if row_id in changed]


def test_orders_differ_by_epoch_and_by_seed() -> None:
    ids = [f"row{n}" for n in range(50)]
    loader = Loader(ids, 0)
    first, second = loader.next(50), loader.next(50)
    assert sorted(first) == sorted(second) == sorted(ids)
    assert first != second
    assert first != ids
    assert first != Loader(ids, 1).next(50)
    assert loader.epoch == 2.0


def test_position_is_a_copy() -> None:
    loader = Loader(["a", "b", "c"], 0)
    state = loader.state()
    loader.next(2)
    assert state == {"epoch": 0, "consumed": []}


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        Loader([], 0)
    with pytest.raises(DataError, match="1 rows have the id of another"):
        Loader(["a", "b", "a"], 0)
    for state in ({}, {"epoch": -1, "consumed": []}, {"epoch": 0, "consumed": "a"}, {"epoch": "0", "consumed": []}):
        with pytest.raises(CheckpointError, match="loader state"):
            Loader(["a"], 0).restore(state)
