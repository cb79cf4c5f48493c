"""What can be wrong with an evaluation's settings as a whole, said before anything starts.

Floor 4: settings alone; a problem is the key that it hangs on and the error to raise.
"""

from collections.abc import Iterator

from posttrain.errors import ConfigError
from posttrain.evals.tasks import find_task, task_data
from posttrain.rewards.checks import reward_problems
from posttrain.settings import EvalSettings

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


def check_settings(settings: EvalSettings) -> None:
    """Raise the first problem."""
    for _, error in evaluation_problems(settings):
        raise error
