"""What a report is made of: models with their evaluations and the training that made them, read from run directories.

Floor 5: only reads. Evaluations of one model belong together, whatever tasks they are of; runs of one recipe that
differ in their seed alone are seeds of one model.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.errors import DataError
from posttrain.evals.evaluate import KINDS, SAMPLES_FILE, SUMMARY_FILE
from posttrain.evals.samples import by_problem, summarise
from posttrain.runs.directory import EVENTS, METRICS, RESULT
from posttrain.runs.identity import RUN, SETTINGS
from posttrain.runs.logs import read_rows
from posttrain.runs.rollout_files import read_rollouts

PLACE = "/artifact"  # how a setting ends that names what an earlier stage left
ASKED = ("num_samples", "sampling")  # may differ between two evaluations of a model on one task: these are two variants


@dataclass(frozen=True, slots=True)
class Course:
    """What the stage left that trained a model."""

    path: Path
    stage: str  # its kind: sft, dpo, grpo, ...
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]  # of metrics.jsonl
    events: Sequence[Mapping[str, Any]]
    environment: Mapping[str, Any]
    result: Mapping[str, Any]  # empty while it runs

    @property
    def seed(self) -> int:
        """The run seed."""
        return int(self.settings.get("seed", 0))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One model on one task, as its stage left it; of several seeds, their samples together."""

    name: str  # of the model
    summary: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]]
    path: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed_scores: tuple[float, ...] = ()  # mean score of each seed, where there are several

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.summary["task"])

    def means(self) -> dict[str, float]:
        """Return each problem's mean score, in order of problem ids; samples without a score are left out."""
        scored = [sample for sample in self.samples if sample["score"] is not None]
        return {problem: float(np.mean(values)) for problem, values in by_problem(scored, "score").items()}


@dataclass(frozen=True, slots=True)
class Model:
    """One row of a report."""

    name: str
    evaluations: Mapping[str, Evaluation]  # by the task's label
    courses: tuple[Course, ...] = ()  # one for each seed; none of a model that no run here trained
    start: str | None = None  # the model among these that it was trained from


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a report is made of."""

    baseline: str
    models: tuple[Model, ...]
    tasks: tuple[str, ...]  # labels, in the order in which they were found

    def model(self, name: str) -> Model:
        """Return the model of that name."""
        return next(model for model in self.models if model.name == name)


@dataclass(frozen=True, slots=True)
class _Found:
    """An evaluation, and which model it is of: equal keys are one model, up to its seed."""

    evaluation: Evaluation
    key: str
    seed: int
    course: Course | None


def read_inputs(evaluations: Mapping[str, Path], baseline: str) -> Inputs:
    """Read evaluations (name to stage directory, in order); `baseline` is one of the names.

    Raises DataError where one is missing, or was made before samples had a score.
    """
    found = _apart({name: _find(name, path) for name, path in evaluations.items()})
    keys = list(dict.fromkeys(item.key for item in found.values()))
    names = _names(keys, found)
    labels = _labels([item.evaluation for item in found.values()])
    models = []
    for key in keys:
        own = {name: item for name, item in found.items() if item.key == key}
        by_task: dict[str, list[_Found]] = {}
        for item in own.values():
            by_task.setdefault(labels[_variant(item.evaluation)], []).append(item)
        courses = {item.seed: item.course for item in own.values() if item.course is not None}
        merged = {label: _merge(names[key], items) for label, items in by_task.items()}
        ordered = tuple(courses[seed] for seed in sorted(courses))
        start = names.get(_start(ordered[0], found.values())) if ordered else None
        models.append(Model(names[key], merged, ordered, start))
    return Inputs(names[found[baseline].key], tuple(models), tuple(dict.fromkeys(labels.values())))


def load_evaluation(name: str, path: Path) -> Evaluation:
    """Read an evaluation from its stage directory, or from the artifact itself."""
    directory = path / "artifact" if (path / "artifact").is_dir() else path
    fix = f"posttrain eval --name {name}"
    try:
        summary = json.loads((directory / SUMMARY_FILE).read_bytes())
        samples = read_rollouts(directory / SAMPLES_FILE)
    except FileNotFoundError as error:
        raise DataError(f"{name} is no finished evaluation: {error.filename} is missing", fix=fix) from None
    if not {"score", "kind"} <= summary.keys() or not all("score" in sample for sample in samples[:1]):
        raise DataError(f"{name} was evaluated by an older version: its samples have no score", fix=fix)
    return Evaluation(name, summary, samples, path, _read_json(path / SETTINGS))


def read_course(path: Path) -> Course | None:
    """Read the directory of a training stage; None where it is none."""
    if not (path / RUN).is_file():
        return None
    return Course(
        path,
        str(_read_json(path / RUN).get("stage", path.name)),
        _read_json(path / SETTINGS),
        read_rows(path / METRICS),
        read_rows(path / EVENTS),
        _read_json(path / "environment.json"),
        _read_json(path / RESULT),
    )


def lineage(course: Course) -> list[Course]:
    """Return the stages that made a model, each started from the one before it, as far as they are there."""
    stages = [course]
    while (before := stage_of(stages[0].settings.get("model", {}).get("name_or_path"), stages[0].path)) is not None:
        found = read_course(before)
        if found is None:
            break
        stages.insert(0, found)
    return stages


def _find(name: str, path: Path) -> _Found:
    evaluation = load_evaluation(name, path)
    key, trained = _model_of(evaluation.settings, path)
    course = None if trained is None else read_course(trained)
    seed = course.seed if course else int(evaluation.settings.get("seed", 0))
    return _Found(evaluation, key or name, seed, course)


def _apart(found: Mapping[str, _Found]) -> dict[str, _Found]:
    """Give runs of equal settings and an equal seed models of their own: other code or data may have made them."""
    places: dict[tuple[str, int], set[Path]] = {}
    for item in found.values():
        if item.course is not None:
            places.setdefault((item.key, item.seed), set()).add(item.course.path.resolve())
    twice = {key for (key, _), paths in places.items() if len(paths) > 1}
    return {
        name: replace(item, key=f"{item.key} {item.course.path.resolve()}")
        if item.course is not None and item.key in twice
        else item
        for name, item in found.items()
    }


def _start(course: Course, found: Iterable[_Found]) -> str:
    """Return the key of the model that a course started from."""
    key, trained = _model_of(course.settings, course.path)
    of_path = {item.course.path.resolve(): item.key for item in found if item.course is not None}
    return key if trained is None else of_path.get(trained.resolve(), key)


def _model_of(settings: Mapping[str, Any], beside: Path) -> tuple[str, Path | None]:
    """Return a key of the model that a stage's settings name, equal for equal models, and the stage that trained it."""
    model = settings.get("model", {})
    named = model.get("name_or_path", "")
    if (trained := stage_of(named, beside)) is not None:
        return f"{trained.name} {_signature(trained)}", trained
    options = [str(model.get(option)) for option in ("revision", "load_in_4bit", "chat_template")]
    return (" ".join([named, *options]) if named else ""), None


