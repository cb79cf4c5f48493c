"""Preference rows as prompt trees: a pair has two branches, a judged completion one, and so has one to be scored.

Floor 1. The one renderer makes each branch; those of a pair stand behind the same prompt ids.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from posttrain.data.chat import render_training_tree
from posttrain.data.rows import Row
from posttrain.errors import DataError
from posttrain.records import Branch, TokenTree

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_preference(row: Row, tokenizer: "PreTrainedTokenizerBase") -> TokenTree:
    """Return the tree of a row: the branches of a pair are chosen and rejected, in this order.

    Raises DataError where the two would not follow the same prompt tokens.
    """
    if row.kind == "unpaired":
        return render_training_tree(row, tokenizer)
    if row.kind != "preference":
        raise DataError(f"{row.origin} is a {row.kind} row, expected a pair or a judged completion")
    chosen, rejected = (
        render_training_tree(replace(row, kind="prompt_completion", completion=completion), tokenizer)
        for completion in (row.chosen, row.rejected)
    )
    if chosen.prompt_ids != rejected.prompt_ids:
        raise DataError(
            f"{row.origin}: the chat template renders the prompt in one way before chosen, in another before rejected"
        )
    return TokenTree(chosen.prompt_ids, (*chosen.branches, *rejected.branches))


def render_completion(row: Row, tokenizer: "PreTrainedTokenizerBase", *, ended: bool = True) -> TokenTree:
    """Return the tree of a row's completion as a reward model reads it; one that was cut off has no end token.

    The branch is empty where nothing but the end would be there.
    """
    tree = render_training_tree(row, tokenizer)
    (branch,) = tree.branches
    if ended or branch.ids[-1] not in {tokenizer.eos_token_id, *tokenizer.added_tokens_decoder}:
        return tree
    return TokenTree(tree.prompt_ids, (Branch(branch.ids[:-1], branch.mask[:-1]),))


def branch_labels(row: Row) -> tuple[bool, ...]:
    """Return of each branch of the row's tree whether it is the desirable one."""
    return (True, False) if row.label is None else (row.label,)
