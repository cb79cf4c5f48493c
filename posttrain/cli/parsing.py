"""What the verbs share: settings out of flags, and results as text or JSON.

Floor 7.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import Parameter

if TYPE_CHECKING:
    from posttrain.settings import DataSettings, Settings

Parsed = TypeVar("Parsed", bound="Settings")
JsonFlag = Annotated[bool, Parameter(name="--json", help="Print JSON.")]
Overrides = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]


def parsed(settings_class: type[Parsed], tokens: Sequence[str], verb: str) -> Parsed:
    """Return the settings that flags without a section make, such as --temperature 0.7."""
    from posttrain.config import parse_flags, refuse, resolve

    problems: list[str] = []
    resolved = resolve(settings_class, parse_flags(tokens, problems), problems, where=verb)
    refuse(problems)
    assert resolved is not None
    return resolved.settings


def data_settings(source: str, overrides: Sequence[str], verb: str) -> "DataSettings":
    """Return the settings of a source and of flags without a section, such as --split test."""
    from posttrain.settings import DataSettings

    return parsed(DataSettings, [f"--source={source}", *overrides], verb)


def print_result(content: Any, text: str, *, as_json: bool) -> None:
    """Print a result for a program or for a person."""
    print(json.dumps(content, ensure_ascii=False) if as_json else text)
