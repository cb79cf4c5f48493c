"""The one renderer: rows to token ids, and to the mask that says which of them are trained.

Floor 1. Knows a tokenizer and its chat template, no model. The mask comes from where the template puts each turn,
never from a search for strings; the prompt's ids are always a true prefix of the prompt and completion's.
"""

import json
import logging
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import lru_cache, partial
from itertools import chain, groupby, pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from posttrain.data.rows import Row
from posttrain.errors import DataError
from posttrain.records import Branch, Message, Prompt, TokenTree

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Rendered = TypeVar("Rendered", Prompt, TokenTree)
Piece = tuple[str, bool]  # a stretch of rendered text, and whether it is trained

PROMPT_DATE = date(2024, 7, 26)  # what Llama 3's templates fall back to where they cannot ask for the day
DATE_CALL = re.compile(r"""strftime_now\(\s*(?:format\s*=\s*)?(["'])(.*?)\1\s*\)""")


def render_prompt(row: Row, tokenizer: "PreTrainedTokenizerBase") -> Prompt:
    """Return a row's prompt as the model meets it when it is to answer.

    A string is tokenized as it is, after the BOS that the tokenizer adds by default; messages go through the chat
    template, which writes its own, with the settings in the row's column `chat_template_kwargs` and PROMPT_DATE as
    today's date. Raises DataError for a row without a prompt or a tokenizer without a template.
    """
    if row.prompt is None:
        raise DataError(f"{row.origin} is a {row.kind} row, expected one with a prompt")
    ids = _encode(tokenizer, _written_prompt(row, tokenizer))
    if isinstance(row.prompt, str):
        ids = _with_leading_ids(tokenizer, ids)
    if not ids:
        raise DataError(f"{row.origin}: the prompt has no token")
    return Prompt(id=row.id, ids=tuple(ids), content=row.prompt, columns=row.columns)


def render_training_tree(row: Row, tokenizer: "PreTrainedTokenizerBase") -> TokenTree:
    """Return a row's prompt and the one completion to train on, its end token (or the template's) trained too.

    Conversations: assistant turns from the completion on (of `messages`: all) are trained, what stands between them
    is not. Text: the first token is the prompt. Raises DataError when no token would be trained, or when the template
    gives no prompt that the completion continues.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise DataError(f"{_name(tokenizer)} has no end-of-sequence token: the model would never learn to stop")
    if row.text is not None:
        ids = _ending_in(end, _with_leading_ids(tokenizer, _encode(tokenizer, row.text)))
        return _checked_tree(row, ids[:1], [(id, 1) for id in ids[1:]])
    if isinstance(row.prompt, str) and isinstance(row.completion, str):
        prompt, completion = encode_pieces(tokenizer, [row.prompt, row.completion])
        marked = [(id, 1) for id in _ending_in(end, completion)]
        return _checked_tree(row, _with_leading_ids(tokenizer, prompt), marked)
    return _conversation_tree(row, tokenizer, end)


def render_choices(row: Row, tokenizer: "PreTrainedTokenizerBase") -> TokenTree:
    """Return a question's prompt with a branch for each of its `continuations`, none of which has an end token.

    Prompt and continuation are tokenized as one text and cut where a token ends at their border, as
    lm-evaluation-harness does; the prompt has the tokens that it has alone. Raises DataError for a row without
    choices, for a continuation without a token, and for messages where there is no chat template.
    """
    if row.kind != "choices":
        raise DataError(f"{row.origin} is a {row.kind} row, expected a question with choices")
    prompt, text = render_prompt(row, tokenizer), _written_prompt(row, tokenizer)
    branches = []
    for continuation in row.columns["continuations"]:
        _, ids = encode_pieces(tokenizer, [text, continuation])
        if not ids:
            raise DataError(f"{row.origin}: the choice {continuation!r} has no token")
        branches.append(Branch(tuple(ids), (1,) * len(ids)))
    return TokenTree(prompt.ids, tuple(branches))


def describe(tree: TokenTree, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the tokens of a tree as lines of equal mark: prompt, trained or untrained, count, tokens between bars."""
    lines = [_describe_run("prompt", tree.prompt_ids, tokenizer)]
    for branch in tree.branches:
        marked = zip(branch.ids, branch.mask, strict=True)
        for mark, run in groupby(marked, key=lambda pair: pair[1]):
            lines.append(_describe_run("trained" if mark else "untrained", [id for id, _ in run], tokenizer))
    return "\n".join(lines)


class RenderedRows(Mapping[str, Rendered]):
    """Prompts or trees by row id, in order, each made when it is asked for of what it is packed into."""

    def __init__(self) -> None:
        self._packed: dict[str, Callable[[], Rendered]] = {}

    def add(self, row_id: str, rendered: Rendered) -> None:
        """Pack what a row was rendered to."""
        self._packed[row_id] = _packed(rendered)

    def __getitem__(self, row_id: str) -> Rendered:
        return self._packed[row_id]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)


