"""What changed over the steps of training, and where the reward and the truth part.

Floor 5. The split is `evals/splits.find_split`'s, as the health of a run reads it; its level is shared among the
courses of a report, so that in at most 5% of reports on healthy runs one is called split.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from posttrain.evals.objectives import Objective, find_parting, values
from posttrain.evals.splits import ALPHA, Split
from posttrain.reports.figures.course import CoursePanel, Line
from posttrain.reports.figures.course import course as course_figure
from posttrain.reports.inputs import Course, Inputs
from posttrain.reports.numbers import plain_score
from posttrain.reports.part import Figure, Finding, Part
from posttrain.reports.tables import Cell, Table

KEY, TITLE = "course", "Over the steps of training"
NOTE = (
    "The reward is what was trained on; the gold score is of the same completions and was only watched. That the two "
    "have parted is tested against the noise from step to step, with one bound of 5% on false alarms for all courses "
    "of this page. Before they part there is nothing to see: the test warns of nothing early. A KL is to the policy "
    "that training started from."
)
ABSENT = "No model here was trained by a run that is at hand: give directories of runs, `posttrain compare runs/NAME`."
DISTANCES = {  # metric: its panel; the first that a course has
    "kl/token": "KL to the reference, nats a token",
    "kl": "KL to the reference, nats a token",
}
SUPERVISED = {"loss": "Loss", "rewards/margins": "Margin of chosen over rejected, in implicit rewards"}


def course_part(inputs: Inputs) -> Part:
    """Return a figure of each course's steps, and a finding for each in which reward and gold have parted."""
    courses = [
        (model.name if len(model.courses) == 1 else f"{model.name}, seed {course.seed}", course)
        for model in inputs.models
        for course in model.courses
        if course.rows
    ]
    if not courses:
        return Part(KEY, TITLE, absent=ABSENT)
    objectives = [_objective(course) for _, course in courses]
    watched = sum(objective is not None and objective.gold is not None for objective in objectives)
    findings: list[Finding] = []
    figures: list[Figure] = []
    data = {}
    for place, ((label, course), objective) in enumerate(zip(courses, objectives, strict=True), 1):
        split = None if objective is None else _split(course, objective, alpha=ALPHA / max(1, watched))
        findings += list(_findings(label, objective, split))
        shown = panels(course)
        figures.append(_figure(f"course-{place}", label, course, shown, split))
        data[label] = _data(course, shown, objective, split)
    health = tuple(_health(label, course) for label, course in courses)
    rows = tuple(row for found in health for row in found)
    tables = (Table("What the checks of health said", ("model", "check", "steps"), rows),) if rows else ()
    return Part(KEY, TITLE, tuple(findings), tuple(figures), tables, note=NOTE, data={"models": data})


def panels(course: Course) -> list[CoursePanel]:
    """Return what a figure of the course shows: of policies reward, gold, length, KL; of others loss and margin."""
    objective = _objective(course)
    if objective is None:
        found = [
            CoursePanel(title, (_line(title.split(",")[0].lower(), course, metric),))
            for metric, title in SUPERVISED.items()
        ]
    else:
        found = [_reward_panel(course, objective)]
        if objective.gold is not None:
            found.append(CoursePanel("Gold score", (_line(objective.gold, course, f"rewards/{objective.gold}/mean"),)))
        found.append(CoursePanel("Length, tokens", (_line("mean length", course, "completions/mean_length"),)))
        distance = next((metric for metric in DISTANCES if _known(course, metric)), None)
        if distance is not None:
            found.append(CoursePanel(DISTANCES[distance], (_line("KL", course, distance),)))
    found.append(CoursePanel("Entropy, nats a token", (_line("entropy", course, "entropy"),)))
    return [panel for panel in found if any(math.isfinite(value) for line in panel.lines for value in line.values)]


def _objective(course: Course) -> Objective | None:
    """Return what a policy stage trains on; None for stages that sample nothing."""
    return Objective.of(course.settings) if _known(course, "reward") else None


