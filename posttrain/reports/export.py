"""A report's files: one HTML page, one of Markdown with its figures, and the numbers for a program.

Floor 5: writes what the others lay out, through the one door for files.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.reports.html import html_page
from posttrain.reports.markdown import markdown_page
from posttrain.reports.part import Report
from posttrain.reports.style import png, svg
from posttrain.runs.durable import make_directory, write_file, write_json

FIGURES = "figures"


def write_report(report: Report, out_dir: Path) -> None:
    """Write report.html, report.md, report.json, and figures/NAME.svg and .png into `out_dir`.

    The directory is made if need be, and files of those names are replaced. ValueError: keys or names are not fit for
    files and links, or not unique.
    """
    _check(report)
    make_directory(out_dir / FIGURES)
    for part in report.parts:
        for figure in part.figures:
            write_file(out_dir / FIGURES / f"{figure.name}.svg", svg(figure.draw).encode())
            write_file(out_dir / FIGURES / f"{figure.name}.png", png(figure.draw))
    write_json(out_dir / "report.json", report_json(report))
    write_file(out_dir / "report.md", markdown_page(report, FIGURES).encode())
    write_file(out_dir / "report.html", html_page(report).encode())


def report_json(report: Report) -> dict[str, Any]:
    """Return the report for a program, as strict JSON: a number that is not finite is null."""
    return {"title": report.title, "parts": {part.key: _strict(part.data) for part in report.parts}}


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check(report: Report) -> None:
    keys = [part.key for part in report.parts]
    names = [figure.name for part in report.parts for figure in part.figures]
    for found, kind in ((keys, "key of a part"), (names, "name of a figure")):
        for name in found:
            if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name) or found.count(name) > 1:
                raise ValueError(f"{kind}: expected small letters, digits, - and _, once in a report, got {name!r}")
