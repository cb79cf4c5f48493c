"""Where the numbers come from: commands, revisions, versions, settings, data; and what differs between the models.

Floor 5.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.reports.inputs import PLACE, Course, Inputs, lineage
from posttrain.reports.lineage import every_stage
from posttrain.reports.part import Example, Finding, Part
from posttrain.reports.tables import Cell, Table
from posttrain.settings import (
    DpoSettings,
    GrpoSettings,
    PpoSettings,
    PretrainSettings,
    RmSettings,
    SftSettings,
    StageSettings,
)

KEY, TITLE = "provenance", "Where this comes from"
NOTE = (
    "The commands, run at the revision named, make the same numbers: every draw is derived from the run's seed, and on "
    "the CPU a stage that was interrupted ends bit-identical. Another machine or another version of a library may "
    "differ in the last digits of a log-prob, and then in a sampled token."
)
SETTINGS: dict[str, type[StageSettings]] = {
    "pretrain": PretrainSettings,
    "sft": SftSettings,
    "rm": RmSettings,
    "dpo": DpoSettings,
    "grpo": GrpoSettings,
    "ppo": PpoSettings,
}
ASKED = {  # of an evaluation's summary, and what a page calls it
    "task_version": "task version",
    "grader_version": "grader version",
    "strict_profile": "answer form",
    "num_samples": "samples of each problem",
    "sampling": "sampling",
    "scores": "rewards",
    "scorer": "scorer",
    "seed": "seed",
    "template_hash": "prompt and template",
    "data_fingerprint": "data",
    "dropped_rows": "rows left out as too long",
}
IDENTITY = ("git_revision", "seed", "command")  # of an environment; the rest is what it was computed with
NONE = Cell("-", style="dim")


def provenance_part(inputs: Inputs) -> Part:
    """Return how each model and evaluation was made, what differs, and the commands that make them again."""
    courses = {
        model.name if len(model.courses) == 1 else f"{model.name}, seed {course.seed}": course
        for model in inputs.models
        for course in model.courses
    }
    stages = every_stage(inputs)
    differing = differing_settings({model.name: model.courses[0] for model in inputs.models if model.courses})
    tables = [_training_table(courses)] if courses else []
    tables += [_settings_table(differing)] if differing else []
    tables += [_evaluation_table(inputs), *_environment_tables(stages)]
    commands = commands_of(stages)
    examples = (Example("To make it again", tuple((stages, command) for command, stages in commands.items())),)
    return Part(
        KEY,
        TITLE,
        tuple(_findings(stages)),
        tables=tuple(tables),
        examples=examples if commands else (),
        note=NOTE,
        data={
            "stages": [_data(course) for course in stages],
            "evaluations": {
                model.name: {task: _asked(evaluation.summary) for task, evaluation in model.evaluations.items()}
                for model in inputs.models
            },
            "differing_settings": differing,
            "commands": list(commands),
        },
    )


def differing_settings(courses: Mapping[str, Course]) -> dict[str, dict[str, Any]]:
    """Return each setting in which the training of models differs, with its value for each model that has it.

    What all that have a setting share is left out; but where another kind of stage does not have it, only its default.
    """
    flat = {name: flat_settings(course.settings) for name, course in courses.items()}
    defaults = {name: _defaults(course.stage) for name, course in courses.items()}
    found = {}
    for key in dict.fromkeys(key for settings in flat.values() for key in settings):
        own = {name: settings[key] for name, settings in flat.items() if key in settings}
        alike = len({json.dumps(value, sort_keys=True) for value in own.values()}) == 1
        usual = all(key in defaults[name] and defaults[name][key] == value for name, value in own.items())
        kinds = {courses[name].stage for name in own}
        others = [course.stage for name, course in courses.items() if name not in own]
        if not alike or (others and not (usual and kinds.isdisjoint(others))):
            found[key] = own
    return found


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flat_settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def commands_of(stages: Sequence[Course]) -> dict[str, str]:
    """Return the commands that made the stages, in order, each with the names of its stages."""
    found: dict[str, list[str]] = {}
    for course in stages:
        if command := course.environment.get("command"):
            found.setdefault(command, []).append(course.path.name)
    return {command: ", ".join(names) for command, names in found.items()}


def _defaults(stage: str) -> dict[str, Any]:
    return flat_settings(SETTINGS[stage]().model_dump(mode="json")) if stage in SETTINGS else {}


def _findings(stages: Sequence[Course]) -> Iterator[Finding]:
    revisions = {course.path.name: str(course.environment.get("git_revision") or "") for course in stages}
    changed = [name for name, revision in revisions.items() if revision.endswith("-dirty")]
    if changed:
        yield Finding(
            "note",
            f"{', '.join(changed)}: computed from a source that was changed after its last commit: the revision alone "
            "does not bring it back.",
        )
    if len(set(revisions.values()) - {""}) > 1:
        yield Finding("note", "Not all stages were computed from one revision of the source: see the tables.")


def _training_table(courses: Mapping[str, Course]) -> Table:
    rows = tuple(
        (
            Cell(label),
            *_origin(course),
            Cell(str(course.seed)),
            _text(course.environment.get("git_revision")),
        )
        for label, course in courses.items()
    )
    return Table("Training", ("model", "starts from", "stages", "seed", "revision"), rows)


def _origin(course: Course) -> tuple[Cell, Cell]:
    """Return the model that the first stage started from, and the stages from it to this one."""
    stages = lineage(course)
    start = stages[0].settings.get("model", {}).get("name_or_path")
    return _text(start), Cell(", ".join(stage.path.name for stage in stages))


def _settings_table(differing: Mapping[str, Mapping[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for own in differing.values() for name in own))
    rows = tuple(
        (Cell(key), *(_text(own[name]) if name in own else NONE for name in names)) for key, own in differing.items()
    )
    return Table(
        "Settings that differ",
        ("setting", *names),
        rows,
        "equal values are left out, and so are defaults of settings that only one kind of stage has",
    )


def _evaluation_table(inputs: Inputs) -> Table:
    """A row for each thing that decides a score; where models differ in it, every one's value."""
    rows = []
    for key, words in ASKED.items():
        cells = []
        for task in inputs.tasks:
            values = {m.name: m.evaluations[task].summary.get(key) for m in inputs.models if task in m.evaluations}
            cells.append(_agreed({name: _shown(value) for name, value in values.items() if value not in (None, {})}))
        if any(cell is not NONE for cell in cells):
            rows.append((Cell(words), *cells))
    return Table("Evaluations", ("", *inputs.tasks), tuple(rows))


