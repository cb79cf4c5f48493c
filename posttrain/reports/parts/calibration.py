"""How far reward models can be trusted: accuracy and calibration on held-out pairs, what else they like, and whether
they still order the answers of the models that were trained against them.

Floor 5: reads `reward_model.json` beside the weights of each reward model that a stage of the report names.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.errors import ModelError
from posttrain.evals.pairs import verdict
from posttrain.evals.samples import REWARDS
from posttrain.evals.stats import paired_p, share_interval, wilson_interval
from posttrain.models.files import reward_report
from posttrain.reports.claims import Claim, adjust
from posttrain.reports.figures.judging import Bin, GroupAccuracy, accuracy_by_group, reliability
from posttrain.reports.inputs import Course, Evaluation, Inputs, read_course
from posttrain.reports.lineage import artifact_of, evaluation_stage
from posttrain.reports.numbers import plain_interval, plain_score
from posttrain.reports.paired import Sample
from posttrain.reports.part import Figure, Finding, Part, Tone
from posttrain.reports.tables import Cell, Table
from posttrain.rewards import REWARD_MODEL

KEY, TITLE = "calibration", "The reward models"
NOTE = (
    "Accuracy is of pairs that were never trained on: how often the scores order two answers as they were judged. "
    "Confidence is the probability that the reward model gives its own choice; a calibrated one is right as often. "
    "Biases are slopes among the answers to one prompt, tested at 5% for each reward model. Held-out pairs say nothing "
    "of answers that a policy finds later, which no judge has seen: for these look at the last table, where there is "
    "one."
)
ABSENT = (
    "No model here was trained or scored by a reward model: `posttrain rm`, then "
    "`--reward_model runs/NAME/rm/artifact --rewards.reward_model 1.0`."
)
LATEST = 10  # steps of a reward model's training whose accuracy is shown


@dataclass(frozen=True, slots=True)
class RewardModel:
    """A reward model, with what its own stage said of it, and the evaluations that it scored."""

    name: str
    path: Path
    report: Mapping[str, Any]  # empty where it comes without one
    training_accuracy: float | None
    scored: Mapping[str, Evaluation] = field(default_factory=dict)  # by the model's name and the task's label


def calibration_part(inputs: Inputs) -> Part:
    """Return what is known of each reward model that a model's training or evaluation names."""
    models = reward_models(inputs)
    if not models:
        return Part(KEY, TITLE, absent=ABSENT)
    measured = [model for model in models if model.report]
    orders = {(model.name, label): ordering(e) for model in models for label, e in model.scored.items()}
    told = {key: shares for key, shares in orders.items() if len(shares)}
    tested = adjust([_claim(*key, shares) for key, shares in told.items()])
    tables = [_table(measured)] if measured else []
    tables += [_ordering_table(told)] if told else []
    return Part(
        KEY,
        TITLE,
        (*(finding for model in models for finding in _findings(model)), *tested.findings),
        tuple(figure for place, model in enumerate(measured, 1) for figure in _figures(place, model)),
        tuple(tables),
        note=NOTE,
        data={"models": {model.name: _data(model, told) for model in models}, "claims": tested.data},
    )


def reward_models(inputs: Inputs) -> list[RewardModel]:
    """Return each reward model that a course or an evaluation names, once, in that order."""
    paths: dict[Path, dict[str, Evaluation]] = {}
    for model in inputs.models:
        for course in model.courses:
            if (named := course.settings.get("reward_model")) is not None:
                paths.setdefault(artifact_of(named, course), {})
        for task, evaluation in model.evaluations.items():
            named, stage = evaluation.settings.get("reward_model"), evaluation_stage(evaluation)
            if named is not None:
                path = Path(named) if stage is None else artifact_of(named, stage)
                paths.setdefault(path, {})[f"{model.name} on {task}"] = evaluation
    return [_reward_model(_name(path, paths), path, scored) for path, scored in paths.items()]


def _name(path: Path, everyone: Collection[Path]) -> str:
    """Return the name of the stage that made a reward model, with its run's where two stages have one name."""
    stage = path.parent
    alike = [other for other in everyone if other.parent.name == stage.name]
    return stage.name if len(alike) == 1 else f"{stage.parent.name}/{stage.name}"


def _reward_model(name: str, path: Path, scored: Mapping[str, Evaluation]) -> RewardModel:
    stage = read_course(path.parent)
    try:
        report = reward_report(str(path))
    except ModelError:  # it is gone, or damaged; the rest of a comparison does not need it
        report = None
    return RewardModel(name if stage else str(path), path, report or {}, _latest_accuracy(stage), scored)


def _latest_accuracy(stage: Course | None) -> float | None:
    found = [row["accuracy"] for row in stage.rows if "accuracy" in row] if stage else []
    return float(np.mean(found[-LATEST:])) if found else None


def _findings(model: RewardModel) -> Iterator[Finding]:
    report = model.report
    if not report:
        yield Finding(
            "note", f"{model.name} comes without a report on held-out pairs: whether it beats chance is not known."
        )
        return
    tone: Tone = "note" if report["beats_chance"] else "warning"
    longer = report["prefers_longer"]
    words = f"{model.name} is {verdict(dict(report))}"
    if not report["beats_chance"]:
        words += "; a policy trained against it learns noise"
    if longer is not None:
        words += f". In {plain_score(longer, 'share')} of the pairs it chooses the longer answer"
        words += f", which was judged better in {plain_score(report['longer_chosen'], 'share')}"
    yield Finding(tone, f"{words}.")
    for sentence in report["bias"]["findings"]:
        yield Finding("warning", f"{model.name} {sentence}.")


