"""Prompt trees as tensors: one packed sequence in which every prompt stands once, or plain padded rows.

Floor 1: knows token ids and masks; no tokenizer, no model. `B` counts branches over all trees, in order.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from posttrain.errors import DataError
from posttrain.records import Branch, TokenTree

Layout = Literal["tree", "rows"]
MAX_PADDING = 4  # how many times the token budget attention's grids, padded to the longest, may take
T = TypeVar("T")
Span = tuple[int, int]  # start and length in the flattened input


@dataclass(frozen=True, slots=True, eq=False)
class TreeBatch:
    """A batch of trees, ready for one forward pass; `N` is the number of completion tokens.

    In the tree layout R is 1 and T covers all tokens: each tree's prompt, then its branches one after the other.
    In the rows layout R is B and each row is a prompt with one branch, padded on the right.
    """

    layout: Layout
    input_ids: Tensor  # (R, T)
    position_ids: Tensor  # (R, T), after the prompt again in every branch
    attention_mask: Tensor  # (R, T) bool, True = real token
    prompt_spans: tuple[Span, ...]  # of each tree, or in the rows layout of each row
    branch_spans: tuple[Span, ...]  # of each branch, (B,)
    branch_prompts: tuple[int, ...]  # index into prompt_spans of each branch, (B,)
    predictors: Tensor  # (N,) index in the flattened input of the token whose hidden state predicts the target
    targets: Tensor  # (N,) id of each completion token
    rows: Tensor  # (N,) branch of each completion token
    columns: Tensor  # (N,) place of each completion token in its branch
    completion_mask: Tensor  # (B, Tc) bool, True = trained token
    token_mask: Tensor  # (B, Tc) bool, True = completion token, trained or not

    def to(self, device: torch.device | str) -> "TreeBatch":
        """Return the batch with all tensors on `device`."""
        tensors: dict[str, Any] = {
            f.name: value.to(device) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **tensors)

    def pad(self, values: Sequence[Sequence[float]], *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Lay per-token values of each branch out as `(B, Tc)`, zero on padding, on the batch's device."""
        padded = torch.zeros(self.token_mask.shape, dtype=dtype)
        for row, (branch, (_, length)) in enumerate(zip(values, self.branch_spans, strict=True)):
            assert len(branch) == length, f"branch {row} has {length} tokens, {len(branch)} values came"
            padded[row, :length] = torch.tensor(branch, dtype=dtype)
        return padded.to(self.input_ids.device)

    def unpad(self, values: Tensor) -> list[tuple[float, ...]]:
        """Return the per-token values of each branch out of `(B, Tc)`."""
        return [tuple(row[:length]) for row, (_, length) in zip(values.tolist(), self.branch_spans, strict=True)]


def build_batch(trees: Sequence[TokenTree], *, layout: Layout = "tree", pad_id: int = 0) -> TreeBatch:
    """Lay trees out for one forward pass, on the CPU; branches keep their order.

    A branch without tokens keeps its row, all masked. Raises DataError for a tree without prompt tokens or without
    branches, and for a mask that doesn't fit its ids.
    """
    _check(trees)
    branches = [branch for tree in trees for branch in tree.branches]
    rows = [list(trees)] if layout == "tree" else [[tree] for tree in _one_branch_each(trees)]
    width = max(_num_tokens(row) for row in rows)
    input_ids = torch.full((len(rows) * width,), pad_id)
    position_ids = torch.zeros_like(input_ids)
    attention_mask = torch.zeros_like(input_ids, dtype=torch.bool)
    prompt_spans: list[Span] = []
    branch_spans: list[Span] = []
    branch_prompts: list[int] = []
    predictors: list[int] = []
    for tree, piece, start, position in _pieces(rows, width):
        end = start + len(piece)
        input_ids[start:end] = torch.tensor(piece, dtype=torch.long)
        position_ids[start:end] = torch.arange(position, position + len(piece))
        attention_mask[start:end] = True
        if position == 0:
            prompt_spans.append((start, len(piece)))
        else:
            branch_spans.append((start, len(piece)))
            branch_prompts.append(tree)
            last_prompt_token = sum(prompt_spans[tree]) - 1
            predictors.extend([last_prompt_token, *range(start, end - 1)][: len(piece)])
    completion_mask = torch.zeros(len(branches), max(len(branch.ids) for branch in branches), dtype=torch.bool)
    token_mask = torch.zeros_like(completion_mask)
    for row, branch in enumerate(branches):
        completion_mask[row, : len(branch.ids)] = torch.tensor(branch.mask, dtype=torch.bool)
        token_mask[row, : len(branch.ids)] = True
    branch_of_token, place_of_token = token_mask.nonzero(as_tuple=True)
    return TreeBatch(
        layout=layout,
        input_ids=input_ids.view(len(rows), width),
        position_ids=position_ids.view(len(rows), width),
        attention_mask=attention_mask.view(len(rows), width),
        prompt_spans=tuple(prompt_spans),
        branch_spans=tuple(branch_spans),
        branch_prompts=tuple(branch_prompts),
        predictors=torch.tensor(predictors, dtype=torch.long),
        targets=torch.tensor([token for branch in branches for token in branch.ids], dtype=torch.long),
        rows=branch_of_token,
        columns=place_of_token,
        completion_mask=completion_mask,
        token_mask=token_mask,
    )