def _agreed(values: Mapping[str, str]) -> Cell:
    if not values:
        return NONE
    if len(set(values.values())) == 1:
        return Cell(next(iter(values.values())))
    return Cell("; ".join(f"{name}: {value}" for name, value in values.items()))


def _environment_tables(stages: Sequence[Course]) -> Iterator[Table]:
    """One table; a column for all stages that were computed alike."""
    alike: dict[str, tuple[list[str], Mapping[str, Any]]] = {}
    for course in stages:
        made_with = {key: value for key, value in course.environment.items() if key not in IDENTITY}
        if made_with:
            names, _ = alike.setdefault(json.dumps(made_with, sort_keys=True), ([], made_with))
            names.append(course.path.name)
    if not alike:
        return
    columns = list(alike.values())
    headers = ("", *(", ".join(names) if len(columns) > 1 else "every stage" for names, _ in columns))
    keys = dict.fromkeys(key for _, made_with in columns for key in made_with)
    rows = tuple((Cell(key), *(_text(made_with.get(key)) for _, made_with in columns)) for key in keys)
    yield Table("Computed with", headers, rows)


def _text(value: Any) -> Cell:
    return NONE if value is None else Cell(_shown(value))


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if not isinstance(value, str):
        return json.dumps(value)
    return f"stage {Path(value).parent.name}" if value.endswith(PLACE) else value


def _asked(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {"task": summary["task"], **{key: summary.get(key) for key in ASKED}}


def _data(course: Course) -> dict[str, Any]:
    return {
        "name": course.path.name,
        "run": course.path.resolve().parent.name,
        "type": course.stage,
        "seed": course.seed,
        "environment": dict(course.environment),
        "settings": dict(course.settings),
    }