def _packed(rendered: Rendered) -> Callable[[], Rendered]:
    """Return a function that gives an equal one, and holds 5 bytes a token and 600 a row; tuples hold up to 44 a token.

    To render again instead would take 2.5 microseconds a token, which a small model's update on a GPU doesn't need.
    """
    if isinstance(rendered, Prompt):
        rest, ids = replace(rendered, ids=()), array("i", rendered.ids)
        return lambda: replace(rest, ids=tuple(ids))
    prompt_ids = array("i", rendered.prompt_ids)
    branches = [(array("i", branch.ids), bytes(branch.mask)) for branch in rendered.branches]
    return lambda: TokenTree(tuple(prompt_ids), tuple(Branch(tuple(ids), tuple(mask)) for ids, mask in branches))


def drop_overlong(
    rows: Sequence[Row], render: Callable[[Row], Rendered], *, max_length: int, reserve: int = 0
) -> tuple[RenderedRows[Rendered], list[Row]]:
    """Render rows and return, by row id in order, those within max_length tokens, and the rows dropped.

    `reserve` is room kept for tokens still to be sampled. Drops are logged; raises DataError when all rows drop.
    """
    kept: RenderedRows[Rendered] = RenderedRows()
    dropped: list[Row] = []
    shortest: int | None = None
    for row in rows:
        rendered = render(row)
        length = token_length(rendered) + reserve
        shortest = length if shortest is None else min(shortest, length)
        if length <= max_length:
            kept.add(row.id, rendered)
        else:
            dropped.append(row)
    if dropped:
        places = ", ".join(row.origin for row in dropped[:5])
        message = f"{len(dropped)} of {len(rows)} rows are longer than {max_length} tokens: {places}"
        if not kept:
            raise DataError(message, fix=f"--data.max_length {shortest} (the shortest)")
        logger.warning("%s", message + (", ... dropped" if len(dropped) > 5 else " dropped"))
    return kept, dropped


def token_length(rendered: Prompt | TokenTree) -> int:
    """Return the tokens of a prompt, or of a tree's prompt with its longest branch."""
    if isinstance(rendered, Prompt):
        return len(rendered.ids)
    return len(rendered.prompt_ids) + max((len(branch.ids) for branch in rendered.branches), default=0)


def encode_pieces(tokenizer: "PreTrainedTokenizerBase", pieces: Sequence[str]) -> list[list[int]]:
    """Return the ids of consecutive pieces of one text, cut out of the whole text's ids where all cuts fall on tokens.

    Where a token would cross a cut, every piece has the ids it has alone. Either way the first piece's are its own.
    """
    alone = [_encode(tokenizer, piece) for piece in pieces]
    whole = _encode(tokenizer, "".join(pieces))
    if list(chain.from_iterable(alone)) == whole:
        return alone
    cuts = [0]
    for count in range(1, len(pieces)):
        prefix = alone[0] if count == 1 else _encode(tokenizer, "".join(pieces[:count]))
        if whole[: len(prefix)] != prefix:
            return alone
        cuts.append(len(prefix))
    cuts.append(len(whole))
    return [whole[start:stop] for start, stop in pairwise(cuts)]


