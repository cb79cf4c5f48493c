"""The row: one checked example of a data set, whatever file it came from, in TRL's schemas.

Floor 1. Columns: `prompt`; `prompt, completion`; `messages`; `text`; `prompt, chosen, rejected`, or `chosen, rejected`
with the prompt in both; `prompt, completion, label`; each a string or a list of messages as TRL has them; and, which
TRL has not, `question, choices, answer`. All further columns are kept for the rewards. Knows no tokenizer.
"""

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, cast

from posttrain.data.choices import CHOICE_STYLES, read_choice_question
from posttrain.data.files import Fault, Malformed, Record
from posttrain.data.prompts import PROMPT_STYLES, Text
from posttrain.records import Message

Kind = Literal["prompt", "prompt_completion", "messages", "text", "preference", "unpaired", "choices"]

# A row set has the first of these kinds whose columns it has: UltraChat, with prompt and messages, holds messages.
SCHEMAS: dict[Kind, tuple[str, ...]] = {
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "prompt": ("prompt",),
    "text": ("text",),
}
# These have columns that may mean something else: a row set holds them only for a stage that asks for them.
WANTED_SCHEMAS: dict[Kind, tuple[str, ...]] = {
    "choices": ("question", "choices", "answer"),
    "preference": ("chosen", "rejected"),
    "unpaired": ("prompt", "completion", "label"),
}
DEFAULT_CHOICE_STYLE = "letters"
ROLES = ("system", "developer", "user", "assistant", "tool")
LABELS = {"true": True, "1": True, "false": False, "0": False}  # in words
ASSISTANT_MARK = "\n\nAssistant:"  # HH-RLHF's: what comes after the last one is the completion


@dataclass(frozen=True, slots=True)
class Row:
    """One example; the fields that its kind lacks are None."""

    id: str  # hash of the record as read, before renames and prompt style: pairs evaluations of different styles
    kind: Kind
    origin: str  # "file.jsonl:12", or "file.parquet:row 12" where there are no lines
    prompt: Text | None = None
    completion: Text | None = None
    messages: tuple[Message, ...] | None = None
    text: str | None = None
    chosen: Text | None = None
    rejected: Text | None = None
    label: bool | None = None  # whether the completion is desirable
    columns: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))  # read-only all the way down


def kind_of(columns: Collection[str], wanted: Collection[Kind] = ()) -> Kind | None:
    """Return the kind of rows that these columns make, None for none; pairs and choices only where wanted."""
    schemas = {kind: needed for kind, needed in WANTED_SCHEMAS.items() if kind in wanted} | SCHEMAS
    return next((kind for kind, needed in schemas.items() if set(needed) <= set(columns)), None)


def record_id(record: Record) -> str:
    """Hash a record's content, regardless of column order and of columns without a value; raise on bad characters."""
    for text in _strings(record):
        if "\x00" in text:
            raise Malformed(Fault.NUL)
    present = {name: value for name, value in record.items() if value is not None}
    canonical = json.dumps(present, ensure_ascii=False, sort_keys=True, default=str)
    try:
        return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()
    except UnicodeEncodeError:
        raise Malformed(Fault.SURROGATE) from None


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _strings(part)]
    if isinstance(value, list | tuple):  # Parquet's maps come as lists of tuples
        return [text for item in value for text in _strings(item)]
    return []


