"""The stages that a report's models and evaluations came from, found by the artifacts that settings name.

Floor 5: only reads.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.reports.inputs import Course, Evaluation, Inputs, read_course, stage_of

FRONTIER = "artifact/frontier.json"  # what a frontier stage leaves


def every_stage(inputs: Inputs) -> list[Course]:
    """Return each stage that a report shows something of, once, in an order in which they can run."""
    found: dict[Path, Course] = {}
    for model in inputs.models:
        for course in model.courses:
            _visit(course, found)
    for model in inputs.models:
        for evaluation in model.evaluations.values():
            if (stage := evaluation_stage(evaluation)) is not None:
                _visit(stage, found)
    for model in inputs.models:
        for course in model.courses:
            for stage in frontier_stages(course):
                _visit(stage, found)
    return list(found.values())


def frontier_stages(course: Course) -> list[Course]:
    """Return the frontier stages beside a training stage that followed its policies to the end."""
    places = [file.parents[1] for file in sorted(course.path.resolve().parent.glob(f"*/{FRONTIER}"))]
    beside = [stage for place in places if (stage := read_course(place)) is not None]
    return [stage for stage in beside if Path(stage.settings["policies"]).name == course.path.name]


def evaluation_stage(evaluation: Evaluation) -> Course | None:
    """Return what an evaluation's stage left, of several seeds the first one's; None for an artifact by itself."""
    return None if evaluation.path is None else read_course(evaluation.path)


def artifact_of(name: str, course: Course) -> Path:
    """Return the path of what a setting names, as a neighbour of the stage where the run was moved."""
    stage = stage_of(name, course.path)
    return Path(name) if stage is None else stage.resolve() / "artifact"


def _visit(course: Course, found: dict[Path, Course]) -> None:
    place = course.path.resolve()
    if place in found:
        return
    for text in _texts(course.settings):
        earlier = stage_of(text, course.path)
        if earlier is not None and earlier.resolve() != place and (before := read_course(earlier)) is not None:
            _visit(before, found)
    found[place] = course


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
