"""What can be wrong with an evaluation's settings as a whole, said before anything starts.

Floor 4: settings alone; a problem is the key that it hangs on and the error to raise.
"""

from collections.abc import Iterator

from posttrain.data.choices import CHOICE_STYLES
from posttrain.data.prompts import PROMPT_STYLES
from posttrain.errors import ConfigError
from posttrain.evals.tasks import Task, find_task, task_data
from posttrain.rewards.checks import reward_problems
from posttrain.settings import EvalSettings

Problem = tuple[str, ConfigError]  # dotted key, error


def evaluation_problems(settings: EvalSettings) -> Iterator[Problem]:
    """Yield rewards that cannot be, samples that would all be the same, and what the task has no use for or lacks."""
    yield from reward_problems(settings)
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
    if task.kind == "choices":
        yield from choice_problems(task, settings)
    if task.kind == "scored" and task.score is None and not any(settings.rewards.values()):
        message = f"task {task.name} is scored by rewards, and none has a weight"
        yield "rewards", ConfigError(message, fix="--rewards.reward_model 1.0 --reward_model runs/rm/rm/artifact")


def style_problems(task: Task, settings: EvalSettings) -> Iterator[Problem]:
    """Yield a prompt style of another kind of task."""
    wanted, others = list(PROMPT_STYLES), list(CHOICE_STYLES)
    if task.kind == "choices":
        wanted, others = others, wanted
    if settings.data.prompt_style in others:
        message = f"prompt style {settings.data.prompt_style} is not for task {task.name}; styles: {', '.join(wanted)}"
        yield "data.prompt_style", ConfigError(message, fix=f"--data.prompt_style {wanted[0]}")


def choice_problems(task: Task, settings: EvalSettings) -> Iterator[Problem]:
    """Yield the settings of sampled completions, which a task of choices has none of."""
    for name in ("sampling", "num_samples", "rewards", "strict_profile"):
        if getattr(settings, name) != EvalSettings.model_fields[name].get_default():
            message = (
                f"{name} has no meaning for task {task.name}: choices are compared by log-prob, nothing is sampled"
            )
            yield name, ConfigError(message, fix=f"remove {name}, or name another task: --task gsm8k")


def check_settings(settings: EvalSettings) -> None:
    """Raise the first problem."""
    for _, error in evaluation_problems(settings):
        raise error
