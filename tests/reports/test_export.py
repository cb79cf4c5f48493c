"""The files of a report."""

import json
import math
from pathlib import Path

import pytest

from posttrain.reports.export import report_json, write_report
from posttrain.reports.html import html_page
from posttrain.reports.part import Figure, Part, Report
from posttrain.reports.style import png, svg
from tests.reports.samples import figures

SCORES = figures()["scores"]
REPORT = Report(
    "title",
    "subtitle",
    (
        Part("verdict", "Verdict", data={"p": 0.5, "none": math.nan, "list": [1, (math.inf, "x")]}),
        Part("scores", "Scores", figures=(Figure("bars", "bars", SCORES),)),
        Part("judge", "Judge", absent="No judge."),
    ),
)


def test_all_files_are_written_and_can_be_written_again(tmp_path: Path) -> None:
    out = tmp_path / "new" / "report"
    write_report(REPORT, out)
    first = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert set(first) == {"report.html", "report.md", "report.json", "figures/bars.svg", "figures/bars.png"}
    assert first["report.html"].decode() == html_page(REPORT)
    assert first["figures/bars.svg"].decode() == svg(SCORES)
    assert first["figures/bars.png"] == png(SCORES)
    assert "![bars](figures/bars.png)" in first["report.md"].decode()
    write_report(REPORT, out)
    assert {name: (out / name).read_bytes() for name in first} == first


def test_the_json_is_strict() -> None:
    found = report_json(REPORT)
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "title": "title",
        "parts": {"verdict": {"p": 0.5, "none": None, "list": [1, [None, "x"]]}, "scores": {}, "judge": {}},
    }


@pytest.mark.parametrize(
    "parts",
    [
        (Part("a", "A"), Part("a", "A")),
        (Part("../a", "A"),),
        (Part("a", "A", figures=(Figure("x y", "", SCORES),)),),
        (Part("a", "A", figures=(Figure("x", "", SCORES),)), Part("b", "B", figures=(Figure("x", "", SCORES),))),
    ],
)
def test_names_that_cannot_be_files_or_links_are_refused(parts: tuple[Part, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected small letters"):
        write_report(Report("t", "s", parts), tmp_path / "report")
    assert not (tmp_path / "report").exists()