def _known(course: Course, metric: str) -> bool:
    return any(metric in row for row in course.rows)


def _line(label: str, course: Course, metric: str, *, weight: float = 1.0, part: int | None = None) -> Line:
    return Line(label, tuple((weight * values(course.rows, metric)).tolist()), part)


def _reward_panel(course: Course, objective: Objective) -> CoursePanel:
    weights = objective.weights
    if objective.combination != "sum" or len(weights) < 2:
        return CoursePanel("Reward", (Line("reward", tuple(objective.proxy(course.rows).tolist())),))
    lines = [
        _line(name, course, f"rewards/{name}/mean", weight=weight, part=part)
        for part, (name, weight) in enumerate(weights.items())
    ]
    return CoursePanel("Reward, by part", tuple(lines), stacked=True)


def _split(course: Course, objective: Objective, *, alpha: float) -> Split | None:
    if objective.gold is None:
        return None
    return find_parting(
        course.rows,
        objective.proxy(course.rows),
        objective.gold,
        proxy_spread=objective.proxy_spread(course.rows),
        alpha=alpha,
    )


def _findings(label: str, objective: Objective | None, split: Split | None) -> Iterator[Finding]:
    if objective is None:
        return
    if split is not None:
        gold = "fell" if split.kind == "falls" else "stayed behind"
        yield Finding(
            "warning",
            f"{label}: looking back, reward and {objective.gold} parted after step {split.at}: the reward rose "
            f"{_from_to(split.proxy)}, {objective.gold} {gold}, {_from_to(split.gold)}.",
        )
    if objective.graded is None:
        yield Finding(
            "note",
            f"{label}: no reward graded its completions, so that nothing says whether a higher reward was a better "
            "answer. Watch one with the weight 0: rewards = { ..., r1_zero = 0.0 }.",
        )


def _figure(name: str, label: str, course: Course, shown: Sequence[CoursePanel], split: Split | None) -> Figure:
    lines = [line for panel in shown for line in panel.lines]
    ends = "; ".join(f"{line.label} {_from_to((line.values[0], line.values[-1]))}" for line in lines)
    alt = f"{label}, {course.stage}, {len(course.rows)} steps: {ends}."
    if split is not None:
        alt += f" Reward and gold part after step {split.at}."
    draw = course_figure(
        [int(row["step"]) for row in course.rows],
        shown,
        title=f"{label}, step by step",
        subtitle=f"stage of type {course.stage}",
        split=None if split is None else (split.at, f"reward and gold part after step {split.at}"),
    )
    return Figure(name, alt, draw)


def _from_to(ends: tuple[float, float]) -> str:
    return " ".join(f"{word} {plain_score(end, 'number')}" for word, end in zip(("from", "to"), ends, strict=True))


def _health(label: str, course: Course) -> list[tuple[Cell, ...]]:
    """Return a row for each check that found something, with the steps at which it held."""
    checks = dict.fromkeys(check for row in course.rows for check in row.get("health", ()))
    return [(Cell(label), Cell(check), Cell(", ".join(_spans(course, check)))) for check in checks]


def _spans(course: Course, check: str) -> Iterator[str]:
    for held, run in groupby(course.rows, key=lambda row: check in row.get("health", ())):
        steps = [row["step"] for row in run]
        if held:
            yield f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else str(steps[0])


def _data(
    course: Course, shown: Sequence[CoursePanel], objective: Objective | None, split: Split | None
) -> Mapping[str, Any]:
    return {
        "stage": course.stage,
        "seed": course.seed,
        "gold": None if objective is None else objective.gold,
        "split": None
        if split is None
        else {"kind": split.kind, "at": split.at, "reward": list(split.proxy), "gold": list(split.gold)},
        "steps": [int(row["step"]) for row in course.rows],
        "panels": {
            panel.title: {
                line.label: [value if math.isfinite(value) else None for value in line.values] for line in panel.lines
            }
            for panel in shown
        },
    }
