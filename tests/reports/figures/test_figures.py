"""Every figure with ordinary and with hard data: what it says, and that nothing in it is clipped or overlaps."""

import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import pytest

from posttrain.reports.figures.course import CoursePanel, Line, course
from posttrain.reports.figures.curves import Frontier, PassCurve, frontier, pass_curves
from posttrain.reports.figures.judging import GroupAccuracy, WinRate, accuracy_by_group, reliability, win_rates
from posttrain.reports.figures.labels import text_width
from posttrain.reports.figures.lengths import Cloud, Lengths, length_densities, length_scatter
from posttrain.reports.figures.scores import Score, score_bars
from posttrain.reports.figures.shares import FormatCounts, cost_bars, format_matrix, outcome_bars
from posttrain.reports.figures.sheet import WIDTH
from posttrain.reports.figures.tasks import TaskScore, task_bars
from posttrain.reports.style import FILE_MARGIN, LIGHT, Draw, png, svg
from tests.reports.samples import HARD, NAN

EMPTY = {
    "scores": score_bars([], title="T"),
    "scores without a value": score_bars([Score("base", NAN)], title="T"),
    "tasks": task_bars([], title="T"),
    "course": course([], [], title="T"),
    "course without a value": course([1], [CoursePanel("Reward", (Line("r", (NAN,)),))], title="T"),
    "frontier": frontier([], title="T"),
    "frontier without a value": frontier([Frontier("grpo", [0.1], [NAN], [NAN])], title="T"),
    "pass": pass_curves([], title="T"),
    "pass without a value": pass_curves([PassCurve("base", [1], [NAN])], title="T"),
    "length scatter": length_scatter([Cloud("base", [], [])], title="T"),
    "length densities": length_densities([Lengths("base", [], [])], title="T"),
    "format": format_matrix([], title="T"),
    "reliability": reliability([], title="T"),
    "accuracy by group": accuracy_by_group([GroupAccuracy("all", NAN, NAN, NAN, 0)], title="T"),
    "win rates": win_rates([WinRate("sft", NAN)], title="T", baseline="base"),
    "outcomes": outcome_bars([("base", {"right": 0.0})], title="T"),
    "cost": cost_bars([], title="T"),
}
MISSING = {  # some values are there and some are not
    "scores": score_bars([Score("base", 0.2), Score("sft", NAN), Score("dpo", 0.0, 0.0, 0.0)], title="T"),
    "rewards": score_bars([Score("base", -1.2, -1.5, -0.9), Score("sft", 2.1)], title="T", shares=False),
    "tasks": task_bars(
        [TaskScore("far", "arc", "base", NAN), TaskScore("far", "arc", "sft", 1.0, 0.9, 1.0)], title="T"
    ),
    "course": course([1, 2, 3], [CoursePanel("Gold", (Line("a", (NAN, 1.0, NAN)), Line("b", (NAN,) * 3)))], title="T"),
    "stack": course(
        [1, 2], [CoursePanel("R", (Line("a", (NAN, 1.0)), Line("b", (NAN, -1.0))), stacked=True)], title="T"
    ),
    "frontier": frontier([Frontier("grpo", [-0.01, 1.0, NAN], [0.1, NAN, 0.3], [0.1, 0.2, 0.3])], title="T"),
    "pass": pass_curves([PassCurve("base", [1, 2, 4], [0.1, NAN, 0.3])], title="T"),
    "scatter": length_scatter([Cloud("a", [1.0, NAN], [NAN, 2.0]), Cloud("b", [3.0], [1.0], 0.1)], title="T"),
    "densities": length_densities([Lengths("a", [NAN, 5.0], []), Lengths("b", [], [])], title="T"),
    "format": format_matrix([FormatCounts("a", 0, 0, 0, 0)], title="T"),
    "accuracy by group": accuracy_by_group(
        [GroupAccuracy("a", 0.5, NAN, NAN, 2), GroupAccuracy("b", NAN, NAN, NAN, 0)], title="T"
    ),
    "win rates": win_rates([WinRate("a", 0.6), WinRate("b", NAN)], title="T", baseline="base"),
    "outcomes": outcome_bars([("a", {"right": 0.5, "wrong": NAN}), ("b", {})], title="T"),
    "cost": cost_bars([("sft", NAN), ("grpo", 3.0)], title="T"),
}
DRAWN = {f"{case}: {name}": draw for case, found in HARD.items() for name, draw in found.items()}
DRAWN |= {f"missing values: {name}": draw for name, draw in MISSING.items()}


@dataclass(frozen=True)
class Box:
    text: str
    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box", slack: float = 1.0) -> bool:
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return across > slack and down > slack


def text_boxes(drawn: str) -> Iterator[Box]:
    """Yield where each text of an SVG by `svg` stands."""
    for style, x, y, text in re.findall(r'<text style="([^"]*)" x="([^"]*)" y="([^"]*)">([^<]*)</text>', drawn):
        size = float(re.search(r"font-size: ([\d.]+)px", style)[1])
        width = text_width(text, size, "bold" if "font-weight: 700" in style else "normal")
        anchor = re.search(r"text-anchor: (\w+)", style)
        left = float(x) - {"start": 0, "middle": width / 2, "end": width}[anchor[1] if anchor else "start"]
        yield Box(text, left, float(y) - 0.75 * size, left + width, float(y) + 0.2 * size)


