"""Stages as they lie on disk, for parts that read where a model came from."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.evals.bias import bias_report
from posttrain.evals.pairs import pair_report, verdict
from posttrain.reports.inputs import Course, read_course


def write_stage(
    path: Path,
    stage: str,
    settings: Mapping[str, Any],
    *,
    rows: Sequence[Mapping[str, Any]] = (),
    events: Sequence[Mapping[str, Any]] = (),
    environment: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
) -> Course:
    """Write what a stage leaves, without its weights, and return it as it is read."""
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"schema": 1, "stage": stage, "fingerprint": "f"}))
    (path / "settings.json").write_text(json.dumps(settings))
    (path / "environment.json").write_text(json.dumps(environment or {}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    if result is not None:
        (path / "result.json").write_text(json.dumps(result))
    course = read_course(path)
    assert course is not None
    return course


def write_reward_model(path: Path, *, quality: float, love_of_length: float, pairs: int = 200) -> Course:
    """Write a reward model's stage whose scores follow how good an answer is, and its length, with these weights."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(20, 120, (pairs, 2))
    scores = quality * np.array([1.0, 0.0]) + love_of_length * lengths / 100 + draw.normal(0, 0.5, (pairs, 2))
    report = pair_report(*scores.T, *lengths.T)
    bias = bias_report(
        scores.ravel(), lengths.ravel(), ["yes"] * 2 * pairs, np.repeat(np.arange(pairs), 2), np.tile([1.0, 0.0], pairs)
    )
    course = write_stage(path, "rm", {}, rows=[{"step": step, "accuracy": 0.9} for step in range(1, 13)])
    (path / "artifact").mkdir()
    for name in ("config.json", "model.safetensors"):
        (path / "artifact" / name).write_text("{}")
    content = {"verdict": verdict(report), **report, "bias": bias}
    (path / "artifact" / "reward_model.json").write_text(json.dumps(content))
    return course
