"""Which of its instructions a completion follows, strictly and loosely, as IFEval has the two.

Floor 3, pure: reads the columns of rows, raises for those that cannot be checked.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.data.columns import closest
from posttrain.rewards.instructions import INSTRUCTIONS

NAMES, ARGUMENTS = "instruction_id_list", "kwargs"  # the columns of a row


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a row: its kind's name, and its arguments as they were read."""

    name: str
    arguments: Mapping[str, Any]

    def is_followed(self, text: str) -> bool:
        """Return whether a text follows it; a blank text follows nothing."""
        return bool(text.strip()) and INSTRUCTIONS[self.name].follows(text, **self.arguments)


def read_instructions(columns: Mapping[str, Any]) -> tuple[Instruction, ...]:
    """Return the instructions of a row, () where it names none; raises ValueError saying what is wrong with them."""
    names, given = columns.get(NAMES), columns.get(ARGUMENTS)
    if names is None:
        return ()
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise ValueError(f"{NAMES} must be a list of instructions, not {names!r}")
    if isinstance(given, str) or not isinstance(given, Sequence) or len(given) != len(names):
        count = len(given) if isinstance(given, Sequence) and not isinstance(given, str) else "no list"
        raise ValueError(f"{ARGUMENTS} must be a list as long as {NAMES}, {len(names)}, not {count}")
    return tuple(_read_instruction(*each) for each in zip(names, given, strict=True))


def followed_strictly(text: str, instructions: Sequence[Instruction]) -> list[bool]:
    """Return for each instruction whether the text follows it as it stands."""
    return [each.is_followed(text) for each in instructions]


def followed_loosely(text: str, instructions: Sequence[Instruction]) -> list[bool]:
    """Return for each instruction whether the text, or a variant of it, follows it.

    Variants lack the first line, the last, or both (an opening, a closing), or the asterisks of Markdown: section 2.2
    of the paper, which makes the strict verdict a lower and this one an upper bound.
    """
    variants = list(dict.fromkeys(_variants(text)))
    return [any(map(each.is_followed, variants)) for each in instructions]


def _variants(text: str) -> Iterator[str]:
    lines = text.split("\n")
    yield from (text, text.replace("*", ""))
    for kept in (lines[1:], lines[:-1], lines[1:-1]):
        shorter = "\n".join(kept).strip()
        yield from (shorter, shorter.replace("*", ""))


def _read_instruction(name: Any, given: Any) -> Instruction:
    if name not in INSTRUCTIONS:
        near = closest(str(name), INSTRUCTIONS)
        raise ValueError(f"no instruction {name!r} is known, the nearest is {near}; known: {', '.join(INSTRUCTIONS)}")
    values = given or {}
    if not isinstance(values, Mapping):
        raise ValueError(f"the {ARGUMENTS} of {name} must be an object, not {given!r}")
    return Instruction(name, {key: _read(name, key, values) for key in INSTRUCTIONS[name].arguments})


def _read(name: str, key: str, values: Mapping[str, Any]) -> Any:
    if values.get(key) is None:
        raise ValueError(f"{name} needs {key} among its {ARGUMENTS}")
    try:
        return INSTRUCTIONS[name].arguments[key](values[key])
    except ValueError as error:
        raise ValueError(f"{key} of {name} {error}") from None