def _written_prompt(row: Row, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the text of a row's prompt; messages go through the chat template, up to where the reply begins."""
    assert row.prompt is not None
    if isinstance(row.prompt, str):
        return row.prompt
    return str(_template(row, tokenizer)(row.prompt, add_generation_prompt=True))


def _encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _with_leading_ids(tokenizer: "PreTrainedTokenizerBase", ids: list[int]) -> list[int]:
    """Put before a text what the tokenizer puts there by default (BOS, mostly), unless the text has it already."""
    if tokenizer.num_special_tokens_to_add() == 0:
        return ids
    plain, full = _encode(tokenizer, "a"), list(tokenizer("a")["input_ids"])
    start = next((at for at in range(len(full)) if full[at : at + len(plain)] == plain), 0)
    leading = full[:start]
    return ids if ids[:start] == leading else leading + ids


def _ending_in(end: int, ids: list[int]) -> list[int]:
    return ids if ids[-1:] == [end] else [*ids, end]


def _checked_tree(row: Row, prompt_ids: Sequence[int], marked: Sequence[tuple[int, int]]) -> TokenTree:
    if not prompt_ids:
        raise DataError(f"{row.origin}: the prompt has no token")
    if not any(mark for _, mark in marked):
        raise DataError(f"{row.origin}: no token of the completion would be trained")
    branch = Branch(ids=tuple(id for id, _ in marked), mask=tuple(mark for _, mark in marked))
    return TokenTree(prompt_ids=tuple(prompt_ids), branches=(branch,))


def _describe_run(mark: str, ids: Iterable[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    tokens = [repr(tokenizer.decode([id]))[1:-1] for id in ids]
    return f"{mark:<9} {len(tokens):>5}  |{'|'.join(tokens)}|"


# --- conversations ---------------------------------------------------------------------------------------------


def _conversation_tree(row: Row, tokenizer: "PreTrainedTokenizerBase", end: int) -> TokenTree:
    turns, first = _turns(row)
    render = _template(row, tokenizer)
    pieces = _turn_pieces(render, turns, first, _added_tokens(tokenizer))
    if pieces is None:
        return _generation_tree(row, tokenizer, turns[:first], turns, render)
    prompt, *rest = encode_pieces(tokenizer, [text for text, _ in pieces])
    marked = [(id, int(trained)) for ids, (_, trained) in zip(rest, pieces[1:], strict=True) for id in ids]
    if marked and marked[-1][0] not in tokenizer.added_tokens_decoder:
        marked.append((end, 1))  # the template marks no end of turn
    return _checked_tree(row, prompt, marked)


def _turns(row: Row) -> tuple[tuple[Message, ...], int]:
    """Return the whole conversation and the index of its first trained turn."""
    if row.messages is not None:
        roles = [turn["role"] for turn in row.messages]
        return row.messages, roles.index("assistant")
    if isinstance(row.prompt, tuple) and isinstance(row.completion, tuple):
        return row.prompt + row.completion, len(row.prompt)
    raise DataError(f"{row.origin} is a {row.kind} row, expected one with a completion, messages or text")


def _turn_pieces(
    render: Callable[..., str], turns: Sequence[Message], first: int, added_tokens: tuple[str, ...]
) -> list[Piece] | None:
    """Cut a rendered conversation before and after each trained turn, the prompt first; None where that cannot be.

    It cannot be where the template, once the conversation goes on, changes what stood before (Qwen3 drops thinking).
    """
    whole = render(turns)
    pieces: list[Piece] = []
    position = 0
    for index in range(first, len(turns)):
        if turns[index]["role"] != "assistant":
            continue
        head = render(turns[:index], add_generation_prompt=True)
        turn = render(turns[: index + 1])
        if not (turn.startswith(head) and whole.startswith(turn)):
            return None
        stop = len(turn)
        if turn.rstrip().endswith(added_tokens):  # what follows the end token is never sampled
            stop = len(turn.rstrip())
        pieces += [(whole[position : len(head)], False), (whole[len(head) : stop], True)]
        position = stop
    return pieces


def _generation_tree(
    row: Row,
    tokenizer: "PreTrainedTokenizerBase",
    prompt: Sequence[Message],
    turns: Sequence[Message],
    render: Callable[..., Any],
) -> TokenTree:
    """Take the mask from the template's own {% generation %} marks, with the end token after each of them."""
    encoded = render(turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = list(encoded["input_ids"]), list(encoded["assistant_masks"])
    prompt_ids = _encode(tokenizer, render(prompt, add_generation_prompt=True))
    if not any(mask) or ids[: len(prompt_ids)] != prompt_ids:
        raise DataError(
            f"{row.origin}: the chat template changes earlier turns once the conversation goes on (it drops their "
            "thinking, say), and has no {% generation %} marks, so what is trained is not what would be sampled",
            fix="make one row of prompt and completion for each assistant turn, or --model.chat_template FILE.jinja",
        )
    for at in range(1, len(ids)):
        if mask[at - 1] and ids[at] in tokenizer.added_tokens_decoder:
            mask[at] = 1
    last = max(at for at, mark in enumerate(mask) if mark)
    start = len(prompt_ids)
    return _checked_tree(row, prompt_ids, list(zip(ids, mask, strict=True))[start : last + 1])


def _template(row: Row, tokenizer: "PreTrainedTokenizerBase") -> Callable[..., Any]:
    """Return the function that renders turns as text with the row's template settings; refuse a missing template."""
    if tokenizer.chat_template is None:
        raise DataError(
            f"{_name(tokenizer)} has no chat template (it is a base model), and {row.origin} holds messages",
            fix="--model.chat_template FILE.jinja (and teach it with posttrain sft), or a --data.prompt_style of text",
        )
    settings = row.columns.get("chat_template_kwargs", {})
    template = tokenizer.get_chat_template(settings.get("chat_template"), settings.get("tools"))
    return partial(_render, tokenizer, row.origin, {**settings, "chat_template": _with_fixed_date(template)})


@lru_cache(maxsize=8)  # for each row again; and so the notice comes once
def _with_fixed_date(template: str) -> str:
    """Return a chat template that writes PROMPT_DATE, in the format it asks for, where it would write today's date.

    A run that goes on tomorrow, or is done again, then sees the same prompts.
    """
    fixed = DATE_CALL.sub(lambda call: json.dumps(PROMPT_DATE.strftime(call[2])), template)
    if fixed != template:
        logger.warning(
            "the chat template writes today's date: every prompt has %s instead, so that it is the same on any day "
            "(another one: --model.chat_template FILE.jinja)",
            PROMPT_DATE,
        )
    return fixed


def _render(
    tokenizer: Any,  # the annotations of apply_chat_template know neither messages nor what its options return
    origin: str,
    settings: Mapping[str, Any],
    turns: Sequence[Message],
    **options: Any,
) -> Any:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(list(turns), **{"tokenize": False, **settings, **options})
    except TemplateError as error:
        raise DataError(f"{origin}: the chat template refuses the conversation ({error})") from error


def _added_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    return tuple(token.content for token in tokenizer.added_tokens_decoder.values())


def _name(tokenizer: "PreTrainedTokenizerBase") -> str:
    return tokenizer.name_or_path or "the tokenizer"
