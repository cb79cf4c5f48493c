"""The Markdown page, and that no text becomes markup in it."""

import pytest

from posttrain.reports.markdown import fenced, markdown_page
from posttrain.reports.part import Example, Figure, Finding, Part, Report
from posttrain.reports.tables import Cell, Table
from tests.reports.samples import figures


def page(part: Part) -> str:
    return markdown_page(Report("title", "subtitle", (part,)), "figures")


def test_the_parts_stand_in_order() -> None:
    part = Part(
        "scores",
        "Scores",
        (Finding("better", "sft is better: +7.0 points. Look: `posttrain view x_*_y`"), Finding("note", "one seed")),
        (Figure("bars", "sft 25%, base 18%", figures()["scores"], "Bars start at 0."),),
        (Table("Accuracy", ("model", "score"), ((Cell("base"), Cell("18%")),)),),
        (Example("fixed", (("prompt", "1 + 1"), ("sft", "2")), ("reward 1",)),),
        "How to read it.",
    )
    assert page(part) == (
        "# title\n\nsubtitle\n\n## Scores\n\n"
        "- **better**: sft is better: +7.0 points. Look: `posttrain view x_*_y`\n- **note**: one seed\n\n"
        "How to read it.\n\n"
        "![sft 25%, base 18%](figures/bars.png)\n\nBars start at 0.\n\n"
        "### Accuracy\n\n| model | score |\n|---|---:|\n| base | 18% |\n\n"
        "### fixed (reward 1)\n\n**prompt**\n\n```text\n1 + 1\n```\n\n**sft**\n\n```text\n2\n```\n"
    )


def test_an_absent_part_says_why_and_what_to_do() -> None:
    assert page(Part("judge", "Judge", absent="No judge. `posttrain eval`")).endswith(
        "## Judge\n\n*Not in this report.* No judge. `posttrain eval`\n"
    )


@pytest.mark.parametrize("text", ["```", "````\n# owned\n```", "a ` b", "\u202e", "\n\nx\n"])
def test_a_fence_cannot_be_closed_by_what_is_in_it(text: str) -> None:
    first, *inside, last = fenced(text).split("\n")
    assert first == f"{last}text"
    assert set(last) == {"`"}
    assert all(last not in line for line in inside)
    assert "\u202e" not in "".join(inside)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a_b*c <b> [x](y) | ~", r"a\_b\*c \<b\> \[x\](y) \| \~"),
        ("# no heading", r"\# no heading"),
        ("1. no list", r"1\. no list"),
        ("- no list", r"\- no list"),
        ("10 points", "10 points"),
        ("two\nlines `and an open tick", r"two lines \`and an open tick"),
        ("run `a_b` in *c*", r"run `a_b` in \*c\*"),
    ],
)
def test_prose_is_prose(text: str, written: str) -> None:
    assert page(Part("key", "Part", note=text)) == f"# title\n\nsubtitle\n\n## Part\n\n{written}\n"
