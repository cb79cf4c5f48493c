"""Turn TOML files and command-line flags into settings, and say where each value came from.

Floor 0: knows the form of settings (pydantic models), never what a stage does with them. Order of precedence:
default, file, flag. Every problem of a file and its flags is reported at once, with its line or its flag.
"""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args, get_origin

from pydantic import ValidationError

from posttrain.errors import ConfigError
from posttrain.field_types import describe, field_type, is_table, item_type, members, read_text, show
from posttrain.foreign_keys import foreign_key
from posttrain.settings import Settings

Key = tuple[str, ...]
DEFAULT = "default"
Model = TypeVar("Model", bound=Settings)


@dataclass(frozen=True, slots=True)
class Entry:
    """A value as someone wrote it."""

    key: Key
    value: Any  # from a flag: the text, still to be read as the field's type; None for a flag without a value
    origin: str  # "recipe.toml:12" or "--stage.grpo.kl_coef"
    is_text: bool = False


@dataclass(frozen=True, slots=True)
class Resolved(Generic[Model]):
    """Settings, and for each dotted key the origin of its value: "default", file:line or a flag."""

    settings: Model
    origins: Mapping[str, str]


class FieldHelp(NamedTuple):
    """What help prints about one setting."""

    key: str
    type: str
    default: str
    doc: str


class Leaf(NamedTuple):
    value: Any
    origin: str


# ---------------------------------------------------------------- reading files and flags


def read_toml(path: str | Path) -> list[Entry]:
    """Return every value of a TOML file with its line; an empty table is a value too."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line} is not valid UTF-8, as TOML must be") from error
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    lines = key_lines(text)
    return [Entry(key, value, f"{path}:{lines[key]}") for key, value in flatten(document)]


def key_lines(text: str) -> dict[Key, int]:
    """Return the line (from 1) of every key and table of a valid TOML document.

    tomllib keeps no positions, so the text is cut into statements: the fewest lines that tomllib accepts alone.
    """
    found: dict[Key, int] = {}
    table: Key = ()
    statement, start = "", 1
    for number, line in enumerate(text.split("\n"), start=1):
        start = number if not statement else start
        statement += line + "\n"
        try:
            parsed = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue  # inside a multi-line string or array
        for key, _ in flatten(parsed):
            if statement.lstrip().startswith("["):
                table = key
            full = table if statement.lstrip().startswith("[") else table + key
            for end in range(1, len(full) + 1):
                found.setdefault(full[:end], start)
        statement = ""
    return found


def parse_flags(tokens: Sequence[str], problems: list[str]) -> list[Entry]:
    """Read `--dotted.key value`, `--dotted.key=value` and `--dotted.key` (true); `-` in a setting's name means `_`."""
    entries: list[Entry] = []
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--") or token == "--":
            problems.append(f"unexpected {token!r}: a setting is written --key value")
            continue
        flag, equals, text = token.partition("=")
        value: str | None = text if equals else None
        if not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        key = tuple(flag[2:].replace("-", "_").split("."))
        entries.append(Entry(key, value, flag, is_text=True))
    return entries


