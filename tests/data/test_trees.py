"""Prompt trees as tensors: where each token stands, who predicts it, and how batches are cut."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.trees import MAX_PADDING, Layout, build_batch, cut_micro_batches, in_order
from posttrain.errors import DataError
from posttrain.records import Branch, TokenTree

TREES = [
    TokenTree((10, 11), (Branch((20, 21, 22), (1, 0, 1)), Branch((30,), (1,)))),
    TokenTree((12,), (Branch((40, 41), (0, 1)),)),
]


def tree_of(prompt: int, *branches: int) -> TokenTree:
    return TokenTree((7,) * prompt, tuple(Branch((8,) * length, (1,) * length) for length in branches))


trees_strategy = st.lists(
    st.builds(
        lambda prompt, branches: TokenTree(
            tuple(prompt), tuple(Branch(tuple(ids), (1,) * len(ids)) for ids in branches)
        ),
        st.lists(st.integers(0, 99), min_size=1, max_size=5),
        st.lists(st.lists(st.integers(0, 99), max_size=6), min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


def test_tree_layout_by_hand() -> None:
    batch = build_batch(TREES)
    assert batch.input_ids.tolist() == [[10, 11, 20, 21, 22, 30, 12, 40, 41]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 0, 1, 2]]
    assert batch.attention_mask.all()
    assert batch.prompt_spans == ((0, 2), (6, 1))
    assert batch.branch_spans == ((2, 3), (5, 1), (7, 2))
    assert batch.branch_prompts == (0, 0, 1)
    assert batch.targets.tolist() == [20, 21, 22, 30, 40, 41]
    assert batch.predictors.tolist() == [1, 2, 3, 1, 6, 7]
    assert batch.rows.tolist() == [0, 0, 0, 1, 2, 2]
    assert batch.columns.tolist() == [0, 1, 2, 0, 0, 1]
    assert batch.completion_mask.tolist() == [[True, False, True], [True, False, False], [False, True, False]]
    assert batch.token_mask.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert batch.input_ids.shape == (1, 9)


def test_rows_layout_by_hand() -> None:
    batch = build_batch(TREES, layout="rows", pad_id=99)
    assert batch.input_ids.tolist() == [[10, 11, 20, 21, 22], [10, 11, 30, 99, 99], [12, 40, 41, 99, 99]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 0], [0, 1, 2, 0, 0]]
    assert batch.attention_mask.sum(1).tolist() == [5, 3, 3]
    assert batch.predictors.tolist() == [1, 2, 3, 6, 10, 11]
    assert batch.branch_prompts == (0, 1, 2)


@given(trees_strategy)
def test_both_layouts_place_the_same_completions(trees: list[TokenTree]) -> None:
    branches = [branch for tree in trees for branch in tree.branches]
    sequences = [tree.prompt_ids + branch.ids for tree in trees for branch in tree.branches]
    for layout in ("tree", "rows"):
        batch = build_batch(trees, layout=layout)
        placed = torch.full(batch.token_mask.shape, -1).index_put((batch.rows, batch.columns), batch.targets)
        before = torch.full(batch.token_mask.shape, -1).index_put(
            (batch.rows, batch.columns), batch.input_ids.flatten()[batch.predictors]
        )
        for row, (branch, ids) in enumerate(zip(branches, sequences, strict=True)):
            length = len(branch.ids)
            assert tuple(placed[row, :length].tolist()) == branch.ids
            assert tuple(before[row, :length].tolist()) == ids[len(ids) - length - 1 : -1]
            assert batch.token_mask[row].sum() == length
            start, count = batch.branch_spans[row]
            positions = batch.position_ids.flatten()[start : start + count].tolist()
            assert positions == list(range(len(ids) - length, len(ids)))


def test_a_branch_without_tokens_keeps_its_row() -> None:
    batch = build_batch([tree_of(2, 0, 1)])
    assert batch.completion_mask.tolist() == [[False], [True]]
    assert batch.rows.tolist() == [1]
    assert build_batch([tree_of(2, 0)]).completion_mask.shape == (1, 0)


def test_pad_lays_values_out_by_branch() -> None:
    batch = build_batch(TREES)
    assert batch.pad([[1, 2, 3], [4], [5, 6]]).tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0]]
    with pytest.raises(AssertionError, match="branch 1 has 1 tokens, 2 values"):
        batch.pad([[1, 2, 3], [4, 4], [5, 6]])


@pytest.mark.parametrize(
    ("trees", "message"),
    [
        ([], "at least one tree"),
        ([TokenTree((), (Branch((1,), (1,)),))], "tree 0 has no prompt tokens"),
        ([*TREES, TokenTree((1,), ())], "tree 2 has no branches"),
        ([TokenTree((1,), (Branch((1, 2), (1,)),))], "tree 0, branch 0: .* 2 ids and 1 mask entries"),
    ],
)
def test_malformed_trees_are_refused(trees: list[TokenTree], message: str) -> None:
    for function in (build_batch, lambda trees: cut_micro_batches(trees, 10)):
        with pytest.raises(DataError, match=message):
            function(trees)


def test_cutting_puts_the_longest_first_and_each_where_there_is_room() -> None:
    cut = cut_micro_batches([tree_of(1, 1), tree_of(3, 4), tree_of(3, 3, 3), tree_of(2, 3)], 14)  # 2, 7, 9, 5 tokens
    assert [micro_batch.branches for micro_batch in cut] == [(2, 3, 4), (1, 0)]


def test_what_splitting_leaves_of_several_trees_goes_together() -> None:
    cut = cut_micro_batches([tree_of(2, *[2] * 4)] * 3, 8)
    assert [micro_batch.branches for micro_batch in cut] == [(0, 1, 2), (4, 5, 6), (8, 9, 10), (3, 7), (11,)]
    assert in_order((micro_batch, map(str, micro_batch.branches)) for micro_batch in cut) == [
        str(place) for place in range(12)
    ]


def test_a_tree_over_the_budget_is_split_and_a_branch_over_it_goes_alone() -> None:
    cut = cut_micro_batches([tree_of(3, 2, 2, 2, 9, 1)], 7)
    assert [micro_batch.branches for micro_batch in cut] == [(3,), (0, 1), (2,), (4,)]
    assert all(micro_batch.trees[0].prompt_ids == (7, 7, 7) for micro_batch in cut)


@given(trees_strategy, st.integers(1, 40), st.sampled_from(["tree", "rows"]))
def test_every_branch_is_cut_into_one_micro_batch_within_the_budget(trees, max_tokens, layout) -> None:
    sequences = [(tree.prompt_ids, branch) for tree in trees for branch in tree.branches]
    cut = cut_micro_batches(trees, max_tokens, layout=layout)
    assert sorted(index for micro_batch in cut for index in micro_batch.branches) == list(range(len(sequences)))
    for micro_batch in cut:
        found = [(tree.prompt_ids, branch) for tree in micro_batch.trees for branch in tree.branches]
        assert found == [sequences[index] for index in micro_batch.branches]
        computed = build_batch(micro_batch.trees, layout=layout).input_ids.numel()
        assert computed <= max_tokens or len(found) == 1


def test_one_long_row_among_short_ones_does_not_blow_up_the_attention_grids() -> None:
    short = [TokenTree((1,) * 40, (Branch((2,) * 100, (1,) * 100),))] * 15
    long = TokenTree((1,) * 100, (Branch((2,) * 1800, (1,) * 1800),))
    for micro_batch in cut_micro_batches([*short, long], 4096):
        branches = [branch for tree in micro_batch.trees for branch in tree.branches]
        grid = len(branches) * max(len(branch.ids) for branch in branches)
        assert grid <= MAX_PADDING * 4096


@pytest.mark.parametrize("layout", ["tree", "rows"])
def test_whole_trees_are_never_cut_apart(layout: Layout) -> None:
    trees = [tree_of(3, 4, 5), tree_of(2, 1, 1), tree_of(30, 20, 20)]
    cut = cut_micro_batches(trees, 10, layout=layout, whole_trees=True)
    assert [part.trees for part in cut] == [(trees[2],), (trees[0],), (trees[1],)]
    assert [part.branches for part in cut] == [(4, 5), (0, 1), (2, 3)]
    together = cut_micro_batches(trees, 1000, layout=layout, whole_trees=True)
    assert [part.trees for part in together] == [(trees[2], trees[0], trees[1])]
    assert any(len(part.branches) == 1 for part in cut_micro_batches(trees, 10, layout=layout))  # what it prevents
