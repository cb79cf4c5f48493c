"""Prompts that the model completes: sampled by an engine, then graded or scored.

Floor 4. What a kind of task makes of a completion is in `mathematics.py` and `scored.py`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace

from posttrain.data.chat import drop_overlong, render_prompt
from posttrain.data.rows import Row as DataRow
from posttrain.engines import ENGINES
from posttrain.evals import mathematics, scored
from posttrain.evals.checks import check_judge_calls
from posttrain.evals.journal import JOURNAL, Journal, forget
from posttrain.evals.references import open_reference
from posttrain.evals.samples import Answers, Sample
from posttrain.evals.tasks import Task, used_profile
from posttrain.models.lm import load_model
from posttrain.records import Completion, Prompt
from posttrain.rewards.functions import combination_of
from posttrain.rewards.requirements import require_columns
from posttrain.rewards.scoring import RewardFunction, require_gold, score
from posttrain.rewards.stage_rewards import reward_functions
from posttrain.runs.directory import StageRun
from posttrain.seeds import derive_seed
from posttrain.settings import EvalSettings, ModelSettings, TaskSettings

SCORER_TOKENS = 4096  # that a reward model reads at a time


@contextmanager
def sampled_answers(task: Task, settings: EvalSettings, rows: Sequence[DataRow], run: StageRun) -> Iterator[Answers]:
    """Yield the prompts of a task, and what samples their completions and judges them.

    With a reference the samples have its columns too (`references.Distance`).
    """
    check_judge_calls(settings, len(rows))
    given = scored.reference_texts(rows) if settings.score_reference else {}
    named = None
    if settings.reference is not None:
        named = settings.model.model_copy(update={"name_or_path": settings.reference, "revision": None})
    with (
        task_rewards(task, settings, rows, run) as functions,
        model_answers(settings.model, named, task, settings, rows, functions, run, given) as answers,
    ):
        yield answers


def task_rewards(
    task: Task, settings: TaskSettings, rows: Sequence[DataRow], run: StageRun
) -> AbstractContextManager[Mapping[str, RewardFunction]]:
    """Return the context of the functions that score the completions; raises DataError for rows that lack columns."""
    if task.kind == "mathematics":
        require_gold(rows)
    require_columns(rows, scores_of(task, settings))
    return reward_functions(settings, rows, run, max_tokens=SCORER_TOKENS, allow_weak=True)


@contextmanager
def model_answers(
    model: ModelSettings,
    reference: ModelSettings | None,
    task: Task,
    settings: TaskSettings,
    rows: Sequence[DataRow],
    functions: Mapping[str, RewardFunction],
    run: StageRun,
    given: Mapping[str, str] | None = None,
) -> Iterator[Answers]:
    """Yield the prompts of a task, and what has one model complete them; the model of the settings is not looked at.

    `given` are the answers that came with the prompts, by the prompt's id, which are scored too.
    """
    loaded = load_model(model, seed=settings.seed, trainable=False)
    tokenizer = loaded.tokenizer
    prompts, dropped = drop_overlong(
        rows,
        lambda row: render_prompt(row, tokenizer),
        max_length=settings.data.max_length,
        reserve=settings.sampling.max_completion_length,
    )
    answered = {row_id: scored.as_completion(text, tokenizer) for row_id, text in (given or {}).items()}
    frozen = None if reference is None else open_reference(reference, loaded, model)
    engine = ENGINES[settings.engine.name](loaded, settings.engine, lambda: run.stop_requested)
    del loaded  # the engine has its own copy of the weights

    def answer(ids: Sequence[str]) -> list[Sample]:
        batch = [prompts[row_id] for row_id in ids]
        seeds = sample_seeds(settings, batch)
        with run.phase("generate"):
            done = Journal(run.path / JOURNAL, model.name_or_path, batch)
            completions = engine.generate(
                batch, settings.sampling, num_samples=settings.num_samples, seeds=seeds, done=done
            )
        with run.phase("score"):
            samples = list(judge(batch, completions, task, settings, functions, answered))
        if frozen is None:
            return samples
        with run.phase("reference"):
            distances = frozen.distances(batch, completions)
        return [
            replace(sample, further={**sample.further, **asdict(distance)})
            for sample, distance in zip(samples, distances, strict=True)
        ]

    yield Answers(list(prompts), len(dropped), tokenizer.chat_template, answer)
    engine.close()
    forget(run.path / JOURNAL)


def scores_of(task: Task, settings: TaskSettings) -> dict[str, float]:
    """Return the rewards that score each completion, with their weights; the task's own, if unnamed, is watched."""
    own = {task.score: 0.0} if task.kind == "scored" and task.score is not None else {}
    return own | settings.rewards


def sample_seeds(settings: TaskSettings, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the seeds of the samples of each prompt: they depend on the run seed, the problem and the index alone."""
    return [
        [derive_seed(settings.seed, "eval", prompt.id, sample) for sample in range(settings.num_samples)]
        for prompt in prompts
    ]


def judge(
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    task: Task,
    settings: TaskSettings,
    functions: Mapping[str, RewardFunction],
    references: Mapping[str, Completion],
) -> Iterator[Sample]:
    """Yield every completion with what the task and the rewards make of it; `references` are by the prompt's id."""
    rewards, profile = scores_of(task, settings), used_profile(task, settings)
    if profile is None:
        yield from scored.score_samples(prompts, completions, task, settings, rewards, functions, references)
        return
    parts = iter(score(prompts, completions, rewards, functions, combination_of(settings)) if rewards else ())
    for prompt, group in zip(prompts, completions, strict=True):
        for index, completion in enumerate(group):
            yield mathematics.grade_sample(prompt, index, completion, profile, next(parts, None))