def flatten(table: Mapping[str, Any], prefix: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Yield the leaves of nested tables; an empty table is a leaf."""
    for name, value in table.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, (*prefix, name))
        else:
            yield (*prefix, name), value


def under(entries: Sequence[Entry], *prefix: str) -> list[Entry]:
    """Return the entries of one table, their keys relative to it."""
    size = len(prefix)
    return [replace(entry, key=entry.key[size:]) for entry in entries if entry.key[:size] == prefix]


# ---------------------------------------------------------------- building settings


def resolve(
    settings_class: type[Model], entries: Sequence[Entry], problems: list[str], *, where: str
) -> Resolved[Model] | None:
    """Build settings from defaults and entries (later ones win); append what is wrong and return None instead.

    `where` stands in the message about a required key that nobody wrote.
    """
    leaves = default_leaves(settings_class)
    preset = preset_keys(settings_class)
    known = len(problems)
    for entry in entries:
        try:
            for key, value in _values_of(settings_class, entry, entries):
                _place(leaves, key, Leaf(value, entry.origin))
        except ConfigError as error:
            problems.append(f"{entry.origin}: {error}")
    settings = None
    try:
        given = {key: leaf for key, leaf in leaves.items() if leaf.origin != DEFAULT or key in preset}
        settings = settings_class.model_validate(unflatten(given))
    except ValidationError as error:
        problems.extend(_explain(settings_class, error, leaves, where))
    if settings is None or len(problems) > known:
        return None
    return Resolved(settings, {".".join(key): leaf.origin for key, leaf in leaves.items()})


def refuse(problems: Sequence[str]) -> None:
    """Raise one ConfigError that lists every problem; do nothing where there is none."""
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        raise ConfigError("\n".join([f"{len(problems)} problems", *(f"  {problem}" for problem in problems)]))


def leaves_of(fields: Mapping[str, Any], prefix: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Yield the values of settings (as `dict(settings)`), those of nested tables under longer keys."""
    for name, value in fields.items():
        if isinstance(value, Settings):
            yield from leaves_of(dict(value), (*prefix, name))
        else:
            yield (*prefix, name), value


def with_value(settings: Model, dotted: str, value: Any) -> Model:
    """Return the settings with one value changed; unchanged where they have no such key."""
    name, _, rest = dotted.partition(".")
    if name not in type(settings).model_fields:
        return settings
    inner = with_value(getattr(settings, name), rest, value) if rest else value
    return settings.model_copy(update={name: inner})


def default_leaves(settings_class: type[Settings]) -> dict[Key, Leaf]:
    """Return the defaults: a nested table starts from its parent's default, not from its class's."""
    fields = settings_class.model_fields
    defaults = {name: field.get_default() for name, field in fields.items() if not field.is_required()}
    return {key: Leaf(value, DEFAULT) for key, value in leaves_of(defaults)}


def preset_keys(settings_class: type[Settings]) -> set[Key]:
    """Return the keys that a parent's default sets in a nested table.

    Only these and what was written are given to pydantic, so that `model_fields_set` tells a choice from a default.
    """

    def preset(settings: Settings, prefix: Key) -> Iterator[Key]:
        for name in settings.model_fields_set:
            value = getattr(settings, name)
            yield from preset(value, (*prefix, name)) if isinstance(value, Settings) else [(*prefix, name)]

    defaults = {name: field.get_default() for name, field in settings_class.model_fields.items()}
    return {key for name, value in defaults.items() if isinstance(value, Settings) for key in preset(value, (name,))}


def unflatten(leaves: Mapping[Key, Leaf]) -> dict[str, Any]:
    """Return nested tables of the leaves' values."""
    root: dict[str, Any] = {}
    for key, leaf in leaves.items():
        table = root
        for name in key[:-1]:
            table = table.setdefault(name, {})
        table[key[-1]] = leaf.value
    return root


def fingerprint(settings: Settings | Mapping[str, Any]) -> str:
    """Return the sha256 of the settings' canonical JSON: the same for equal settings on every machine."""
    content = settings.model_dump(mode="json") if isinstance(settings, Settings) else settings
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def field_help(settings_class: type[Settings], prefix: str = "") -> Iterator[FieldHelp]:
    """Yield one row of help for every setting, nested tables dotted."""
    defaults = {".".join(key): show(leaf.value) for key, leaf in default_leaves(settings_class).items()}
    for name, field in settings_class.model_fields.items():
        if is_table(field.annotation):
            for row in field_help(field.annotation, f"{prefix}{name}."):  # type: ignore[arg-type]
                yield row._replace(default=defaults.get(row.key.removeprefix(prefix), row.default))
        else:
            yield FieldHelp(prefix + name, describe(field), defaults.get(name, "required"), _doc(settings_class, name))


def _doc(settings_class: type[Settings], name: str) -> str:
    """Return the field's description; a field that only changes its default keeps its parent's."""
    classes = [base for base in settings_class.__mro__ if issubclass(base, Settings) and name in base.model_fields]
    return next((text for base in classes if (text := base.model_fields[name].description)), "")


def _values_of(settings_class: type[Settings], entry: Entry, entries: Sequence[Entry]) -> Iterator[tuple[Key, Any]]:
    """Yield the leaves that an entry sets; raise ConfigError for an unknown key or a value of the wrong form."""
    entry = _as_written(settings_class, entry)
    annotation = _annotation_at(settings_class, entry, entries)
    value = read_text(entry.value, annotation) if entry.is_text else entry.value
    if is_table(annotation):
        if value == {}:
            return
        names = list(annotation.model_fields)
        raise ConfigError(f"{entry.key[-1]} is a table with keys of its own: {', '.join(names)}{_dotted(entry, names)}")
    if isinstance(value, dict) and value:
        yield from flatten(value, entry.key)
    else:
        yield entry.key, value


def _as_written(settings_class: type[Settings], entry: Entry) -> Entry:
    """Return a flag's entry with its keys inside a free table as written: a column may have a dash in its name."""
    annotation: Any = settings_class
    for depth, name in enumerate(entry.key):
        if entry.is_text and item_type(annotation, dict) is not None:
            written = entry.origin.removeprefix("--").split(".")[depth - len(entry.key) :]
            return replace(entry, key=(*entry.key[:depth], *written))
        if not is_table(annotation) or name not in annotation.model_fields:
            break
        annotation = field_type(annotation.model_fields[name])
    return entry


def _dotted(entry: Entry, names: Sequence[str]) -> str:
    return f"; did you mean {entry.origin}.{names[0]} {entry.value}?" if entry.is_text and entry.value else ""


def _place(leaves: dict[Key, Leaf], key: Key, leaf: Leaf) -> None:
    """Set one leaf; what was written replaces a default table as a whole and adds to a written one."""
    for other in list(leaves):
        if other != key and (other[: len(key)] == key or key[: len(other)] == other):
            del leaves[other]
    leaves[key] = leaf


def _annotation_at(settings_class: type[Settings], entry: Entry, entries: Sequence[Entry]) -> Any:
    """Return the type of the field that an entry's key names."""
    annotation: Any = settings_class
    for depth, name in enumerate(entry.key):
        if is_table(annotation):
            if name not in annotation.model_fields:
                raise ConfigError(_unknown_key(annotation, settings_class, entry, depth, entries))
            annotation = field_type(annotation.model_fields[name])
        elif (value_type := item_type(annotation, dict)) is not None:
            annotation = value_type
        else:
            parent = ".".join(entry.key[:depth])
            raise ConfigError(f"unknown key {'.'.join(entry.key)}: {parent} is {describe(annotation)}, not a table")
    return annotation


def _unknown_key(
    table: type[Settings], settings_class: type[Settings], entry: Entry, depth: int, entries: Sequence[Entry]
) -> str:
    name, prefix = entry.key[depth], entry.key[:depth]
    message = f"unknown key {'.'.join(entry.key)}"
    siblings = {other.key[-1]: other.value for other in entries if other.key[:-1] == prefix}
    if pointer := foreign_key(name, set(table.model_fields), siblings):
        return f"{message}: {pointer}"
    everywhere = {".".join(key): key for key in default_leaves(settings_class)}
    if moved := [dotted for dotted, key in everywhere.items() if key[-1] == name]:
        return f"{message}; did you mean {moved[0]}?"
    here = [".".join((*prefix, field)) for field in table.model_fields]
    return message + near_match(".".join(entry.key), [*here, *everywhere], known=sorted(table.model_fields))


def near_match(name: str, candidates: Sequence[str], *, known: Sequence[str] = ()) -> str:
    """Return "; did you mean X?", or the known names where nothing is near, to end an error with."""
    if match := difflib.get_close_matches(name, candidates, n=1, cutoff=0.6):
        return f"; did you mean {match[0]}?"
    return f"; known: {', '.join(known or candidates)}" if known or candidates else ""


def _explain(
    settings_class: type[Settings], error: ValidationError, leaves: Mapping[Key, Leaf], where: str
) -> Iterator[str]:
    """Yield one plain sentence for each key that pydantic refused."""
    seen: set[Key] = set()
    for detail in error.errors():
        place = tuple(str(part) for part in detail["loc"])
        key = next((place[:size] for size in range(len(place), 0, -1) if place[:size] in leaves), place)
        if key in seen:
            continue  # each member of a union complains
        seen.add(key)
        dotted = ".".join(key)
        if key not in leaves:
            message = detail["msg"] if detail["type"] != "missing" else f"{dotted} is required"
            yield f"{where}: {message}"
            continue
        leaf = leaves[key]
        annotation = _annotation_at(settings_class, Entry(key, leaf.value, leaf.origin), ())
        origin = where if leaf.origin == DEFAULT else leaf.origin
        if detail["type"] == "value_error":
            yield f"{origin}: {dotted}: {detail['msg'].removeprefix('Value error, ')}"
        else:
            yield f"{origin}: {dotted} must be {describe(annotation)}, not {show(leaf.value)}{_hint(leaf, annotation)}"


def _hint(leaf: Leaf, annotation: Any) -> str:
    choices = [choice for kind in members(annotation) if get_origin(kind) is Literal for choice in get_args(kind)]
    if isinstance(leaf.value, str) and choices:
        match = difflib.get_close_matches(leaf.value, choices, n=1)
        return f"; did you mean {show(match[0])}?" if match else ""
    from_file = not leaf.origin.startswith("--")
    if from_file and isinstance(leaf.value, str) and not isinstance(read_text(leaf.value, annotation), str):
        return f"; write it without quotes: {leaf.value}"
    return ""