def texts(draw: Draw) -> list[str]:
    return [box.text for box in text_boxes(svg(draw))]


def clipped(boxes: list[Box], height: float) -> list[Box]:
    """Return the texts that stand out of the drawing into its file's margin, by more than a px."""
    low, right, bottom = FILE_MARGIN - 1, FILE_MARGIN + WIDTH + 1, height - FILE_MARGIN + 1
    return [b for b in boxes if b.left < low or b.right > right or b.top < low or b.bottom > bottom]


@pytest.mark.parametrize("name", DRAWN)
def test_nothing_is_clipped_and_no_two_texts_overlap(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = svg(DRAWN[name])
    boxes = list(text_boxes(drawn))
    assert len(boxes) == drawn.count("<text") > 2
    assert clipped(boxes, float(re.search(r'height="([\d.]+)"', drawn)[1])) == []
    assert [(a.text, b.text) for a, b in combinations(boxes, 2) if a.overlaps(b)] == []


def test_the_check_sees_texts_that_overlap_or_stand_outside() -> None:
    places = (("one", 20, 30), ("two", 32, 34), ("far", 80, 34), ("wide", 375, 34), ("low", 20, 110))
    boxes = list(text_boxes("".join(f'<text style="font-size: 10px" x="{x}" y="{y}">{t}</text>' for t, x, y in places)))
    assert boxes[0].overlaps(boxes[1])
    assert not boxes[1].overlaps(boxes[2])
    assert [box.text for box in clipped(boxes, 100)] == ["wide", "low"]


@pytest.mark.parametrize("name", EMPTY)
def test_a_figure_without_values_says_so(name: str) -> None:
    assert texts(EMPTY[name]) == ["T", "No values to draw."]


@pytest.mark.parametrize("name", HARD["ordinary"])
def test_a_figure_is_the_same_each_time_and_also_a_png(name: str) -> None:
    draw = HARD["ordinary"][name]
    assert svg(draw) == svg(draw)
    assert png(draw).startswith(b"\x89PNG")


def test_score_bars_say_the_score_and_its_interval() -> None:
    draw = score_bars([Score("base", 0.2, 0.15, 0.26)], title="Accuracy", reference=("chance", 0.1))
    assert {"Accuracy", "base", "20.0%  (15.0 to 26.0)", "chance"} <= set(texts(draw))


def test_a_model_keeps_its_colour_in_every_figure() -> None:
    order = ("base", "sft", "grpo")
    figures = [
        score_bars([Score("grpo", 0.5)], title="T", order=order),
        task_bars([TaskScore("far", "arc", "grpo", 0.5)], title="T", order=order),
        pass_curves([PassCurve("grpo", [1, 2], [0.1, 0.2])], title="T", order=order),
        length_scatter([Cloud("grpo", [1, 2], [0.1, 0.2])], title="T", order=order),
        win_rates([WinRate("grpo", 0.5)], title="T", baseline="base", order=order),
        frontier([Frontier("grpo", [0.1, 0.2], [0.1, 0.2], [0.1, 0.2])], title="T", order=order),
    ]
    for draw in figures:
        used = {color for color in LIGHT.models if color in svg(draw)}
        assert used == {LIGHT.models[2]}


def test_suspected_hacking_is_hatched_and_named() -> None:
    found = TaskScore("trained on", "gsm8k", "grpo", 0.2, 0.1, 0.3, proxy=0.9, hacking=True)
    drawn = svg(task_bars([found], title="T"))
    assert "90.0% suspected hacking" in drawn
    assert drawn.count("<pattern") == 1
    calm = svg(task_bars([TaskScore("trained on", "gsm8k", "grpo", 0.2, proxy=0.25)], title="T"))
    assert "<pattern" not in calm
    assert "suspected" not in calm


def test_course_refuses_lines_of_another_length() -> None:
    with pytest.raises(ValueError, match="Gold, gold: 1 values for 2 steps"):
        course([1, 2], [CoursePanel("Gold", (Line("gold", (1.0,)),))], title="T")


def test_a_scatter_of_very_many_samples_is_thinned_and_says_so() -> None:
    many = [float(i) for i in range(5000)]
    draw = length_scatter([Cloud("base", many, many), Cloud("sft", many, many)], title="T")
    assert svg(draw).count("<use") < 1300
    assert "Reward over tokens. At most 600 samples of each model are drawn." in texts(draw)


def test_outcomes_are_shares_of_the_whole_width() -> None:
    draw = outcome_bars([("base", {"right": 0.25, "wrong": 0.75})], title="T")
    assert {"25.0% right", "25%", "75%"} <= set(texts(draw))


def test_names_are_shown_as_they_are() -> None:
    shown = texts(score_bars([Score("a$x^2$\u202eb\x00模 0.00012 #ffffff", 0.5)], title="T"))
    assert "a$x^2$⟨U+202E⟩b⟨U+0000⟩模 0.00012 #ffffff" in shown


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 17.5, "text.usetex": False}):
        before = dict(matplotlib.rcParams)
        mine = svg(HARD["ordinary"]["scores"])
        assert dict(matplotlib.rcParams) == before
    assert mine == svg(HARD["ordinary"]["scores"])  # nor does it depend on what a user had set
    assert math.isclose(WIDTH, 368)
