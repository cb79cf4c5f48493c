"""What can be wrong with an evaluation's settings as a whole, said before anything starts.

Floor 4: settings alone; a problem is the key that it hangs on and the error to raise.
"""

from collections.abc import Iterator

from posttrain.data.choices import CHOICE_STYLES
from posttrain.data.prompts import PROMPT_STYLES
from posttrain.errors import ConfigError
from posttrain.evals.tasks import GIVEN, Task, find_task, task_data
from posttrain.rewards import JUDGE
from posttrain.rewards.checks import group_problems, judge_problems, reward_problems
from posttrain.settings import EvalSettings, FrontierSettings, SamplingSettings, TaskSettings

Problem = tuple[str, ConfigError]  # dotted key, error


def evaluation_problems(settings: EvalSettings) -> Iterator[Problem]:
    """Yield rewards that cannot be, samples that would all be the same, and what the task has no use for or lacks."""
    yield from reward_problems(settings)
    yield from group_problems(settings, group=_group(settings), named="num_samples")
    if settings.num_samples > 1 and settings.sampling.temperature == 0:
        message = f"{settings.num_samples} samples of each problem at sampling.temperature = 0 are all the same"
        yield "num_samples", ConfigError(message, fix="--sampling.temperature 1.0")
    try:
        task = find_task(settings.task)
        task_data(task, settings.data)
    except ConfigError as error:
        yield "task", error
        return
    yield from style_problems(task, settings)
    if task.kind in GIVEN:
        yield from unsampled_problems(task, settings)
    if task.kind == "scored":
        yield from score_problems(task, settings)
    elif settings.score_reference:
        message = f"score_reference is for tasks that rewards score, which {task.name} is not"
        yield "score_reference", ConfigError(message, fix="--score_reference false")


def style_problems(task: Task, settings: TaskSettings) -> Iterator[Problem]:
    """Yield a prompt style of another kind of task."""
    wanted, others = list(PROMPT_STYLES), list(CHOICE_STYLES)
    if task.kind == "choices":
        wanted, others = others, wanted
    if settings.data.prompt_style in others:
        message = f"prompt style {settings.data.prompt_style} is not for task {task.name}; styles: {', '.join(wanted)}"
        yield "data.prompt_style", ConfigError(message, fix=f"--data.prompt_style {wanted[0]}")


def unsampled_problems(task: Task, settings: EvalSettings) -> Iterator[Problem]:
    """Yield the settings of sampled completions, which a task whose answers are given has none of."""
    names = ["sampling", "num_samples", "rewards", "strict_profile"]
    for name in [*names, "reference"] if task.kind == "choices" else names:
        if getattr(settings, name) != EvalSettings.model_fields[name].get_default():
            message = (
                f"{name} has no meaning for task {task.name}: its answers are compared by log-prob, none is sampled"
            )
            yield name, ConfigError(message, fix=f"remove {name}, or name another task: --task gsm8k")


def score_problems(task: Task, settings: EvalSettings) -> Iterator[Problem]:
    """Yield a task, or references, that no reward with a weight scores, and a comparison of a model with itself."""
    weighed = any(settings.rewards.values())
    fix = "--rewards.reward_model 1.0 --reward_model runs/rm/rm/artifact"
    if task.score is None and not weighed:
        yield "rewards", ConfigError(f"task {task.name} is scored by rewards, and none has a weight", fix=fix)
    if settings.score_reference and not weighed:
        message = "score_reference compares rewards, and none has a weight"
        yield "score_reference", ConfigError(message, fix=fix)
    if settings.rewards.get(JUDGE) and settings.reward_options.judge.mode == "pairwise":
        if not settings.score_reference:
            message = "a pairwise judge compares a model's samples with one another: their mean is a half for any model"
            fix = "--reward_options.judge.mode pointwise, or --score_reference true where answers come with the prompts"
            yield "reward_options.judge.mode", ConfigError(message, fix=fix)
        elif settings.num_samples > 1:
            message = "a pairwise judge compares one sample of each prompt with its reference"
            yield "num_samples", ConfigError(message, fix="--num_samples 1")


def check_judge_calls(settings: TaskSettings, problems: int) -> None:
    """Raise ConfigError where the judge's budget is too small for so many problems; the rows are read by then."""
    for _, error in judge_problems(settings, prompts=problems, group=_group(settings)):
        raise error


def _group(settings: TaskSettings) -> int:
    """Return how many completions of a prompt are scored together."""
    return settings.num_samples + (isinstance(settings, EvalSettings) and settings.score_reference)


def frontier_problems(settings: FrontierSettings) -> Iterator[Problem]:
    """Yield rewards that cannot be, a sampling that is not the policy's own, and a gold score that is none."""
    yield from reward_problems(settings)
    for name in ("temperature", "top_p", "top_k", "min_p"):
        found, wanted = getattr(settings.sampling, name), getattr(SamplingSettings(), name)
        if found != wanted:
            message = f"the KL is estimated by samples of the policy as it is, and sampling.{name} = {found}"
            yield f"sampling.{name}", ConfigError(message, fix=f"--sampling.{name} {wanted}")
    if settings.gold is not None and settings.gold not in settings.rewards:
        message = f"gold = {settings.gold} is none of the rewards: {', '.join(settings.rewards)}"
        yield "gold", ConfigError(message, fix=f"--rewards.{settings.gold} 0.0")
    try:
        task = find_task(settings.task)
        task_data(task, settings.data)
    except ConfigError as error:
        yield "task", error
        return
    yield from style_problems(task, settings)
    if task.kind in GIVEN:
        message = f"task {task.name} compares given answers by log-prob, and a frontier needs samples"
        yield "task", ConfigError(message, fix="--task gsm8k")
    if JUDGE in settings.rewards and settings.reward_options.judge.mode == "pairwise":
        message = "a pairwise judge compares a policy's samples with one another: their mean is a half for any policy"
        yield "reward_options.judge.mode", ConfigError(message, fix="--reward_options.judge.mode pointwise")
    if task.kind == "scored" and task.score is None and settings.gold is None:
        message = f"task {task.name} has no score but the rewards, and gold names none of them as the true one"
        yield "gold", ConfigError(message, fix=f"--gold {next(iter(settings.rewards), 'NAME')}")


def check_settings(settings: EvalSettings | FrontierSettings) -> None:
    """Raise the first problem."""
    problems = evaluation_problems(settings) if isinstance(settings, EvalSettings) else frontier_problems(settings)
    for _, error in problems:
        raise error
