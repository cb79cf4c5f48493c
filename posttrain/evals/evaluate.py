"""Sample a task's problems and grade the answers, strictly and leniently side by side.

Floor 4. The core (`evaluate_model`, `grade_samples`, `summarise`) knows no run directory, so training stages use it
too; `evaluate` is the stage, which keeps every batch of problems and resumes after the last one.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.data.chat import drop_overlong, render_prompt
from posttrain.data.rows import Row
from posttrain.data.sources import load_rows, require_kind
from posttrain.engines import ENGINES, Engine, Interrupted
from posttrain.errors import DataError
from posttrain.evals.stats import accuracy_interval, pass_at_k
from posttrain.evals.tasks import (
    check_settings,
    evaluated_task,
    find_task,
    prompt_style,
    strict_profile,
    task_data,
)
from posttrain.models.lm import load_model
from posttrain.records import Completion, Prompt, StopReason
from posttrain.rewards.extraction import Profile
from posttrain.rewards.math_answers import GRADER_VERSION, LENIENT, Grade, Verdict, gold_error, grade
from posttrain.rewards.scoring import gold_answer, require_gold
from posttrain.runs import durable
from posttrain.runs.directory import StageRun
from posttrain.runs.rollout_files import read_rollouts, write_rollouts
from posttrain.seeds import derive_seed
from posttrain.settings import DataSettings, EvalSettings, SamplingSettings

PROBLEMS_PER_STEP = 256  # what an interruption can lose
SAMPLES_FILE, SUMMARY_FILE = "samples.parquet", "summary.json"


class Category(StrEnum):
    """What became of a sample, under strict grading; exactly one applies."""

    CORRECT = "correct"
    WRONG_ANSWER = "wrong_answer"
    FORMAT_FAILURE = "format_failure"  # no answer in the required form
    TRUNCATED = "truncated"  # the token limit came first
    COULD_NOT_GRADE = "could_not_grade"  # the grader gave up on the answer, or the gold is unusable


@dataclass(frozen=True, slots=True)
class Sample:
    """One graded completion; `strict` and `lenient` are None where the gold is unusable."""

    problem_id: str
    sample: int
    prompt: str
    gold: str
    completion: str
    num_tokens: int
    stop_reason: str
    category: str
    strict: bool | None
    lenient: bool | None
    extracted: str | None  # under strict grading
    rule: str | None  # that found the lenient answer
    reason: str  # why strict grading did not find it right


def evaluate(settings: EvalSettings, run: StageRun) -> None:
    """Evaluate a model and publish samples.parquet and summary.json as the run's artifact."""
    check_settings(settings)
    data = task_data(find_task(settings.task), settings.data)
    task = evaluated_task(find_task(settings.task), data)
    profile = settings.strict_profile or strict_profile(data)
    rows = load_rows(data, seed=settings.seed)
    require_kind(rows, ("prompt", "prompt_completion"), "eval")
    require_gold(rows)
    loaded = load_model(settings.model, seed=settings.seed, trainable=False)
    prompts, dropped = drop_overlong(
        rows,
        lambda row: render_prompt(row, loaded.tokenizer),
        max_length=data.max_length,
        reserve=settings.sampling.max_completion_length,
    )
    ids = list(prompts)
    batches = [ids[i : i + PROBLEMS_PER_STEP] for i in range(0, len(ids), PROBLEMS_PER_STEP)]
    engine = ENGINES[settings.engine.name](loaded, settings.engine, lambda: run.stop_requested)
    for step in run.steps(len(batches)):
        with run.phase("generate"):
            try:
                samples = evaluate_model(
                    engine,
                    [prompts[row_id] for row_id in batches[step - 1]],
                    profile=profile,
                    sampling=settings.sampling,
                    num_samples=settings.num_samples,
                    seed=settings.seed,
                )
            except Interrupted:
                run.save(step - 1, lambda: ({}, {}))
                raise
        run.log(step, progress(samples), rollouts=[asdict(sample) for sample in samples])
        run.save(step, lambda: ({}, {}))
    engine.close()
    samples = _read_samples(run.path, len(batches))
    summary = {
        "task": task.name,
        "task_version": task.version,
        "grader_version": GRADER_VERSION,
        "strict_profile": profile,
        **summarise(samples),
        "dropped_rows": len(dropped),
        "sampling": settings.sampling.model_dump(mode="json"),
        "seed": settings.seed,
        "template_hash": _template_hash(rows, data, loaded.tokenizer.chat_template),
        "data_fingerprint": _hash(sorted(f"{sample.problem_id}:{sample.gold}" for sample in samples)),
    }

    def write(directory: Path) -> None:
        write_rollouts(directory / SAMPLES_FILE, [asdict(sample) for sample in samples])
        durable.write_json(directory / SUMMARY_FILE, summary)

    run.publish_artifact(write)
    run.event("evaluated", headline(summary))
    run.finish(summary)


def evaluate_model(
    engine: Engine,
    prompts: Sequence[Prompt],
    *,
    profile: Profile,
    sampling: SamplingSettings,
    num_samples: int,
    seed: int,
) -> list[Sample]:
    """Sample and grade completions; a sample's seed depends on `seed`, its problem and its index alone."""
    seeds = [[derive_seed(seed, "eval", prompt.id, sample) for sample in range(num_samples)] for prompt in prompts]
    completions = engine.generate(prompts, sampling, num_samples=num_samples, seeds=seeds)
    return grade_samples(prompts, completions, profile=profile)


