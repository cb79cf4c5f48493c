"""Attention within trees by the compiled kernels against masked softmax in float64, forward and backward."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.kernels.operations import Kernels
from posttrain.models.attention import TreeLayout
from posttrain.models.tree_attention import Span, tree_attention, tree_spans
from tests.kernels.conftest import DTYPES, NATIVE, TARGETS, kernels_for

Trees = Sequence[tuple[int, Sequence[int]]]  # lengths of each prompt and of its branches
SCALING = 0.3
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2**-6}  # of the largest entry, or of 1
# Of the size of the terms that an entry is the sum of; in bfloat16 up to three of a gradient's factors are rounded.
TERM_TOLERANCES = {torch.float32: 3e-5, torch.bfloat16: 3 * 2**-8}
BLOCKS: list[Trees] = [
    [(5, [3])],
    [(1, [1, 1]), (1, [])],
    [(32, [32]), (31, [33, 1])],
    [(33, [40, 7, 1]), (10, []), (64, [31])],
    [(200, [150, 131, 64])],
    [(129, [257])],
]


def spans_of(trees: Trees) -> tuple[list[Span], list[Span], list[int]]:
    """Return prompts, branches and each one's prompt, packed tree by tree."""
    prompts, branches, parents, start = [], [], [], 0
    for tree, (prompt, lengths) in enumerate(trees):
        prompts.append((start, prompt))
        start += prompt
        for length in lengths:
            branches.append((start, length))
            parents.append(tree)
            start += length
    return prompts, branches, parents


def mask_of(trees: Trees, window: int | None) -> Tensor:
    """Return the `(T, T)` mask, True where the token of the row sees that of the column."""
    prompts, branches, parents = spans_of(trees)
    tokens = sum(length for _, length in [*prompts, *branches])
    mask = torch.zeros(tokens, tokens, dtype=torch.bool)
    for span, parent in [*zip(prompts, [None] * len(prompts), strict=True), *zip(branches, parents, strict=True)]:
        past = [] if parent is None else range(prompts[parent][0], sum(prompts[parent]))
        for token in range(span[0], sum(span)):
            seen = [*past, *range(span[0], token + 1)]
            mask[token, seen[-window:] if window else seen] = True
    return mask


def check(
    kernels: Kernels,
    trees: Trees,
    window: int | None,
    *,
    heads: int,
    kv_heads: int,
    size: int,
    may_cancel: bool = False,
) -> None:
    """Compare result and gradients, each entry by the size of its terms, and all by the largest one.

    The latter not where `may_cancel`: terms may cancel in all entries, so that their rounding exceeds the largest.
    """
    dtype, generator = kernels.dtype, torch.Generator().manual_seed(0)
    mask = mask_of(trees, window)

    def states(count: int) -> Tensor:
        return torch.randn(len(mask), count, size, generator=generator).to(dtype)

    given_states, grad_out = [states(count) for count in (heads, kv_heads, kv_heads)], states(heads)
    ours = [each.clone().requires_grad_() for each in given_states]
    prompts, branches, parents = spans_of(trees)
    out = tree_attention(kernels, tree_spans(prompts, branches, parents), *ours, scaling=SCALING, window=window)
    out.backward(grad_out)

    plain = [each.double().requires_grad_() for each in given_states]
    expected, weights = plain_attention(*plain, mask)
    expected.backward(grad_out.double())
    sizes = sizes_of_terms(weights.detach(), *(each.double().abs() for each in (*given_states, grad_out)))
    results = [out, *(each.grad for each in ours)], [expected, *(each.grad for each in plain)]
    for name, got, wanted, terms in zip(("out", "query", "key", "value"), *results, sizes, strict=True):
        assert got is not None
        assert wanted is not None
        errors = (got.double() - wanted).abs()
        assert (errors / terms).max() <= TERM_TOLERANCES[dtype], name
        assert may_cancel or errors.max() <= TOLERANCES[dtype] * max(float(wanted.abs().max()), 1.0), name


def plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the attention `(T, H, D)` and its weights `(H, T, T)`."""
    key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], dim=1) for each in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * SCALING
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value), weights


def sizes_of_terms(weights: Tensor, query: Tensor, key: Tensor, value: Tensor, grad_out: Tensor) -> list[Tensor]:
    """Return what result and gradients would be if no two terms cancelled, given absolute values."""
    kv_heads = key.shape[1]
    key_of, value_of = (each.repeat_interleave(query.shape[1] // kv_heads, dim=1) for each in (key, value))
    out = torch.einsum("hqk,khd->qhd", weights, value_of)
    to_weights = torch.einsum("qhd,khd->hqk", grad_out, value_of) + (out * grad_out).sum(-1).mT[:, :, None]
    to_scores = weights * to_weights * SCALING
    of_heads = [
        torch.einsum("hqk,qhd->khd", to_scores, query),
        torch.einsum("hqk,qhd->khd", weights, grad_out),
    ]
    to_key, to_value = (each.unflatten(1, (kv_heads, -1)).sum(2) for each in of_heads)
    return [out, torch.einsum("hqk,khd->qhd", to_scores, key_of), to_key, to_value]


@pytest.mark.parametrize("window", [None, 1, 7, 64])
@pytest.mark.parametrize("trees", BLOCKS, ids=str)
def test_trees_of_all_block_sizes(kernels: Kernels, trees: Trees, window: int | None) -> None:
    check(kernels, trees, window, heads=6, kv_heads=2, size=64)


@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(1, 1, 32), (4, 4, 96), (3, 1, 128), (2, 1, 256)])
def test_heads_of_all_sizes(kernels: Kernels, heads: int, kv_heads: int, size: int) -> None:
    check(kernels, [(40, [9, 33]), (3, [70])], None, heads=heads, kv_heads=kv_heads, size=size)


lengths = st.integers(1, 140)


@settings(max_examples=40, deadline=None)
@given(
    trees=st.lists(st.tuples(lengths, st.lists(lengths, max_size=4)), min_size=1, max_size=3),
    window=st.none() | st.integers(1, 200),
    target=st.sampled_from(TARGETS),
    dtype=st.sampled_from(DTYPES),
)
def test_any_tree(trees: Trees, window: int | None, target: str, dtype: torch.dtype) -> None:
    may_cancel = dtype == torch.bfloat16
    check(kernels_for(target, dtype), trees, window, heads=2, kv_heads=1, size=32, may_cancel=may_cancel)


def test_the_order_of_branches_does_not_matter() -> None:
    """Branches of two prompts in turn, as a layout may have them."""
    prompts, branches, parents = [(0, 3), (3, 2)], [(5, 2), (7, 3), (10, 1)], [1, 0, 1]
    query, key, value = (torch.randn(1, heads, 11, 32) for heads in (2, 1, 1))
    arguments = {"scaling": 0.2, "sliding_window": None, "softcap": None}
    kernels_for(NATIVE, torch.float32)
    layout = TreeLayout(prompts, branches, parents)
    got = layout.attend(0, query, key, value, **arguments)  # type: ignore[arg-type]
    plain = layout.attend(0, query.double(), key.double(), value.double(), **arguments)  # type: ignore[arg-type]
    torch.testing.assert_close(got.double(), plain, rtol=1e-5, atol=1e-6)


def test_threads_change_nothing(kernels: Kernels) -> None:
    trees: Trees = [(70, [33, 90]), (40, [5])]
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(238, heads, 32, generator=generator).to(kernels.dtype) for heads in (4, 2, 2)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            ours = [each.clone().requires_grad_() for each in states]
            out = tree_attention(kernels, tree_spans(*spans_of(trees)), *ours, scaling=0.2, window=None)
            out.sum().backward()
            found.append([out, *(each.grad for each in ours)])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_large_scores_stay_finite() -> None:
    """Scores of hundreds, of which one takes all of the softmax, and keys that a query does not see above them."""
    kernels = kernels_for(NATIVE, torch.float32)
    states = [torch.randn(9, 1, 32) * 100 for _ in range(3)]
    ours = [each.requires_grad_() for each in states]
    out = tree_attention(kernels, tree_spans([(0, 4)], [(4, 5)], [0]), *ours, scaling=1.0, window=None)
    out.sum().backward()
    assert all(each.isfinite().all() for each in [out, *(one.grad for one in ours if one.grad is not None)])
