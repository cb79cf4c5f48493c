"""The reward functions of a stage that scores completions of its model, its reward model among them.

Floor 3: opens them as the stage's settings say, and tells what they have to say as events of its run.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from posttrain.data.rows import Row
from posttrain.records import Completion, Prompt, StopReason
from posttrain.rewards import REWARD_MODEL
from posttrain.rewards.functions import open_rewards
from posttrain.rewards.learned import learned_reward, trust
from posttrain.rewards.scoring import RewardFunction, reward_arguments
from posttrain.runs.directory import StageRun
from posttrain.settings import ScoredStageSettings

JUDGE_JOURNAL = "judge.jsonl"  # in the run's directory: what the judge said, by content


@contextmanager
def reward_functions(
    settings: ScoredStageSettings, rows: Sequence[Row], run: StageRun, *, max_tokens: int, allow_weak: bool
) -> Iterator[Mapping[str, RewardFunction]]:
    """Yield the functions that rewards can name; processes of rewards end with the context.

    Those that can fail are tried on two made-up completions of the first row. What they and a reward model's own report
    have to say becomes events of the run; `max_tokens` is what the reward model reads at a time. Raises RewardError
    where that trial fails, ConfigError where the reward model is no better than chance, unless `allow_weak`.
    """
    with open_rewards(
        settings,
        max_completion_length=settings.sampling.max_completion_length,
        tell=run.event,
        stopping=lambda: run.stop_requested,
        rehearsal=_rehearsal(rows[0]),
        journal=run.path / JUDGE_JOURNAL,
    ) as functions:
        if settings.reward_model is not None:
            run.event(REWARD_MODEL, trust(settings.reward_model, allow_weak=allow_weak))
            functions[REWARD_MODEL] = learned_reward(settings.reward_model, settings.model, max_tokens=max_tokens)
        yield functions


def _rehearsal(row: Row) -> dict[str, list[Any]]:
    """Return a reward function's arguments for two made-up completions of a row's prompt."""
    assert row.prompt is not None
    prompt = Prompt(row.id, (0,), row.prompt, row.columns)
    made_up = [Completion((0,), (0.0,), StopReason.EOS, text) for text in ("42", "The answer is 42.")]
    return reward_arguments([prompt], [made_up])
