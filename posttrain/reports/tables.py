"""Tables for the terminal and for Markdown, from one description.

Floor 5: knows cells and styles, not what they mean. A cell's detail (an interval) stands beside its value where there
is room, else under it; where even that is too wide, each row becomes a block. No number is ever cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group
from rich.table import Table as RichTable
from rich.text import Text

from posttrain.reports.visible import visible

UNBOUNDED = 10_000  # columns: wider than any table


@dataclass(frozen=True, slots=True)
class Cell:
    """A value, its smaller detail, and rich's style for the value."""

    text: str
    detail: str = ""
    style: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table: one header for each column, the first column names the row."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""


def render_terminal(table: Table, *, width: int) -> Group:
    """Return the table for a terminal of `width` columns; one block for each row where its columns do not fit."""
    layouts = (_in_columns(table, beside=True), _in_columns(table, beside=False))
    cells = next((layout for layout in layouts if _width(layout) <= width), _in_blocks(table, width))
    caption = [Text(table.caption, style="dim")] if table.caption else []
    return Group(Text(table.title, style="bold"), cells, *caption)


def fits(table: Table, *, width: int) -> bool:
    """Return whether the columns stand side by side in `width`."""
    return _width(_in_columns(table, beside=False)) <= width


def _in_columns(table: Table, *, beside: bool) -> RichTable:
    rendered = _frame(show_header=True)
    for index, header in enumerate(table.headers):
        rendered.add_column(header, justify="left" if index == 0 else "right", no_wrap=True)
    roomy = not beside and any(cell.detail for row in table.rows for cell in row)
    for number, row in enumerate(table.rows):
        rendered.add_row(*(_terminal_cell(cell, beside) for cell in row))
        if roomy and number + 1 < len(table.rows):
            rendered.add_row()
    return rendered


def _in_blocks(table: Table, width: int) -> RichTable:
    """The row's name over its values, a line for each, with the header before it."""
    rendered = _frame(show_header=False)
    rendered.add_column(style="dim", overflow="fold", max_width=width // 2)
    rendered.add_column(overflow="fold")
    for number, (name, *cells) in enumerate(table.rows):
        rendered.add_row(Text(name.text, style="not dim bold"))
        for header, cell in zip(table.headers[1:], cells, strict=True):
            rendered.add_row(header, _terminal_cell(cell, beside=True))
        if number + 1 < len(table.rows):
            rendered.add_row()
    return rendered


def _frame(*, show_header: bool) -> RichTable:
    return RichTable(box=box.SIMPLE_HEAD, header_style="dim", show_header=show_header, pad_edge=False, padding=(0, 1))


def _width(rendered: RichTable) -> int:
    """The columns that a table needs to show every cell whole."""
    return Console(width=UNBOUNDED).measure(rendered).maximum


def render_markdown(table: Table) -> str:
    """Return the table as Markdown, under its title."""
    headers = "| " + " | ".join(escape(header) for header in table.headers) + " |"
    rule = "|" + "|".join(["---"] + ["---:"] * (len(table.headers) - 1)) + "|"
    rows = ["| " + " | ".join(_markdown_cell(cell) for cell in row) + " |" for row in table.rows]
    return "\n".join([f"### {table.title}", "", headers, rule, *rows, *(["", table.caption] if table.caption else [])])


def bar(shares: Sequence[tuple[float, str]], width: int) -> str:
    """Return a bar of `width` characters divided by shares (of 1), each drawn with its own character.

    Characters go to the largest remainders, so a bar is never too long; what the shares leave over stays blank.
    """
    exact = [share * width for share, _ in shares]
    cells = [int(value) for value in exact]
    left = round(sum(exact)) - sum(cells)
    for index in sorted(range(len(exact)), key=lambda i: cells[i] - exact[i])[: max(0, left)]:
        cells[index] += 1
    return "".join(character * count for count, (_, character) in zip(cells, shares, strict=True)).ljust(width)


def _terminal_cell(cell: Cell, beside: bool) -> Text:
    text = Text(cell.text, style=cell.style)
    if cell.detail:
        text.append(f" ({cell.detail})" if beside else f"\n{cell.detail}", style="not bold dim")
    return text


def _markdown_cell(cell: Cell) -> str:
    text = escape(cell.text)
    bold = f"**{text}**" if "bold" in cell.style.split() and text else text
    return f"{bold} ({escape(cell.detail)})" if cell.detail else bold


def escape(text: str) -> str:
    """Return a text for Markdown. Names come from users: they must not break the table or become markup."""
    for character in "\\|*_`<[":
        text = text.replace(character, f"\\{character}")
    return " ".join(visible(text).split())
