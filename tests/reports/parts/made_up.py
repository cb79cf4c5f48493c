"""Made-up models for the parts of a report: samples, evaluations and courses with a planted truth."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.evals.mathematics import summarise_grades
from posttrain.evals.samples import summarise
from posttrain.reports.inputs import Course, Evaluation, Inputs, Model
from posttrain.reports.part import Part
from posttrain.settings import GrpoSettings, SftSettings

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def sample(
    problem: str,
    index: int = 0,
    *,
    right: bool = False,
    kept: bool = True,
    lenient: bool | None = None,
    tokens: int = 20,
    **columns: Any,
) -> dict[str, Any]:
    """Return a graded sample; `kept` says whether it has an answer in the form asked for."""
    category = "correct" if right else "wrong_answer" if kept else "format_failure"
    row = {
        "problem_id": problem,
        "sample": index,
        "prompt": f"Question {problem}?",
        "completion": " ".join(WORDS[(len(problem) + index + i) % len(WORDS)] for i in range(tokens)),
        "num_tokens": tokens,
        "stop_reason": "eos",
        "logprob": -0.5,
        "category": category,
        "score": float(right),
        "gold": "42",
        "strict": right,
        "lenient": right if lenient is None else lenient,
        "extracted": ("42" if right else "41") if kept else None,
    }
    return row | columns


def evaluation(name: str, samples: Sequence[Mapping[str, Any]], *, task: str = "nano", **summary: Any) -> Evaluation:
    """Return an evaluation of samples, graded where they have grades."""
    graded = samples[0].get("strict") is not None
    asked = {"task": task, "kind": "mathematics" if graded else "scored", "grader_version": "2", "seed": 0}
    made = {**asked, **summarise(samples), **(summarise_grades(samples) if graded else {}), **summary}
    return Evaluation(name, made, samples)


def inputs(*models: Model) -> Inputs:
    """Return inputs whose first model is the baseline."""
    tasks = dict.fromkeys(task for model in models for task in model.evaluations)
    return Inputs(models[0].name, models, tuple(tasks))


def model(name: str, *evaluations: Evaluation, courses: Sequence[Course] = ()) -> Model:
    """Return a model with its evaluations, by their tasks."""
    return Model(name, {each.task: each for each in evaluations}, tuple(courses))


def course(
    rows: Sequence[Mapping[str, Any]],
    *,
    stage: str = "grpo",
    settings: Mapping[str, Any] | None = None,
    path: Path = Path("runs/made_up/grpo"),
    events: Sequence[Mapping[str, Any]] = (),
    environment: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
) -> Course:
    """Return a course with a stage's default settings but for those given."""
    defaults = {"grpo": GrpoSettings, "sft": SftSettings}[stage]().model_dump(mode="json")
    return Course(path, stage, defaults | dict(settings or {}), rows, events, environment or {}, result or {})


def policy_rows(proxy: np.ndarray, gold: np.ndarray, *, noise: float = 0.0, seed: int = 0) -> list[dict[str, Any]]:
    """Return the metrics of a policy stage whose reward and r1_zero have these means (T,), with noise of steps."""
    draw = np.random.default_rng(seed)
    proxy, gold = proxy + draw.normal(0, noise, len(proxy)), gold + draw.normal(0, noise / 3, len(gold))
    return [
        {
            "step": step,
            "reward": float(reward),
            "reward_std": 1.0,
            "rewards/reward_model/mean": float(reward),
            "rewards/r1_zero/mean": float(right),
            "rewards/r1_zero/std": 0.5,
            "completions/mean_length": 20.0,
            "entropy": 0.2,
            "update/tokens": 100.0,
            "time/generate": 2.0,
            "time/update": 1.0,
        }
        for step, (reward, right) in enumerate(zip(proxy, gold, strict=True), 1)
    ]


def texts(part: Part) -> list[str]:
    """Return what a part claims, in words."""
    return [finding.text for finding in part.findings]


def strict_json(part: Part) -> Any:
    """Return the part's numbers as a program reads them; raises ValueError where they are no strict JSON."""
    return json.loads(json.dumps(part.data, allow_nan=False))