def grade_samples(
    prompts: Sequence[Prompt], completions: Sequence[Sequence[Completion]], *, profile: Profile
) -> list[Sample]:
    """Grade every completion of every prompt; each prompt has a gold column (`require_gold`)."""
    return [
        _grade_sample(prompt, index, completion, profile)
        for prompt, group in zip(prompts, completions, strict=True)
        for index, completion in enumerate(group)
    ]


def _grade_sample(prompt: Prompt, index: int, completion: Completion, profile: Profile) -> Sample:
    gold = gold_answer(prompt.columns)
    assert gold is not None
    gradable = gold_error(gold) is None
    truncated = completion.stop_reason is StopReason.LENGTH
    strict = grade(completion.text, gold, profile=profile, truncated=truncated)
    lenient = grade(completion.text, gold, profile="lenient", truncated=truncated, policy=LENIENT)
    # A right answer in the strict form is right however else the lenient rules read the text.
    right = strict.verdict is Verdict.RIGHT
    return Sample(
        problem_id=prompt.id,
        sample=index,
        prompt=prompt.content if isinstance(prompt.content, str) else prompt.content[-1]["content"],
        gold=gold,
        completion=completion.text,
        num_tokens=len(completion.ids),
        stop_reason=str(completion.stop_reason),
        category=str(categorise(strict, truncated=truncated)),
        strict=right if gradable else None,
        lenient=(right or lenient.verdict is Verdict.RIGHT) if gradable else None,
        extracted=strict.extracted,
        rule=lenient.rule,
        reason="" if right else strict.reason,
    )


def categorise(strict: Grade, *, truncated: bool) -> Category:
    """Return the category of a strict grade; an answer given before the limit counts, right or wrong."""
    if strict.verdict is Verdict.COULD_NOT_GRADE:
        return Category.COULD_NOT_GRADE
    if strict.verdict is Verdict.RIGHT:
        return Category.CORRECT
    if strict.extracted is not None:
        return Category.WRONG_ANSWER
    return Category.TRUNCATED if truncated else Category.FORMAT_FAILURE


def summarise(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return accuracies with 95% intervals, category shares, pass@k for k = 1, 2, 4, ... and lengths.

    Problems without a usable gold are counted and left out of every other number. Raises DataError when none is left.
    """
    graded = [sample for sample in samples if sample.strict is not None]
    if not graded:
        raise DataError(f"none of the {len(samples)} samples has a usable gold answer")
    strict, lenient = _table(graded, "strict"), _table(graded, "lenient")
    problems, num_samples = strict.shape
    categories = Counter(sample.category for sample in graded)
    ks = [2**i for i in range(num_samples.bit_length()) if 2**i <= num_samples]
    return {
        "problems": problems,
        "num_samples": num_samples,
        "ungradable_problems": len({sample.problem_id for sample in samples if sample.strict is None}),
        "strict": _accuracy(strict),
        "lenient": _accuracy(lenient),
        "categories": {str(category): categories[category] / len(graded) for category in Category},
        "pass_at_k": {
            str(k): float(np.mean([pass_at_k(num_samples, int(c), k) for c in strict.sum(axis=1)])) for k in ks
        },
        "mean_length": float(np.mean([sample.num_tokens for sample in graded])),
        "clipped_ratio": float(np.mean([sample.stop_reason == StopReason.LENGTH for sample in graded])),
    }


def progress(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the numbers of one batch for the display; NaN where no gold is usable."""
    strict = [sample.strict for sample in samples if sample.strict is not None]
    return {
        "eval/accuracy": float(np.mean(strict)) if strict else float("nan"),
        "completions/mean_length": float(np.mean([sample.num_tokens for sample in samples])),
    }


def headline(summary: Mapping[str, Any]) -> str:
    """Return the result in one line."""
    strict, lenient = summary["strict"], summary["lenient"]
    return (
        f"{summary['task']}: {100 * strict['accuracy']:.1f}% right "
        f"(95% CI {100 * strict['low']:.1f} to {100 * strict['high']:.1f}), lenient {100 * lenient['accuracy']:.1f}%, "
        f"{summary['problems']} problems x {summary['num_samples']}"
    )


def by_problem(samples: Sequence[Mapping[str, Any]], column: str) -> dict[str, list[Any]]:
    """Return each problem's values of a column, in the order of its samples."""
    table: dict[str, list[Any]] = {}
    for sample in sorted(samples, key=lambda sample: (sample["problem_id"], sample["sample"])):
        table.setdefault(sample["problem_id"], []).append(sample[column])
    return table


def _table(samples: Sequence[Sample], column: str) -> np.ndarray:
    """The outcomes (P, n) as 0.0 and 1.0."""
    return np.array(list(by_problem([asdict(sample) for sample in samples], column).values()), dtype=float)


def _accuracy(correct: np.ndarray) -> dict[str, float]:
    interval = accuracy_interval(correct)
    return {"accuracy": float(correct.mean()), "low": interval.low, "high": interval.high}


def _read_samples(directory: Path, steps: int) -> list[Sample]:
    files = [directory / "rollouts" / f"step-{step:08d}.parquet" for step in range(1, steps + 1)]
    return [Sample(**row) for file in files for row in read_rollouts(file)]


def _template_hash(rows: Sequence[Row], data: DataSettings, chat_template: object) -> str:
    """What decides how a question is put: the prompt style, and the chat template where prompts are messages."""
    conversational = any(not isinstance(row.prompt, str) for row in rows)
    return _hash([str(prompt_style(data)), str(chat_template) if conversational else ""])


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]
