"""The row: one checked example of a data set, whatever file it came from, in TRL's schemas.

Floor 1. Columns: `prompt`; `prompt, completion`; `messages`; `text`; each a string or a list of messages as TRL
has them; all further columns are kept for the rewards. Knows no tokenizer.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, cast

from posttrain.data.files import Fault, Malformed, Record
from posttrain.data.prompts import PROMPT_STYLES, Text
from posttrain.records import Message

Kind = Literal["prompt", "prompt_completion", "messages", "text"]

# A row set has the first of these kinds whose columns it has: UltraChat, with prompt and messages, holds messages.
SCHEMAS: dict[Kind, tuple[str, ...]] = {
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "prompt": ("prompt",),
    "text": ("text",),
}
ROLES = ("system", "developer", "user", "assistant", "tool")


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
    columns: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))  # read-only all the way down


def kind_of(columns: Collection[str]) -> Kind | None:
    """Return the kind of rows that these columns make, None when they make none."""
    return next((kind for kind, needed in SCHEMAS.items() if set(needed) <= set(columns)), None)


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
    columns = freeze({name: value for name, value in record.items() if name not in SCHEMAS[kind] and value is not None})
    for name in SCHEMAS[kind]:
        if record.get(name) is None:
            raise Malformed(Fault.COLUMN, f'no "{name}"')
    if kind == "messages":
        return Row(id, kind, origin, messages=_conversation(record["messages"]), columns=columns)
    if kind == "text":
        return Row(id, kind, origin, text=_filled(record["text"], "text", Fault.EMPTY_TEXT), columns=columns)
    prompt = _prompt(record["prompt"], prompt_style)
    if kind == "prompt":
        return Row(id, kind, origin, prompt=prompt, columns=columns)
    completion = _completion(record["completion"])
    if isinstance(prompt, str) != isinstance(completion, str):
        raise Malformed(Fault.TYPE, "prompt and completion: one is a string, the other a list of messages")
    return Row(id, kind, origin, prompt=prompt, completion=completion, columns=columns)


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


def _completion(value: Any) -> Text:
    if isinstance(value, str):
        return _filled(value, "completion", Fault.EMPTY_COMPLETION)
    turns = _turns(value, "completion", Fault.EMPTY_COMPLETION)
    if turns[0]["role"] != "assistant":
        raise Malformed(Fault.TURNS, f"the completion starts with a {turns[0]['role']} turn")
    return turns


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
        raise Malformed(empty)
    return value