def stage_of(value: Any, beside: Path) -> Path | None:
    """Return the directory of the stage whose artifact a setting names: beside this one, or where the setting says."""
    if not isinstance(value, str) or not value.endswith(PLACE):
        return None
    told = Path(value).parent
    sibling = beside.resolve().parent / told.name
    return next((place for place in (sibling, told) if (place / RUN).is_file()), None)


def _signature(stage: Path) -> str:
    """Return what decides a trained model but its seed: settings, with those of the stages that they name."""
    settings = {key: value for key, value in _read_json(stage / SETTINGS).items() if key != "seed"}

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        earlier = stage_of(value, stage)
        return value if earlier is None else [earlier.name, _signature(earlier)]

    return json.dumps(plain(settings), sort_keys=True)


def _names(keys: Sequence[str], found: Mapping[str, _Found]) -> dict[str, str]:
    """Return a name for each model: of the stage that trained it, or of its evaluations; unique by the run's."""
    names: dict[str, str] = {}
    for key in keys:
        own = {name: item for name, item in found.items() if item.key == key}
        first_name, first = next(iter(own.items()))
        directories = {item.evaluation.path.name for item in own.values() if item.evaluation.path}
        plain = first.course.path.name if first.course else directories.pop() if len(directories) == 1 else ""
        names[key] = plain or Path(str(first.evaluation.settings.get("model", {}).get("name_or_path", first_name))).name
    plain_names = list(names.values())
    for key, name in zip(keys, plain_names, strict=True):
        if plain_names.count(name) > 1:
            first_name, first = next((n, item) for n, item in found.items() if item.key == key)
            names[key] = f"{first.course.path.resolve().parent.name}/{name}" if first.course else first_name
    return (
        names if len(set(names.values())) == len(keys) else {key: f"{names[key]} ({i})" for i, key in enumerate(keys)}
    )


def _variant(evaluation: Evaluation) -> str:
    return json.dumps([evaluation.task, *(evaluation.summary.get(key) for key in ASKED)], sort_keys=True)


def _labels(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """Return a label for each variant of each task: the task's name, and how it was asked where that differs."""
    variants = {_variant(evaluation): evaluation for evaluation in evaluations}
    labels: dict[str, str] = {}
    for variant, evaluation in variants.items():
        same = [other for other in variants.values() if other.task == evaluation.task]
        sampling = evaluation.summary.get("sampling") or {}
        asked = f" x {evaluation.summary['num_samples']} at temperature {sampling.get('temperature')}"
        label = evaluation.task if len(same) == 1 else evaluation.task + asked
        labels[variant] = label if label not in labels.values() else f"{label} ({len(labels) + 1})"
    return labels


def _merge(name: str, items: Sequence[_Found]) -> Evaluation:
    """Return the evaluations of a model's seeds on one task as one, with the samples of all; the first of each seed."""
    items = list({item.seed: item for item in reversed(items)}.values())[::-1]
    first = items[0].evaluation
    if len(items) == 1:
        return replace(first, name=name)
    rows = [
        {**row, "sample": row["sample"] + place * first.summary["num_samples"], "seed": item.seed}
        for place, item in enumerate(items)
        for row in item.evaluation.samples
    ]
    summary = {**first.summary, **summarise(rows)}
    summary["num_samples"] = first.summary["num_samples"]
    summary |= KINDS[first.summary["kind"]].summarise(rows)
    if "pass_at_k" in first.summary:
        ks = first.summary["pass_at_k"]
        mean = {k: sum(item.evaluation.summary["pass_at_k"][k] for item in items) / len(items) for k in ks}
        summary["pass_at_k"] = mean
    fingerprints = sorted({str(item.evaluation.summary.get("data_fingerprint")) for item in items})
    summary["data_fingerprint"] = " ".join(fingerprints)
    scores = tuple(float(item.evaluation.summary["score"]["mean"]) for item in items)
    return Evaluation(name, summary, rows, first.path, first.settings, scores)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
