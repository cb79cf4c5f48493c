"""A report as one HTML file that asks for nothing: styles and figures are in it, and it has no script.

Floor 5: lays out what the parts say. Every text is escaped, with what is invisible in it written out, because it may be
a model's; the page's own policy forbids scripts and requests besides.
"""

import re
from html import escape

from posttrain.reports.page_css import page_css
from posttrain.reports.part import ASKED, Example, Figure, Finding, Part, Report
from posttrain.reports.style import inline_svg
from posttrain.reports.tables import Cell, Table
from posttrain.reports.visible import visible

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
TONES = {  # class, mark: its shape tells it without its colour
    "better": ("better", "▲"),
    "worse": ("worse", "▼"),
    "cannot tell": ("doubt", "≈"),
    "warning": ("warning", "!"),
    "note": ("note", "•"),
}
STYLES = ("bold", "dim", "green", "red", "yellow", "cyan")  # of rich, that cells use
FOLD_LINES, FOLD_CHARACTERS = 14, 1100  # a text longer than either is folded
MANY = 8  # columns, past which a printed table is set smaller
SHOWN_LINES, SHOWN_CHARACTERS = 8, 600  # of a folded one


def html_page(report: Report) -> str:
    """Return the page; its first part is the verdict, and shown so."""
    title = _escaped(report.title)
    contents = "".join(
        f'<li{_class(bool(part.absent), "missing")}><a href="#{_id(part)}">{_escaped(part.title)}</a></li>'
        for part in report.parts
    )
    sections = "\n".join(_section(part, lead=i == 0) for i, part in enumerate(report.parts))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{page_css()}
</style>
</head>
<body>
<div class="page">
<header><h1>{title}</h1><p>{_prose(report.subtitle)}</p></header>
<nav aria-label="Contents"><ol>{contents}</ol></nav>
<main>
{sections}
</main>
</div>
</body>
</html>
"""


def _section(part: Part, *, lead: bool) -> str:
    heading = f"<h2>{_escaped(part.title)}</h2>"
    if part.absent:
        return f'<section id="{_id(part)}" class="absent">{heading}<p>{_prose(part.absent)}</p></section>'
    figures = "\n".join(_figure(figure) for figure in part.figures)
    blocks = [
        heading,
        _findings(part.findings),
        f'<p class="note">{_prose(part.note)}</p>' if part.note else "",
        f'<div class="figures">{figures}</div>' if figures else "",
        *(_table(table) for table in part.tables),
        *(_example(example) for example in part.examples),
    ]
    content = "\n".join(block for block in blocks if block)
    return f'<section id="{_id(part)}"{_class(lead, "lead")}>\n{content}\n</section>'


def _findings(findings: tuple[Finding, ...]) -> str:
    items = []
    for finding in findings:
        name, mark = TONES[finding.tone]
        tone = f'<span class="tone"><i aria-hidden="true">{mark}</i>{finding.tone}</span>'
        items.append(f'<li class="{name}">{tone}<span>{_prose(finding.text)}</span></li>')
    return f'<ul class="findings">{"".join(items)}</ul>' if items else ""


def _figure(figure: Figure) -> str:
    drawing = inline_svg(figure.draw, name=figure.name, alt=visible(figure.alt))
    caption = f"<figcaption>{_prose(figure.caption)}</figcaption>" if figure.caption else ""
    return f"<figure{_class(figure.wide, 'wide')}>{drawing}{caption}</figure>"


def _table(table: Table) -> str:
    headers = "".join(f'<th scope="col"><span>{_escaped(header)}</span></th>' for header in table.headers)
    rows = "".join(_row(*row) for row in table.rows)
    title = _escaped(table.title)
    caption = f'<p class="caption">{_prose(table.caption)}</p>' if table.caption else ""
    size = "table many" if len(table.headers) > MANY else "table"
    return (
        f'<div class="{size}"><h3>{title}</h3><div class="scroll" role="region" aria-label="{title}" tabindex="0">'
        f"<table><thead><tr>{headers}</tr></thead><tbody>{rows}</tbody></table></div>{caption}</div>"
    )


def _row(name: Cell, *cells: Cell) -> str:
    return f'<tr><th scope="row"><span>{_cell(name)}</span></th>{"".join(f"<td>{_cell(c)}</td>" for c in cells)}</tr>'


def _cell(cell: Cell) -> str:
    classes = " ".join(word for word in cell.style.split() if word in STYLES)
    text = f'<span class="{classes}">{_escaped(cell.text)}</span>' if classes else _escaped(cell.text)
    return f"{text} <small>{_escaped(cell.detail)}</small>" if cell.detail else text


def _example(example: Example) -> str:
    marks = "".join(f"<li>{_escaped(mark)}</li>" for mark in example.marks)
    texts = "".join(
        f'<div class="text{" asked" if label in ASKED else ""}"><h4>{_escaped(label)}</h4>{_text(text)}</div>'
        for label, text in example.texts
    )
    head = f"<h3>{_escaped(example.title)}</h3>" + (f'<ul class="marks">{marks}</ul>' if marks else "")
    return f'<article class="example">{head}<div class="texts">{texts}</div></article>'


def _text(text: str) -> str:
    """A text as it is, the rest of a long one folded away."""
    text = text.strip("\n")
    if not text.strip():
        return '<p class="dim">empty</p>'
    whole = f"<pre>{_escaped(text)}</pre>"
    lines = text.splitlines()
    if len(lines) <= FOLD_LINES and len(text) <= FOLD_CHARACTERS:
        return whole
    start = "\n".join(lines[:SHOWN_LINES])[:SHOWN_CHARACTERS].rstrip()
    more, less = f"show all {len(text):,} characters", "show less"
    return (
        f'<details><summary><span class="start">{_escaped(start)} …</span>'
        f'<span class="more">{more}</span><span class="less">{less}</span></summary>{whole}</details>'
    )


def _class(given: bool, name: str) -> str:
    return f' class="{name}"' if given else ""


def _id(part: Part) -> str:
    return _escaped(part.key)


def _escaped(text: str) -> str:
    return escape(visible(text))


def _prose(text: str) -> str:
    """A sentence, what stands between backticks in it as code."""
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", _escaped(text))