def share_prompts(trees: Sequence[TokenTree]) -> tuple[list[TokenTree], list[int]]:
    """Join trees with equal prompts, so that each is computed once.

    Returns the joined trees, and for each of their branches, in order, its place among all branches given.
    """
    by_prompt: dict[tuple[int, ...], list[tuple[int, Branch]]] = {}
    pairs = ((tree.prompt_ids, branch) for tree in trees for branch in tree.branches)
    for place, (prompt_ids, branch) in enumerate(pairs):
        by_prompt.setdefault(prompt_ids, []).append((place, branch))
    joined = [TokenTree(ids, tuple(branch for _, branch in placed)) for ids, placed in by_prompt.items()]
    return joined, [place for placed in by_prompt.values() for place, _ in placed]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Trees of one forward pass, and where their branches stood among all branches of the uncut trees."""

    trees: tuple[TokenTree, ...]
    branches: tuple[int, ...]  # `advantages[list(micro_batch.branches)]` are theirs


def cut_micro_batches(
    trees: Sequence[TokenTree], max_tokens: int, *, layout: Layout = "tree", whole_trees: bool = False
) -> list[MicroBatch]:
    """Cut trees into few micro-batches that compute at most `max_tokens` tokens each, padding included.

    A tree over the budget is split by branches and its prompt repeated; a single branch over the budget goes alone.
    With `whole_trees` the branches of a tree stay together, also over the budget: a loss compares them. The longest
    piece comes first, and each goes where the first room for it is (first-fit decreasing, Johnson 1973): every
    micro-batch costs a pass over all weights, whatever it holds. `in_order` puts what is found for them back.
    """
    _check(trees)
    pieces: list[tuple[int, TokenTree, range]] = []  # tokens, and the places of the branches
    seen = 0
    for part in trees if whole_trees else (part for tree in trees for part in _split(tree, max_tokens, layout)):
        pieces.append((_num_tokens([part]), part, range(seen, seen + len(part.branches))))
        seen += len(part.branches)
    cut: list[MicroBatch] = []
    room: list[int] = []  # left in each; padding may make less of it
    for tokens, part, branches in sorted(pieces, key=lambda piece: piece[0], reverse=True):
        fits = (
            index
            for index, left in enumerate(room)
            if tokens <= left and _forward_tokens([*cut[index].trees, part], layout) <= max_tokens
        )
        index = next(fits, len(cut))
        if index == len(cut):
            cut.append(MicroBatch((), ()))
            room.append(max_tokens)
        cut[index] = MicroBatch((*cut[index].trees, part), (*cut[index].branches, *branches))
        room[index] -= tokens
    return cut


def in_order(found: Iterable[tuple[MicroBatch, Iterable[T]]]) -> list[T]:
    """Return what was found for each branch of micro-batches, in the order of the uncut trees' branches."""
    of_branch = {
        place: value for micro_batch, values in found for place, value in zip(micro_batch.branches, values, strict=True)
    }
    return [of_branch[place] for place in range(len(of_branch))]


def _split(tree: TokenTree, max_tokens: int, layout: Layout) -> list[TokenTree]:
    """Split a tree that is over the budget into trees of as many branches as fit; rows have one branch each."""
    if layout == "rows":
        return _one_branch_each([tree])
    parts = [TokenTree(tree.prompt_ids, tree.branches[:1])]
    for branch in tree.branches[1:]:
        wider = TokenTree(tree.prompt_ids, (*parts[-1].branches, branch))
        if _num_tokens([wider]) <= max_tokens:
            parts[-1] = wider
        else:
            parts.append(TokenTree(tree.prompt_ids, (branch,)))
    return parts


def _one_branch_each(trees: Sequence[TokenTree]) -> list[TokenTree]:
    return [TokenTree(tree.prompt_ids, (branch,)) for tree in trees for branch in tree.branches]


def _num_tokens(trees: Sequence[TokenTree]) -> int:
    return sum(len(tree.prompt_ids) + sum(len(branch.ids) for branch in tree.branches) for tree in trees)


def _forward_tokens(trees: Sequence[TokenTree], layout: Layout) -> int:
    """Return how many tokens one forward over the trees computes; attention's padded grids count for a quarter."""
    if layout == "tree":
        lengths = [len(branch.ids) for tree in trees for branch in tree.branches]
        grids = len(trees) * max(len(tree.prompt_ids) for tree in trees) + len(lengths) * max(lengths)
        return max(_num_tokens(trees), grids // MAX_PADDING)
    rows = _one_branch_each(trees)
    return len(rows) * max(_num_tokens([row]) for row in rows)


def _pieces(rows: Sequence[Sequence[TokenTree]], width: int) -> Iterator[tuple[int, tuple[int, ...], int, int]]:
    """Yield each prompt and branch in order: tree, ids, start in the flattened input, position of its first token."""
    index = 0
    for row, trees in enumerate(rows):
        start = row * width
        for tree in trees:
            yield index, tree.prompt_ids, start, 0
            start += len(tree.prompt_ids)
            for branch in tree.branches:
                yield index, branch.ids, start, len(tree.prompt_ids)
                start += len(branch.ids)
            index += 1


def _check(trees: Sequence[TokenTree]) -> None:
    if not trees:
        raise DataError("a batch needs at least one tree, none came")
    for index, tree in enumerate(trees):
        if not tree.prompt_ids:
            raise DataError(f"tree {index} has no prompt tokens: its first completion token has nothing to follow")
        if not tree.branches:
            raise DataError(f"tree {index} has no branches: nothing to train on")
        for place, branch in enumerate(tree.branches):
            if len(branch.ids) != len(branch.mask):
                counts = f"{len(branch.ids)} ids and {len(branch.mask)} mask entries"
                raise DataError(f"tree {index}, branch {place}: expected one mask entry for each id, got {counts}")
