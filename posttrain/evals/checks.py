"""What can be wrong with an evaluation's settings as a whole, said before anything starts.

Floor 4: settings alone; a problem is the key that it hangs on and the error to raise.
"""

from collections.abc import Iterator

from posttrain.errors import ConfigError
from posttrain.evals.distance import samples_itself
from posttrain.evals.tasks import find_task, task_data
from posttrain.rewards.checks import reward_problems
from posttrain.settings import EvalSettings, FrontierSettings, SamplingSettings

Problem = tuple[str, ConfigError]  # dotted key, error


def evaluation_problems(settings: EvalSettings) -> Iterator[Problem]:
    """Yield rewards that cannot be, samples that would all be the same, and a task that nothing scores."""
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
    if task.kind == "scored" and task.score is None and not any(settings.rewards.values()):
        message = f"task {task.name} is scored by rewards, and none has a weight"
        yield "rewards", ConfigError(message, fix="--rewards.reward_model 1.0 --reward_model runs/rm/rm/artifact")


def frontier_problems(settings: FrontierSettings) -> Iterator[Problem]:
    """Yield rewards that cannot be, a sampling that is not the policy's own, and a gold score that is none."""
    yield from reward_problems(settings)
    if not samples_itself(settings.sampling):
        message = "the KL is estimated by samples of the policy itself: at temperature 1, of the whole vocabulary"
        for name in ("temperature", "top_p", "top_k", "min_p"):
            wanted = getattr(SamplingSettings(), name)
            if (found := getattr(settings.sampling, name)) != wanted:
                error = ConfigError(f"{message}, and sampling.{name} = {found}", fix=f"--sampling.{name} {wanted}")
                yield f"sampling.{name}", error
    if settings.gold is not None and settings.gold not in settings.rewards:
        message = f"gold = {settings.gold} is none of the rewards: {', '.join(settings.rewards)}"
        yield "gold", ConfigError(message, fix=f"--rewards.{settings.gold} 0.0")
    try:
        task = find_task(settings.task)
        task_data(task, settings.data)
    except ConfigError as error:
        yield "task", error
        return
    if task.kind == "scored" and task.score is None and settings.gold is None:
        message = f"task {task.name} has no score but the rewards, and gold names none of them as the true one"
        yield "gold", ConfigError(message, fix=f"--gold {next(iter(settings.rewards), 'NAME')}")


def check_settings(settings: EvalSettings | FrontierSettings) -> None:
    """Raise the first problem."""
    problems = evaluation_problems(settings) if isinstance(settings, EvalSettings) else frontier_problems(settings)
    for _, error in problems:
        raise error