def freeze(value: Any) -> Any:
    """Return a read-only copy: dicts become mapping proxies and lists tuples, at every depth."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: freeze(item) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    return value


def build_row(record: Record, *, id: str, kind: Kind, origin: str, prompt_style: str | None = None) -> Row:
    """Check a record of a known kind and return its row; raise `Malformed` with the first fault met."""
    needed = SCHEMAS[kind] if kind in SCHEMAS else WANTED_SCHEMAS[kind]
    used = (*needed, "prompt") if kind == "preference" else needed
    columns = freeze({name: value for name, value in record.items() if name not in used and value is not None})
    for name in needed:
        if record.get(name) is None:
            raise Malformed(Fault.COLUMN, f'no "{name}"')
    if kind == "choices":
        return _choices_row(record, Row(id, kind, origin, columns=columns), prompt_style)
    if kind == "preference":
        prompt, chosen, rejected = _pair(record, prompt_style)
        if record.get("margin") is not None:
            columns = MappingProxyType({**columns, "margin": _margin(record["margin"])})
        return Row(id, kind, origin, prompt=prompt, chosen=chosen, rejected=rejected, columns=columns)
    if kind == "messages":
        return Row(id, kind, origin, messages=_conversation(record["messages"]), columns=columns)
    if kind == "text":
        return Row(id, kind, origin, text=_filled(record["text"], "text", Fault.EMPTY_TEXT), columns=columns)
    prompt = _prompt(record["prompt"], prompt_style)
    if kind == "prompt":
        return Row(id, kind, origin, prompt=prompt, columns=columns)
    completion = _completion(record["completion"], "completion", prompt)
    label = _label(record["label"]) if kind == "unpaired" else None
    return Row(id, kind, origin, prompt=prompt, completion=completion, label=label, columns=columns)


def _choices_row(record: Record, row: Row, style: str | None) -> Row:
    """Return the row of a question: its columns gain what it was read as, and `continuations`, one for each choice."""
    asked = read_choice_question(record)
    prompt, continuations = CHOICE_STYLES[style or DEFAULT_CHOICE_STYLE](asked)
    found = {"question": asked.question, "choices": asked.choices, "answer": asked.answer}
    return replace(row, prompt=prompt, columns=freeze({**row.columns, **found, "continuations": continuations}))


def _prompt(value: Any, style: str | None) -> Text:
    if isinstance(value, str):
        text = _filled(value, "prompt", Fault.EMPTY_PROMPT)
        return PROMPT_STYLES[style](text) if style else text
    if style:
        raise Malformed(Fault.TYPE, f"prompt style {style} needs a string, came {type(value).__name__}")
    turns = _turns(value, "prompt", Fault.EMPTY_PROMPT)
    if turns[-1]["role"] == "assistant":
        raise Malformed(Fault.TURNS, "the prompt ends with an assistant turn")
    return turns


def _completion(value: Any, name: str, prompt: Text) -> Text:
    if isinstance(prompt, str) != isinstance(value, str):
        raise Malformed(Fault.TYPE, f"prompt and {name}: one is a string, the other a list of messages")
    if isinstance(value, str):
        return _filled(value, name, Fault.EMPTY_COMPLETION)
    turns = _turns(value, name, Fault.EMPTY_COMPLETION)
    if turns[0]["role"] != "assistant":
        raise Malformed(Fault.TURNS, f"the {name} starts with a {turns[0]['role']} turn")
    return turns


def _pair(record: Record, style: str | None) -> tuple[Text, Text, Text]:
    """Return prompt, chosen and rejected; without a prompt, it is what both completions begin with."""
    chosen, rejected = record["chosen"], record["rejected"]
    if record.get("prompt") is not None:
        prompt = _prompt(record["prompt"], style)
    else:
        shared, chosen, rejected = _cut_prompt(chosen, rejected)
        prompt = _prompt(shared, style)
    pair = _completion(chosen, "chosen", prompt), _completion(rejected, "rejected", prompt)
    if _bare(pair[0]) == _bare(pair[1]):
        raise Malformed(Fault.SAME)
    return prompt, *pair


def _margin(value: Any) -> float:
    """Return by how much chosen is better; a string of a number, as CSV has it, is read."""
    try:
        margin = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        margin = math.nan
    if not math.isfinite(margin):
        raise Malformed(Fault.TYPE, f"margin is {str(value)[:40]!r}, not a finite number")
    return margin


def _label(value: Any) -> bool:
    """Return whether a completion is desirable; strings, as CSV has them, are read."""
    label = LABELS.get(value.strip().lower()) if isinstance(value, str) else value
    if not isinstance(label, bool):
        raise Malformed(Fault.TYPE, f"label is {str(value)[:40]!r}, not true or false")
    return label


def _cut_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """Cut what two whole conversations share from both: whole turns, or text up to HH-RLHF's mark or to a space."""
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise Malformed(Fault.TYPE, "chosen and rejected: one is a string, the other a list of messages")
    if not isinstance(chosen, str):
        chosen = _turns(chosen, "chosen", Fault.EMPTY_COMPLETION)
        rejected = _turns(rejected, "rejected", Fault.EMPTY_COMPLETION)
    pairs = enumerate(zip(chosen, rejected, strict=False))
    size = next((at for at, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))
    if isinstance(chosen, str):
        mark = chosen.rfind(ASSISTANT_MARK, 0, size)
        words = max(chosen.rfind(" ", 0, size), chosen.rfind("\n", 0, size), 0)
        size = mark + len(ASSISTANT_MARK) if mark >= 0 else words
    while size and not isinstance(chosen, str) and chosen[size - 1]["role"] == "assistant":
        size -= 1
    if not size:
        raise Malformed(Fault.EMPTY_PROMPT, "chosen and rejected begin with nothing in common, and there is no prompt")
    return chosen[:size], chosen[size:], rejected[size:]


