"""The reward functions of a stage, ready to be called: built-in ones with their options, processes, and the judge.

Floor 3. What a reward model scores is added by who loads it (`learned.py`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.rewards import JUDGE, OPTION_REWARDS, REWARDS, WORKER_REWARDS
from posttrain.rewards.combination import Combination
from posttrain.rewards.failures import Tell, Tolerant
from posttrain.rewards.judge import Judge
from posttrain.rewards.scoring import RewardFunction
from posttrain.rewards.user_files import public_functions
from posttrain.rewards.workers import WorkerReward
from posttrain.settings import RewardOptions, RewardSettings

LIMITED = ("length_band", "cosine_length", "soft_overlong")  # None as max_length is that of the completions


@contextmanager
def open_rewards(
    settings: RewardSettings,
    *,
    max_completion_length: int,
    tell: Tell,
    stopping: Callable[[], bool] = lambda: False,
    rehearsal: Mapping[str, list[Any]] | None = None,
    journal: Path | None = None,
) -> Iterator[dict[str, RewardFunction]]:
    """Yield the functions that `settings.rewards` can name; processes end with the context.

    What can fail is tried on the arguments of `rehearsal`, and raises RewardError at once. `journal` is the file where
    the judge's verdicts are kept; None keeps them in memory.
    """
    functions = built_in_rewards(settings.reward_options, max_completion_length)
    ours = dict(functions)
    fallible: dict[str, RewardFunction] = {}
    with ExitStack() as stack:
        offered = public_functions(settings.reward_file) if settings.reward_file else []
        for name in settings.rewards:
            if name in offered or name in WORKER_REWARDS:
                options = None if name in offered else getattr(settings.reward_options, name).model_dump()
                file = settings.reward_file if name in offered else None
                worker = WorkerReward(name, file, settings.reward_workers, options=options, stopping=stopping)
                fallible[name] = stack.enter_context(worker)
                if name in offered:
                    tell("reward", worker.taken_for)
        if JUDGE in settings.rewards:
            fallible[JUDGE] = Judge(settings.reward_options.judge, journal=journal, stopping=stopping)
        for name, function in fallible.items():
            tolerant = Tolerant(name, function, tell)
            if rehearsal is not None:
                tolerant.rehearse(rehearsal)
            ours[name] = tolerant
        yield ours


def built_in_rewards(options: RewardOptions, max_completion_length: int) -> dict[str, RewardFunction]:
    """Return the built-in functions, each with its options."""
    functions: dict[str, RewardFunction] = dict(REWARDS)
    for name, function in OPTION_REWARDS.items():
        own = getattr(options, name)
        if name in LIMITED and own.max_length is None:
            own = own.model_copy(update={"max_length": max_completion_length})
        functions[name] = partial(function, own)
    return functions


def combination_of(settings: RewardSettings) -> Combination:
    """Return how the parts become one reward."""
    return Combination(settings.reward_combination, settings.reward_gate)
