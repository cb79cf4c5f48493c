"""Tables on terminals of several widths and in Markdown."""

import io

import pytest
from rich.console import Console

from posttrain.reports.tables import Cell, Table, bar, fits, render_markdown, render_terminal

TABLE = Table(
    "Title",
    ("model", "accuracy"),
    ((Cell("base"), Cell("3.0%", "2.0 to 4.0")), (Cell("a|b*"), Cell("50.0%", "45.0 to 55.0", "bold green"))),
    "caption",
)


def shown(width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(render_terminal(TABLE, width=width))
    return [line.strip() for line in console.file.getvalue().splitlines()]


def test_details_stand_beside_values_where_there_is_room() -> None:
    assert any("3.0% (2.0 to 4.0)" in line for line in shown(120))
    narrow = shown(26)
    assert narrow[narrow.index(next(line for line in narrow if "3.0%" in line)) + 1] == "2.0 to 4.0"


def test_rows_become_blocks_where_columns_do_not_fit() -> None:
    blocks = shown(20)
    assert not fits(TABLE, width=20)
    assert [line.split() for line in blocks if "3.0%" in line] == [["accuracy", "3.0%"]]
    assert "".join("".join(blocks).split()).count("(45.0to55.0)") == 1  # folded, not cut


def test_markdown_escapes_names_and_keeps_emphasis() -> None:
    assert render_markdown(TABLE).splitlines() == [
        "### Title",
        "",
        "| model | accuracy |",
        "|---|---:|",
        "| base | 3.0% (2.0 to 4.0) |",
        r"| a\|b\* | **50.0%** (45.0 to 55.0) |",
        "",
        "caption",
    ]


@pytest.mark.parametrize(
    ("shares", "width", "expected"),
    [
        ([(0.5, "a"), (0.25, "b"), (0.25, "c")], 4, "aabc"),
        ([(1 / 3, "a"), (1 / 3, "b"), (1 / 3, "c")], 10, "aaaabbbccc"),
        ([(0.0, "a"), (1.0, "b")], 3, "bbb"),
        ([(0.5, "a")], 4, "aa  "),
    ],
)
def test_bars_fill_their_width_and_no_more(shares: list, width: int, expected: str) -> None:
    assert bar(shares, width) == expected
