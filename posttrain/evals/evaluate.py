"""Have a model answer a task's problems, and say how well it did.

Floor 4. A flat loop over batches of problems, each kept, so that an evaluation resumes after the last one. How a kind
of task is answered is in `sampled.py` and `choices.py`; KINDS names what differs between them.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.data.named import used_style
from posttrain.data.rows import Row as DataRow
from posttrain.data.sources import load_rows, require_kind
from posttrain.engines import Interrupted
from posttrain.evals import choices, mathematics, preferences, scored
from posttrain.evals.checks import check_settings
from posttrain.evals.choices import choice_answers
from posttrain.evals.distance import distance_lines, summarise_distance
from posttrain.evals.preferences import preference_answers
from posttrain.evals.sampled import sampled_answers, scores_of
from posttrain.evals.samples import Answers, Row, Sample, judging_lines, subset_lines, summarise
from posttrain.evals.tasks import GIVEN, ROW_KINDS, Kind, Task, evaluated_task, find_task, task_data, used_profile
from posttrain.rewards.math_answers import GRADER_VERSION
from posttrain.runs import durable
from posttrain.runs.directory import StageRun
from posttrain.runs.rollout_files import read_rollouts, write_rollouts
from posttrain.settings import DataSettings, EvalSettings

SAMPLES_PER_STEP = 512  # that are scored and kept together; twice what the engine decodes side by side
SAMPLES_FILE, SUMMARY_FILE = "samples.parquet", "summary.json"


@dataclass(frozen=True, slots=True)
class KindOfTask:
    """What differs between the kinds: how problems are answered, and what is said of all answers."""

    answers: Callable[[Task, EvalSettings, Sequence[DataRow], StageRun], AbstractContextManager[Answers]]
    summarise: Callable[[Sequence[Row]], dict[str, Any]]
    headline: Callable[[Mapping[str, Any]], str]
    identity: Callable[[Task, EvalSettings], dict[str, Any] | None] = lambda task, settings: (
        None
    )  # beside task and form


KINDS: dict[Kind, KindOfTask] = {
    "mathematics": KindOfTask(sampled_answers, mathematics.summarise_grades, mathematics.headline),
    "scored": KindOfTask(sampled_answers, scored.summarise_scores, scored.headline, scored.score_identity),
    "choices": KindOfTask(choice_answers, choices.summarise_choices, choices.headline),
    "preferences": KindOfTask(
        preference_answers,
        preferences.summarise_preferences,
        preferences.headline,
        preferences.score_identity,
    ),
}


def evaluate(settings: EvalSettings, run: StageRun) -> None:
    """Evaluate a model and publish samples.parquet and summary.json as the run's artifact."""
    check_settings(settings)
    data = task_data(find_task(settings.task), settings.data)
    task = evaluated_task(find_task(settings.task), data)
    settings = settings.model_copy(update={"data": data})
    kind = KINDS[task.kind]
    rows = load_rows(data, seed=settings.seed, kinds=ROW_KINDS[task.kind])
    require_kind(rows, ROW_KINDS[task.kind], "eval")
    scorer = kind.identity(task, settings)
    with kind.answers(task, settings, rows, run) as problems:
        size = problems_per_step(settings.num_samples)
        batches = [problems.ids[i : i + size] for i in range(0, len(problems.ids), size)]
        for step in run.steps(len(batches)):
            try:
                samples = problems.answer(batches[step - 1])
            except Interrupted:
                run.save(step - 1, lambda: ({}, {}))
                raise
            run.log(step, progress(samples), rollouts=[sample.row() for sample in samples])
            run.save(step, lambda: ({}, {}))
    found = _read_samples(run.path, len(batches))
    given = task.kind in GIVEN
    summary = {
        "task": task.name,
        "task_version": task.version,
        "source": data.source,
        "kind": task.kind,
        "grader_version": GRADER_VERSION if task.kind == "mathematics" else None,
        "strict_profile": used_profile(task, settings),
        "scorer": scorer,
        **summarise(found),
        **kind.summarise(found),
        **({} if settings.reference is None or given else summarise_distance(found, settings.sampling)),
        "reference": settings.reference,
        "dropped_rows": problems.dropped,
        "scores": scores_of(task, settings),
        "sampling": {} if given else settings.sampling.model_dump(mode="json"),
        "seed": settings.seed,
        "num_fewshot": data.num_fewshot,
        "template_hash": _template_hash(rows, data, problems.chat_template),
        "data_fingerprint": _hash(sorted({f"{row['problem_id']}:{row['gold']}" for row in found})),
    }

    def write(directory: Path) -> None:
        write_rollouts(directory / SAMPLES_FILE, found)
        durable.write_json(directory / SUMMARY_FILE, summary)

    run.publish_artifact(write)
    subsets = summary["subsets"] | summary.get("instructions", {}).get("subsets", {})
    lines = [*judging_lines(summary), *distance_lines(summary), *subset_lines(subsets)]
    run.event("evaluated", "\n".join([kind.headline(summary), *lines]))
    run.finish(summary)


def problems_per_step(num_samples: int) -> int:
    """Return how many problems are answered, and kept, at a time."""
    return max(1, SAMPLES_PER_STEP // num_samples)


def progress(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the numbers of one batch for the display; NaN where nothing has a score."""
    scores = [sample.score for sample in samples if sample.score is not None]
    return {
        "eval/score": float(np.mean(scores)) if scores else float("nan"),
        "completions/mean_length": float(np.mean([sample.num_tokens for sample in samples])),
    }


def _read_samples(directory: Path, steps: int) -> list[Row]:
    files = [directory / "rollouts" / f"step-{step:08d}.parquet" for step in range(1, steps + 1)]
    return [row for file in files for row in read_rollouts(file)]


def _template_hash(rows: Sequence[DataRow], data: DataSettings, chat_template: object) -> str:
    """What decides how a question is put: the style, the chat template where prompts are messages, and the examples.

    With examples the prompts themselves are hashed, since each begins with its own.
    """
    conversational = any(not isinstance(row.prompt, str) for row in rows)
    shown = [str(row.prompt) for row in rows] if data.num_fewshot else []
    return _hash([str(used_style(data)), str(chat_template) if conversational else "", *shown])


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]