def ordering(evaluation: Evaluation) -> np.ndarray:
    """Return of each prompt with right and wrong answers the share of their pairs whose right one scores higher, (P,).

    A tie counts as half. No prompts where nothing is graded, or the reward model did not score.
    """
    column = f"{REWARDS}{REWARD_MODEL}"
    groups: dict[str, list[Sample]] = {}
    for sample in evaluation.samples:
        if sample.get(column) is not None and sample.get("strict") is not None:
            groups.setdefault(sample["problem_id"], []).append(sample)
    shares = []
    for samples in groups.values():
        right = np.array([sample[column] for sample in samples if sample["strict"]])
        wrong = np.array([sample[column] for sample in samples if not sample["strict"]])
        if len(right) and len(wrong):
            shares.append(float((np.sign(right[:, None] - wrong) / 2 + 0.5).mean()))
    return np.array(shares)


def _claim(name: str, label: str, shares: np.ndarray) -> Claim:
    mean, interval = float(shares.mean()), share_interval(shares, 1)
    return Claim(
        "note" if mean > 0.5 else "warning",
        f"{name} puts right answers of {label} {'above' if mean > 0.5 else 'below'} wrong ones to the same prompt "
        f"more often than chance: above in {plain_score(mean, 'share')} "
        f"(95% CI {plain_interval(*interval, 'share')})",
        paired_p(np.full(len(shares), 0.5), shares),
    )


def _figures(place: int, model: RewardModel) -> Iterator[Figure]:
    report = model.report
    bins = [_bin(row) for row in report["calibration"]["reliability"]]
    told = ", ".join(f"{plain_score(b.accuracy, 'share')} right at {plain_score(b.confidence, 'share')}" for b in bins)
    error = report["calibration"]["ece"]
    yield Figure(
        f"reliability-{place}",
        f"{model.name}: share right by confidence: {told}; calibration error {plain_score(error, 'share')}.",
        reliability(
            bins, title=f"Calibration of {model.name}", subtitle=f"{report['pairs']} held-out pairs", error=error
        ),
    )
    groups = [_gap_group(row) for row in report["by_length_gap"]]
    told = "; ".join(f"{group.label}: {plain_score(group.accuracy, 'share')} of {group.count}" for group in groups)
    yield Figure(
        f"length-gap-{place}",
        f"{model.name}: accuracy by how much longer the better answer is: {told}.",
        accuracy_by_group(groups, title=f"Accuracy of {model.name} by length", subtitle="of the answer judged better"),
    )


def _bin(row: Mapping[str, Any]) -> Bin:
    interval = wilson_interval(row["accuracy"] * row["pairs"], row["pairs"])
    return Bin(row["confidence"], row["accuracy"], row["pairs"], *interval)


def _gap_group(row: Mapping[str, Any]) -> GroupAccuracy:
    shortest, longest = row["gap_min"], row["gap_max"]
    label = f"{shortest:+d} tokens" if shortest == longest else f"{shortest:+d} to {longest:+d} tokens"
    low, high = row["accuracy_interval"]
    return GroupAccuracy(label, row["accuracy"], low, high, row["pairs"])


def _table(measured: Sequence[RewardModel]) -> Table:
    rows = tuple((Cell(model.name), *_measures(model)) for model in measured)
    headers = (
        *("reward model", "held-out accuracy", "pairs", "in training"),
        *("calibration error", "chooses longer", "longer is better"),
    )
    caption = f"in training: mean of the last {LATEST} steps, on pairs just before they are learned"
    return Table("Reward models on pairs", headers, rows, caption)


def _measures(model: RewardModel) -> Iterator[Cell]:
    report = model.report
    low, high = report["accuracy_interval"]
    yield Cell(plain_score(report["accuracy"], "share"), plain_interval(low, high, "share"))
    yield Cell(str(report["pairs"]))
    yield Cell(plain_score(model.training_accuracy, "share"))
    yield Cell(plain_score(report["calibration"]["ece"], "share"))
    yield Cell(plain_score(report["prefers_longer"], "share"))
    yield Cell(plain_score(report["longer_chosen"], "share"))


def _ordering_table(told: Mapping[tuple[str, str], np.ndarray]) -> Table:
    rows = tuple(
        (
            Cell(f"{reward_model}, answers of {label}"),
            Cell(plain_score(float(shares.mean()), "share"), plain_interval(*share_interval(shares, 1), "share")),
            Cell(str(len(shares))),
        )
        for (reward_model, label), shares in told.items()
    )
    return Table(
        "Right answers above wrong ones to the same prompt",
        ("reward model", "accuracy", "prompts"),
        rows,
        "prompts with both; guessing gives 50%",
    )


def _data(model: RewardModel, told: Mapping[tuple[str, str], np.ndarray]) -> dict[str, Any]:
    own = {label: found for (name, label), found in told.items() if name == model.name}
    answers = {}
    for label, shares in own.items():
        interval = share_interval(shares, 1)
        answers[label] = {
            "accuracy": float(shares.mean()),
            "low": interval.low,
            "high": interval.high,
            "prompts": len(shares),
        }
    return {
        "path": str(model.path),
        "training_accuracy": model.training_accuracy,
        "held_out": dict(model.report) or None,
        "answers": answers,
    }
