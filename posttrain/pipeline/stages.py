"""The stages that a recipe can name: their settings, what they leave behind, and the function that runs them.

Floor 6: functions are imported when a stage starts, so that a recipe is read without torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from posttrain.settings import (
    CompareSettings,
    DpoSettings,
    EvalSettings,
    FrontierSettings,
    GrpoSettings,
    PairsSettings,
    PpoSettings,
    PretrainSettings,
    RmSettings,
    SftSettings,
    StageSettings,
)

if TYPE_CHECKING:
    from posttrain.runs.directory import StageRun

StageFunction = Callable[[Any, "StageRun"], None]
Product = Literal["model", "reward_model", "completions", "policies", "pairs", "evaluation", "frontier"]


@dataclass(frozen=True, slots=True)
class StageType:
    """A kind of stage; `load` imports and returns its function."""

    settings: type[StageSettings]
    produces: tuple[Product, ...]  # what others can read of it; nothing of one that only shows
    load: Callable[[], StageFunction]


def _pretrain() -> StageFunction:
    from posttrain.stages.pretrain import pretrain

    return pretrain


def _sft() -> StageFunction:
    from posttrain.stages.sft import sft

    return sft


def _rm() -> StageFunction:
    from posttrain.stages.rm import rm

    return rm


def _dpo() -> StageFunction:
    from posttrain.stages.dpo import dpo

    return dpo


def _grpo() -> StageFunction:
    from posttrain.stages.grpo import grpo

    return grpo


def _ppo() -> StageFunction:
    from posttrain.stages.ppo import ppo

    return ppo


def _evaluate() -> StageFunction:
    from posttrain.evals.evaluate import evaluate

    return evaluate


def _frontier() -> StageFunction:
    from posttrain.stages.frontier import frontier_stage

    return frontier_stage


def _pairs() -> StageFunction:
    from posttrain.stages.pairs import pairs

    return pairs


def _compare() -> StageFunction:
    from posttrain.reports.comparison import compare_stage

    return compare_stage


STAGE_TYPES: dict[str, StageType] = {
    "pretrain": StageType(PretrainSettings, ("model",), _pretrain),
    "sft": StageType(SftSettings, ("model", "policies"), _sft),
    "rm": StageType(RmSettings, ("reward_model",), _rm),
    "dpo": StageType(DpoSettings, ("model", "policies"), _dpo),
    "grpo": StageType(GrpoSettings, ("model", "completions", "policies"), _grpo),
    "ppo": StageType(PpoSettings, ("model", "completions", "policies"), _ppo),
    "eval": StageType(EvalSettings, ("evaluation", "completions"), _evaluate),
    "frontier": StageType(FrontierSettings, ("frontier",), _frontier),
    "pairs": StageType(PairsSettings, ("pairs",), _pairs),
    "compare": StageType(CompareSettings, (), _compare),
}
