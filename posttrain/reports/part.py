"""A part of a report: what it found in words, its figures and tables, and its numbers for a program.

Floor 5: knows neither the files that it was made of nor the pages that show it. Texts may be a model's: whoever shows
them escapes them. In findings, notes, captions and `absent`, backticks enclose what can be pasted.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from posttrain.reports.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

    from posttrain.reports.style import Theme

ASKED = ("prompt", "problem", "gold")  # labels of texts that pages put above the others, which stand side by side
Tone = Literal["better", "worse", "cannot tell", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence, and how it is to be taken."""

    tone: Tone
    text: str


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture that is drawn when a page asks for it, in that page's colours."""

    name: str  # stem of its files, unique in a report
    alt: str  # what it shows, in words with numbers, for who cannot see it
    draw: "Callable[[Theme], Drawing]"
    caption: str = ""
    wide: bool = False  # takes the whole width of a page instead of half


@dataclass(frozen=True, slots=True)
class Example:
    """A completion to read, or more to compare, with what is known of it: labels and texts, in order."""

    title: str
    texts: tuple[tuple[str, str], ...]  # label, text
    marks: tuple[str, ...] = ()  # in a word or two each: "fixed", "longest", "reward 3.1"


@dataclass(frozen=True, slots=True)
class Part:
    """One part; where its runs lack what it needs, `absent` says so and how to get it, and the rest is empty."""

    key: str  # in the JSON report, and of the link to it
    title: str
    findings: tuple[Finding, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    examples: tuple[Example, ...] = ()
    note: str = ""  # how to read it, and what it does not show
    data: Mapping[str, Any] = field(default_factory=dict)  # plain JSON
    absent: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Parts in the order in which they are read."""

    title: str
    subtitle: str
    parts: tuple[Part, ...]
