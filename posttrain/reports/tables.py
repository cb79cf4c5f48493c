"""Tables for the terminal and for Markdown, from one description.

Floor 5: knows cells and styles, not what they mean. A cell's detail (an interval) stands beside its value where the
terminal is wide, and under it where it is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

WIDE = 100  # columns of a terminal from which details stand beside values


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


def render_terminal(table: Table, *, width: int) -> RichTable:
    """Return the table for a terminal of `width` columns."""
    wide = width >= WIDE
    rendered = RichTable(
        title=Text(table.title, style="bold"),
        title_justify="left",
        caption=Text(table.caption, style="dim") if table.caption else None,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        header_style="dim",
        pad_edge=False,
        padding=(0, 1),
        show_lines=False,
    )
    for index, header in enumerate(table.headers):
        rendered.add_column(header, justify="left" if index == 0 else "right", overflow="fold", no_wrap=index > 0)
    roomy = not wide and any(cell.detail for row in table.rows for cell in row)
    for number, row in enumerate(table.rows):
        rendered.add_row(*(_terminal_cell(cell, wide) for cell in row))
        if roomy and number + 1 < len(table.rows):
            rendered.add_row()
    return rendered


def render_markdown(table: Table) -> str:
    """Return the table as Markdown, under its title."""
    headers = "| " + " | ".join(_escape(header) for header in table.headers) + " |"
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


def _terminal_cell(cell: Cell, wide: bool) -> Text:
    text = Text(cell.text, style=cell.style)
    if cell.detail:
        text.append(f" ({cell.detail})" if wide else f"\n{cell.detail}", style="not bold dim")
    return text


def _markdown_cell(cell: Cell) -> str:
    text = _escape(cell.text)
    bold = f"**{text}**" if "bold" in cell.style.split() and text else text
    return f"{bold} ({_escape(cell.detail)})" if cell.detail else bold


def _escape(text: str) -> str:
    """Names come from users: they must not break the table or become markup."""
    for character in "\\|*_`<[":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
