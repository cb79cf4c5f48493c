"""A report as a Markdown page beside the PNG files of its figures.

Floor 5: lays out what the parts say. Texts of models stand in fences that they cannot close; other texts are escaped.
"""

import re

from posttrain.reports.part import Example, Figure, Part, Report
from posttrain.reports.tables import render_markdown
from posttrain.reports.visible import visible

MARKUP = re.compile(r"[\\*_<>\[\]|~&`]")


def markdown_page(report: Report, figures_dir: str) -> str:
    """Return the page; `figures_dir` leads from it to the figures' files."""
    blocks = [f"# {_prose(report.title)}", _prose(report.subtitle)]
    for part in report.parts:
        blocks += _part(part, figures_dir)
    return "\n\n".join(block for block in blocks if block) + "\n"


def _part(part: Part, figures_dir: str) -> list[str]:
    heading = f"## {_prose(part.title)}"
    if part.absent:
        return [heading, f"*Not in this report.* {_prose(part.absent)}"]
    return [
        heading,
        "\n".join(f"- **{finding.tone}**: {_prose(finding.text)}" for finding in part.findings),
        _prose(part.note),
        *(_figure(figure, figures_dir) for figure in part.figures),
        *(render_markdown(table) for table in part.tables),
        *(_example(example) for example in part.examples),
    ]


def _figure(figure: Figure, figures_dir: str) -> str:
    image = f"![{_escaped(figure.alt)}]({figures_dir}/{figure.name}.png)"
    return f"{image}\n\n{_prose(figure.caption)}" if figure.caption else image


def _example(example: Example) -> str:
    marks = f" ({', '.join(_escaped(mark) for mark in example.marks)})" if example.marks else ""
    texts = [f"**{_escaped(label)}**\n\n{fenced(text)}" for label, text in example.texts]
    return "\n\n".join([f"### {_escaped(example.title)}{marks}", *texts])


def fenced(text: str) -> str:
    """Return a text, what is invisible in it written out, in a fence longer than any run of backticks in it."""
    text = visible(text).strip("\n")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _prose(text: str) -> str:
    """A sentence, what stands between backticks in it as code."""
    parts = re.split(r"(`[^`\n]+`)", text.strip())
    return "".join(visible(part) if i % 2 else _escaped(part) for i, part in enumerate(parts))


def _escaped(text: str) -> str:
    line = MARKUP.sub(r"\\\g<0>", re.sub(r"\s+", " ", visible(text)))
    return re.sub(r"^(\d*)([.)#+=-])", r"\1\\\2", line)  # what would begin a heading or a list
