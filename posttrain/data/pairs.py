"""Preference rows as prompt trees: a pair has two branches, a judged completion one.

Floor 1. The one renderer makes each branch; both stand behind the same prompt ids.
"""

from dataclasses import replace
from typing import TYPE_CHECKING

from posttrain.data.chat import render_training_tree
from posttrain.data.rows import Row
from posttrain.errors import DataError
from posttrain.records import TokenTree

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


def branch_labels(row: Row) -> tuple[bool, ...]:
    """Return of each branch of the row's tree whether it is the desirable one."""
    return (True, False) if row.label is None else (row.label,)
