"""The types of settings in words, and values read from and written as text.

Floor 0: knows the annotations that settings use (numbers with bounds, choices, lists, tables), and no setting by name.
"""

import json
import tomllib
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from posttrain.errors import ConfigError
from posttrain.settings import Settings


def describe(kind: Any) -> str:
    """Return a field or type in words, e.g. "an integer of at least 1", "one of auto, cpu"."""
    return " or ".join(_describe_one(member) for member in members(field_type(kind)))


def show(value: Any) -> str:
    """Return a value as one would write it in TOML; None as none."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {show(item)}" for name, item in value.items()) + "}"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False, default=str)


_NOUNS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "a list",
    NoneType: "none",
}
_BOUNDS = {"gt": "above", "ge": "of at least", "lt": "below", "le": "of at most", "min_length": "of at least"}


def _describe_one(kind: Any) -> str:
    base, limits = split_annotated(kind)
    bounds = [
        f"{words} {getattr(limit, name):g}"
        for limit in limits
        for name, words in _BOUNDS.items()
        if hasattr(limit, name)
    ]
    origin = get_origin(base) or base
    noun, rest = _NOUNS.get(origin, "a table"), ""
    if origin is Literal:
        noun = f"one of {', '.join(map(str, get_args(base)))}"
    elif origin is list:
        rest = f", each {describe(get_args(base)[0])}"
    elif origin is dict:
        rest = f", each value {describe(get_args(base)[1])}"
    return " ".join([noun, " and ".join(bounds)]).strip() + rest


def field_type(kind: Any) -> Any:
    if isinstance(kind, FieldInfo):
        return Annotated[kind.annotation, *kind.metadata] if kind.metadata else kind.annotation
    return kind


def split_annotated(kind: Any) -> tuple[Any, list[Any]]:
    """Return the bare type and its limits."""
    if get_origin(kind) is not Annotated:
        return kind, []
    base, *extras = get_args(kind)
    return base, [limit for extra in extras for limit in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]


def members(kind: Any) -> list[Any]:
    """Return the members of a union, or the type alone."""
    return list(get_args(kind)) if get_origin(kind) in (Union, UnionType) else [kind]


def is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Settings)


def item_type(kind: Any, container: type) -> Any:
    """Return the type of the items of a list or dict, None for any other type."""
    base, _ = split_annotated(kind)
    return get_args(base)[-1] if get_origin(base) is container else None


def read_text(text: str | None, kind: Any) -> Any:
    """Read a flag's text as its field's type; text that fits no type stays text, for validation to refuse."""
    bases = [get_origin(base) or base for base in (split_annotated(member)[0] for member in members(kind))]
    if text is None:
        if bool in bases:
            return True
        raise ConfigError(f"needs a value: {describe(kind)}")
    if NoneType in bases and text.lower() in ("none", "null"):
        return None
    if bool in bases and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for container, brackets in ((list, "[]"), (dict, "{}")):
        if container in bases and text[:1] == brackets[0] and text[-1:] == brackets[1]:
            return _read_container(text)
    for number in (int, float):
        if number in bases:
            try:
                return number(text)
            except ValueError:
                continue
    return text


def _read_container(text: str) -> Any:
    """Read a list or table written as JSON or as TOML."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        pass
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