def normalised(text: str) -> str:
    """Return a text without what says nothing new: case, and white space but for one space between words."""
    return " ".join(text.split()).casefold()


def _bare(text: Text) -> list[str]:
    """Return the contents without the white space around them, which chat templates may trim."""
    return [text.strip()] if isinstance(text, str) else [f"{turn['role']} {turn['content'].strip()}" for turn in text]


def _conversation(value: Any) -> tuple[Message, ...]:
    turns = _turns(value, "messages", Fault.EMPTY_PROMPT)
    if turns[0]["role"] == "assistant":
        raise Malformed(Fault.TURNS, "the conversation starts with an assistant turn")
    if all(turn["role"] != "assistant" for turn in turns):
        raise Malformed(Fault.EMPTY_COMPLETION, "no assistant turn")
    return turns


def _turns(value: Any, name: str, empty: Fault) -> tuple[Message, ...]:
    if not isinstance(value, list | tuple):
        raise Malformed(Fault.TYPE, f"{name} is {type(value).__name__}")
    if not value:
        raise Malformed(empty, f"{name} is an empty list")
    turns = tuple(_turn(item, f"{name}[{index}]") for index, item in enumerate(value))
    for index, turn in enumerate(turns):
        if index and turn["role"] in ("system", "developer"):
            raise Malformed(Fault.TURNS, f"{name}[{index}] is a {turn['role']} turn after the first")
    return turns


def _turn(value: Any, name: str) -> Message:
    if not isinstance(value, Mapping):
        raise Malformed(Fault.TYPE, f"{name} is {type(value).__name__}")
    role, content = value.get("role"), value.get("content")
    if not isinstance(role, str) or not isinstance(content, str):
        wrong = "role" if not isinstance(role, str) else "content"
        raise Malformed(Fault.TYPE, f"{name}.{wrong} is {type(value.get(wrong)).__name__}")
    if role not in ROLES:
        raise Malformed(Fault.ROLE, f"{name}.role is {role!r}, expected one of {', '.join(ROLES)}")
    if role in ("user", "assistant") and not content.strip():
        raise Malformed(Fault.EMPTY_PROMPT if role == "user" else Fault.EMPTY_COMPLETION, f"{name} has no content")
    # templates also read keys such as reasoning_content; Parquet fills absent ones with None
    return cast(Message, {key: item for key, item in value.items() if item is not None})


def _filled(value: Any, name: str, empty: Fault) -> str:
    if not isinstance(value, str):
        raise Malformed(Fault.TYPE, f"{name} is {type(value).__name__}")
    if not value.strip():
        raise Malformed(empty, f"{name} has no content")
    return value
