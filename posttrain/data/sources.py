"""Loads the rows that a stage or evaluation asks for, checks every one of them, and says what was wrong where.

Floor 1. A source is a name in SOURCES or a file in one of TRL's schemas. A malformed row refuses the file, unless
`max_bad_rows` allows it; duplicates, ungradable problems and what the filters find are left out and told.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from posttrain.data.choices import CHOICE_STYLES
from posttrain.data.columns import check_renames, closest, column_names, missing_column, preference_pairs, rename
from posttrain.data.fewshot import example_settings, with_examples
from posttrain.data.files import LEFT_OUT, Entry, Fault, Malformed, Record, read_path
from posttrain.data.filters import make_filters
from posttrain.data.formats import format_of
from posttrain.data.held_out import is_in_split, split_to_read
from posttrain.data.named import SOURCES, Source, TableSource, problem_row, used_style
from posttrain.data.prompts import PROMPT_STYLES
from posttrain.data.rows import WANTED_SCHEMAS, Kind, Row, build_row, kind_of, record_id
from posttrain.errors import ConfigError, DataError
from posttrain.settings import DataSettings

logger = logging.getLogger(__name__)

PEEKED_ROWS = 100  # the columns of a file are those of its first rows together
SHOWN_PLACES = 5
KIND_WORDS: dict[Kind, str] = {
    "prompt": "prompts (prompt)",
    "prompt_completion": "prompts with completions (prompt, completion)",
    "messages": "conversations (messages)",
    "text": "plain text (text)",
    "preference": "preference pairs (chosen, rejected)",
    "unpaired": "judged completions (prompt, completion, label)",
    "choices": "questions with choices (question, choices, answer)",
}
OTHER_STAGES: dict[Kind, str] = {  # where sft is no use
    "prompt": "grpo",
    "preference": "dpo",
    "unpaired": "dpo",
    "choices": "eval --task choices",
}


@dataclass(slots=True)
class Tally:
    """How many rows had which fault, and where the first of each stand."""

    counts: Counter[Fault] = field(default_factory=Counter)
    places: defaultdict[Fault, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, origin: str, malformed: Malformed) -> None:
        """Count one row."""
        self.counts[malformed.fault] += 1
        if len(self.places[malformed.fault]) < SHOWN_PLACES:
            self.places[malformed.fault].append(f"{origin} ({malformed.detail})" if malformed.detail else origin)

    def bad_rows(self) -> int:
        """Return how many rows are malformed; those merely left out are not."""
        return sum(count for fault, count in self.counts.items() if fault not in LEFT_OUT)

    def table(self) -> str:
        """Return one line for each fault: its count and its first places."""
        return "\n".join(
            f"  {count} {fault}: {', '.join(self.places[fault])}{', ...' if count > SHOWN_PLACES else ''}"
            for fault, count in sorted(self.counts.items())
        )


@dataclass(frozen=True, slots=True)
class Scan:
    """The usable rows of a source and the tally of the others."""

    rows: list[Row]
    tally: Tally


def load_rows(settings: DataSettings, *, seed: int, kinds: Collection[Kind] = ()) -> list[Row]:
    """Return a source's rows, in its order and with distinct ids; raise DataError when more are bad than allowed.

    `kinds` are those that the stage wants, where columns could mean several. `seed` matters to generated sources
    and to few-shot examples; `split` to named sources and directories, and to a single file where `held_out` makes
    splits of it. Filters leave fewer than `settings.rows` of a generated source, which makes no more than these.
    """
    return after_examples(_usable_rows(settings, seed=seed, kinds=kinds), settings, seed=seed, kinds=kinds)


def after_examples(rows: list[Row], settings: DataSettings, *, seed: int, kinds: Collection[Kind] = ()) -> list[Row]:
    """Return the rows after the few-shot examples that the settings ask for; as they are, where they ask for none."""
    if not settings.num_fewshot:
        return rows
    candidates = _usable_rows(example_settings(settings), seed=seed, kinds=kinds)
    return with_examples(rows, candidates, settings, seed=seed)


def _usable_rows(settings: DataSettings, *, seed: int, kinds: Collection[Kind]) -> list[Row]:
    scan = scan_rows(settings, seed=seed, kinds=kinds)
    place, bad = place_of(settings), scan.tally.bad_rows()
    if bad > settings.max_bad_rows:
        raise DataError(
            f"{place}: {bad} malformed rows, {settings.max_bad_rows} allowed: correct or drop them\n"
            f"{scan.tally.table()}",
            fix=f"--data.max_bad_rows {bad}",
        )
    if not scan.rows:
        raise DataError(f"{place} has no usable row\n{scan.tally.table()}".rstrip())
    if scan.tally.counts:
        logger.warning(
            "%s: %d rows left out, %d kept\n%s", place, scan.tally.counts.total(), len(scan.rows), scan.tally.table()
        )
    return scan.rows


def scan_rows(settings: DataSettings, *, seed: int, kinds: Collection[Kind] = ()) -> Scan:
    """Read a source up to `settings.rows` usable rows and tally what cannot be used.

    Filters see the rows of both sides of `held_out`, so that no row is like one on the other side.
    """
    entries = open_source(settings, seed=seed)
    head = list(islice(entries, PEEKED_ROWS))
    first = [record for _, record in head if not isinstance(record, Malformed)]
    read, read_bare = row_reader(settings, first, kinds), row_reader(_without_style(settings), first, kinds)
    filters = make_filters(settings.filters)
    rows: list[Row] = []
    origins: dict[str, str] = {}
    tally = Tally()
    for origin, record in chain(head, entries):
        try:
            if isinstance(record, Malformed):
                raise record
            row = read(record, origin)
            if row.id in origins:
                raise Malformed(Fault.DUPLICATE, f"as {origins[row.id]}")
            origins[row.id] = origin
            bare = read_bare(record, origin) if filters or settings.held_out else row
            for check in filters:
                check(bare)
        except Malformed as malformed:
            tally.add(origin, malformed)
            continue
        if settings.held_out and not is_in_split(bare, settings):
            continue
        rows.append(row)
        if len(rows) == settings.rows:
            break
    return Scan(rows, tally)


def _without_style(settings: DataSettings) -> DataSettings:
    """Return settings that read prompts without a style around them, and problems as plain questions."""
    source = SOURCES.get(settings.source)
    style = "question" if source is not None and source.prompt_style in PROMPT_STYLES else None  # choices: the default
    return settings.model_copy(update={"prompt_style": style})


def place_of(settings: DataSettings) -> str:
    """Return what messages call the source."""
    place = f"{settings.source} ({settings.path})" if settings.path else settings.source
    return f"{place} ({settings.split}, {settings.held_out:g} held out)" if settings.held_out else place


def open_source(settings: DataSettings, *, seed: int) -> Iterator[Entry]:
    """Return the entries of the named source, file or directory that the settings mean, unread."""
    source, split = SOURCES.get(settings.source), split_to_read(settings)
    if source is not None and settings.path is None:
        entries = source.fetch(split, settings.rows, seed)
        return source.gather(entries) if isinstance(source, TableSource) else entries
    if source is None and settings.path is not None:
        raise ConfigError(
            f'data.path is where a named source lies; "{settings.source}" is not one of {", ".join(SOURCES)}',
            fix=f"--data.source {settings.path}",
        )
    path = Path(settings.path or settings.source)
    if path.exists():
        entries = read_path(path, split)
        return source.gather(entries) if isinstance(source, TableSource) else entries
    if source is not None:
        raise DataError(f"{settings.source}: no such file or directory: {path}")
    raise DataError(
        f"no such file or directory, and no named source: {path}. Named sources: {', '.join(SOURCES)}",
        fix=f"--data.source {closest(settings.source, SOURCES)}",
    )


def row_reader(
    settings: DataSettings, first: Sequence[Record], kinds: Collection[Kind] = ()
) -> Callable[[Record, str], Row]:
    """Return the function from a record and its origin to a row, once the first records show the columns needed."""
    place, style, renames = place_of(settings), used_style(settings), settings.columns
    source = SOURCES.get(settings.source)
    if first:
        check_renames(place, column_names(first), renames)
    columns = column_names(rename(record, renames) for record in first)
    kind = kind_of(columns, kinds)
    format = source.format if isinstance(source, TableSource) else format_of(columns, kinds) if source is None else None
    unusable = kind is None or ("choices" in kinds and kind != "choices")
    if source is None and unusable and format is None and first:
        if {"chosen", "rejected"} <= set(columns):
            raise preference_pairs(place, first[0])
        raise missing_column(place, _missing(columns, kinds), columns, first[0])
    if source is not None and first:
        for needed in source.columns:
            if needed not in columns:
                raise missing_column(place, needed, columns, first[0])
    _check_style(style, choices=(format.kind if format else kind) == "choices")

    def read(record: Record, origin: str) -> Row:
        id = record_id(record)
        renamed = rename(record, renames)
        if format is not None:
            converted = format.convert(renamed)
            return build_row(converted, id=id, kind=format.kind, origin=origin, prompt_style=style)
        if isinstance(source, Source):
            assert style is not None
            return problem_row(source.problem(renamed), id=id, origin=origin, prompt_style=style)
        if kind is None:  # every peeked row was malformed, so the columns are still unknown
            raise Malformed(Fault.COLUMN, "after a head of malformed rows")
        return build_row(renamed, id=id, kind=kind, origin=origin, prompt_style=style)

    return read


def _missing(columns: Collection[str], kinds: Collection[Kind]) -> str:
    """Return the column that rows of the wanted kinds lack first."""
    if "choices" in kinds:
        return next(name for name in WANTED_SCHEMAS["choices"] if name not in columns)
    return "prompt" if "preference" not in kinds else "rejected" if "chosen" in columns else "chosen"


def _check_style(style: str | None, *, choices: bool) -> None:
    """Raise ConfigError for a style that is not one of choices, or of prompts."""
    styles = CHOICE_STYLES if choices else PROMPT_STYLES
    if style is not None and style not in styles:
        raise ConfigError(
            f'no prompt style "{style}"{" of choices" if choices else ""}. Styles: {", ".join(styles)}',
            fix=f"--data.prompt_style {closest(style, styles)}",
        )


def require_kind(rows: Sequence[Row], kinds: Collection[Kind], stage: str) -> None:
    """Raise DataError unless every row is of one of the kinds; rows with completions also serve as prompts."""
    accepted = {*kinds, "prompt_completion"} if "prompt" in kinds else set(kinds)
    wrong = next((row for row in rows if row.kind not in accepted), None)
    if wrong is None:
        return
    place = wrong.origin.rpartition(":")[0]
    needed = " or ".join(words for kind, words in KIND_WORDS.items() if kind in kinds)
    other = OTHER_STAGES.get(wrong.kind, "sft")
    raise DataError(
        f"{stage} needs {needed}; {place} holds {KIND_WORDS[wrong.kind]}",
        fix=f"posttrain {other} --data.source {place}" if other != stage else None,
    )
