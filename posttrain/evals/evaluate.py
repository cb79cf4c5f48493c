"""Sample a task's problems and judge the answers.

Floor 4. A flat loop over batches of problems, each kept, so that an evaluation resumes after the last one. What a kind
of task makes of an answer is in `mathematics.py` and `scored.py`.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.data.chat import drop_overlong, render_prompt
from posttrain.data.rows import Row as DataRow
from posttrain.data.sources import load_rows, require_kind
from posttrain.engines import ENGINES, Interrupted
from posttrain.evals import mathematics, scored
from posttrain.evals.checks import check_judge_calls, check_settings
from posttrain.evals.samples import Row, Sample, summarise
from posttrain.evals.tasks import Task, evaluated_task, find_task, prompt_style, strict_profile, task_data
from posttrain.models.lm import load_model
from posttrain.records import Completion, Prompt
from posttrain.rewards.extraction import Profile
from posttrain.rewards.functions import combination_of
from posttrain.rewards.math_answers import GRADER_VERSION
from posttrain.rewards.requirements import require_columns
from posttrain.rewards.scoring import RewardFunction, require_gold, score
from posttrain.rewards.stage_rewards import reward_functions
from posttrain.runs import durable
from posttrain.runs.directory import StageRun
from posttrain.runs.rollout_files import read_rollouts, write_rollouts
from posttrain.seeds import derive_seed
from posttrain.settings import DataSettings, EvalSettings

PROBLEMS_PER_STEP = 256  # what an interruption can lose
SCORER_TOKENS = 4096  # that a reward model reads at a time
SAMPLES_FILE, SUMMARY_FILE = "samples.parquet", "summary.json"


def evaluate(settings: EvalSettings, run: StageRun) -> None:
    """Evaluate a model and publish samples.parquet and summary.json as the run's artifact."""
    check_settings(settings)
    data = task_data(find_task(settings.task), settings.data)
    task = evaluated_task(find_task(settings.task), data)
    profile = (settings.strict_profile or strict_profile(data)) if task.kind == "mathematics" else None
    rows = load_rows(data, seed=settings.seed)
    require_kind(rows, ("prompt", "prompt_completion", "preference"), "eval")
    rewards = scores_of(task, settings)
    if task.kind == "mathematics":
        require_gold(rows)
    require_columns(rows, rewards)
    check_judge_calls(settings, len(rows))
    scorer = scored.score_identity(task, settings) if task.kind == "scored" else None
    answers = scored.reference_texts(rows) if settings.score_reference else {}
    with reward_functions(settings, rows, run, max_tokens=SCORER_TOKENS, allow_weak=True) as functions:
        loaded = load_model(settings.model, seed=settings.seed, trainable=False)
        prompts, dropped = drop_overlong(
            rows,
            lambda row: render_prompt(row, loaded.tokenizer),
            max_length=data.max_length,
            reserve=settings.sampling.max_completion_length,
        )
        references = {row_id: scored.as_completion(text, loaded.tokenizer) for row_id, text in answers.items()}
        ids = list(prompts)
        batches = [ids[i : i + PROBLEMS_PER_STEP] for i in range(0, len(ids), PROBLEMS_PER_STEP)]
        engine = ENGINES[settings.engine.name](loaded, settings.engine, lambda: run.stop_requested)
        for step in run.steps(len(batches)):
            batch = [prompts[row_id] for row_id in batches[step - 1]]
            try:
                with run.phase("generate"):
                    completions = engine.generate(
                        batch, settings.sampling, num_samples=settings.num_samples, seeds=sample_seeds(settings, batch)
                    )
                with run.phase("score"):
                    samples = list(judge(batch, completions, task, settings, functions, profile, references))
            except Interrupted:
                run.save(step - 1, lambda: ({}, {}))
                raise
            run.log(step, progress(samples), rollouts=[sample.row() for sample in samples])
            run.save(step, lambda: ({}, {}))
        engine.close()
    found = _read_samples(run.path, len(batches))
    summary = {
        "task": task.name,
        "task_version": task.version,
        "kind": task.kind,
        "grader_version": GRADER_VERSION if task.kind == "mathematics" else None,
        "strict_profile": profile,
        **summarise(found),
        "scorer": scorer,
        **(mathematics.summarise_grades(found) if task.kind == "mathematics" else scored.summarise_scores(found)),
        "dropped_rows": len(dropped),
        "scores": rewards,
        "sampling": settings.sampling.model_dump(mode="json"),
        "seed": settings.seed,
        "template_hash": _template_hash(rows, data, loaded.tokenizer.chat_template),
        "data_fingerprint": _hash(sorted({f"{row['problem_id']}:{row['gold']}" for row in found})),
    }

    def write(directory: Path) -> None:
        write_rollouts(directory / SAMPLES_FILE, found)
        durable.write_json(directory / SUMMARY_FILE, summary)

    run.publish_artifact(write)
    run.event("evaluated", headline(summary))
    run.finish(summary)


def scores_of(task: Task, settings: EvalSettings) -> dict[str, float]:
    """Return the rewards that score each completion, with their weights; the task's own, if unnamed, is watched."""
    return settings.rewards if task.score is None else {task.score: 0.0} | settings.rewards


def sample_seeds(settings: EvalSettings, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the seeds of the samples of each prompt: they depend on the run seed, the problem and the index alone."""
    return [
        [derive_seed(settings.seed, "eval", prompt.id, sample) for sample in range(settings.num_samples)]
        for prompt in prompts
    ]


def judge(
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    task: Task,
    settings: EvalSettings,
    functions: Mapping[str, RewardFunction],
    profile: Profile | None,
    references: Mapping[str, Completion],
) -> Iterator[Sample]:
    """Yield every completion with what the task and the rewards make of it."""
    rewards = scores_of(task, settings)
    if profile is None:
        yield from scored.score_samples(prompts, completions, task, settings, rewards, functions, references)
        return
    parts = iter(score(prompts, completions, rewards, functions, combination_of(settings)) if rewards else ())
    for prompt, group in zip(prompts, completions, strict=True):
        for index, completion in enumerate(group):
            yield mathematics.grade_sample(prompt, index, completion, profile, next(parts, None))


def progress(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the numbers of one batch for the display; NaN where nothing has a score."""
    scores = [sample.score for sample in samples if sample.score is not None]
    return {
        "eval/score": float(np.mean(scores)) if scores else float("nan"),
        "completions/mean_length": float(np.mean([sample.num_tokens for sample in samples])),
    }


def headline(summary: Mapping[str, Any]) -> str:
    """Return the result in one line."""
    return (mathematics if summary["kind"] == "mathematics" else scored).headline(summary)


def _read_samples(directory: Path, steps: int) -> list[Row]:
    files = [directory / "rollouts" / f"step-{step:08d}.parquet" for step in range(1, steps + 1)]
    return [row for file in files for row in read_rollouts(file)]


def _template_hash(rows: Sequence[DataRow], data: DataSettings, chat_template: object) -> str:
    """What decides how a question is put: the prompt style, and the chat template where prompts are messages."""
    conversational = any(not isinstance(row.prompt, str) for row in rows)
    return _hash([str(prompt_style(data)), str(chat_template) if conversational else ""])


def _hash(parts: Sequence[str]) -> str:
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]
