"""Every setting a user can write, typed, documented and torch-free; a recipe or a flag can hold nothing else.

Floor 0. Names are Hugging Face's or TRL's where one exists for the same thing. Classes have no effects and no
fields computed at run time. The machinery (files, overrides, errors) is in `config.py`.
"""

from posttrain.settings.base import Settings
from posttrain.settings.parts import DataSettings, EngineSettings, FilterSettings, ModelSettings, SamplingSettings
from posttrain.settings.rewards import JudgeOptions, RewardOptions, RewardSettings, RewardWorkerSettings
from posttrain.settings.stages import (
    AdaptiveKlSettings,
    CompareSettings,
    CriticSettings,
    DpoSettings,
    EvalSettings,
    FrontierSettings,
    GrpoSettings,
    ModelStageSettings,
    OptimizedStageSettings,
    PairsSettings,
    PolicyStageSettings,
    PolicyTrainingSettings,
    PpoSettings,
    PretrainSettings,
    RmSettings,
    RowStageSettings,
    ScoredStageSettings,
    SftSettings,
    StageSettings,
    TaskSettings,
)

__all__ = [
    "AdaptiveKlSettings",
    "CompareSettings",
    "CriticSettings",
    "DataSettings",
    "DpoSettings",
    "EngineSettings",
    "EvalSettings",
    "FilterSettings",
    "FrontierSettings",
    "GrpoSettings",
    "JudgeOptions",
    "ModelSettings",
    "ModelStageSettings",
    "OptimizedStageSettings",
    "PairsSettings",
    "PolicyStageSettings",
    "PolicyTrainingSettings",
    "PpoSettings",
    "PretrainSettings",
    "RewardOptions",
    "RewardSettings",
    "RewardWorkerSettings",
    "RmSettings",
    "RowStageSettings",
    "SamplingSettings",
    "ScoredStageSettings",
    "Settings",
    "SftSettings",
    "StageSettings",
    "TaskSettings",
]
