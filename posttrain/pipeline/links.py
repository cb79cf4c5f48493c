"""What a stage reads of earlier ones: the setting that names the stage, and the one that its artifact fills.

Floor 6: names and settings alone; whether the stages exist and make the right thing is `recipe.py`'s to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from posttrain.data.named import SOURCES
from posttrain.models.files import is_path
from posttrain.pipeline.stages import Product
from posttrain.settings import (
    CompareSettings,
    DpoSettings,
    EvalSettings,
    FrontierSettings,
    PairsSettings,
    RmSettings,
    ScoredStageSettings,
    StageSettings,
)

FILLED = {
    "init_from": "model.name_or_path",
    "reward_model": "reward_model",
    "data.source": "data.source",
    "reference": "reference",
    "policies": "policies",
}


@dataclass(frozen=True, slots=True)
class Link:
    """One earlier stage that a stage reads."""

    key: str  # the setting that names it, as the recipe writes it
    stage: str
    wanted: Product

    @property
    def fills(self) -> str | None:
        """The setting that gets the path of what is read; None where the stage finds the other by itself."""
        return FILLED.get(self.key)

    def path(self, run: Path) -> Path:
        """Return the path of what is read in a run's directory: the stage's artifact; policies lie beside it."""
        return run / self.stage if self.wanted == "policies" else run / self.stage / "artifact"


def find_links(settings: StageSettings, init_from: str | None, stage_names: Sequence[str]) -> tuple[Link, ...]:
    """Return the links of a stage among the stages of its recipe; a name that no stage has may be a link too."""
    links = [] if init_from is None else [Link("init_from", init_from, "model")]

    def may_be_stage(name: str) -> bool:
        return name in stage_names or not (name == "nano" or "/" in name or is_path(name))

    match settings:
        case ScoredStageSettings(reward_model=str(name)) if may_be_stage(name):
            links.append(Link("reward_model", name, "reward_model"))
    match settings:
        case EvalSettings(reference=str(name)) if may_be_stage(name):
            links.append(Link("reference", name, "model"))
        case FrontierSettings(policies=name) if may_be_stage(name):
            links.append(Link("policies", name, "policies"))
        case RmSettings() | DpoSettings() if settings.data.source in {*stage_names} - {*SOURCES}:
            links.append(Link("data.source", settings.data.source, "pairs"))
        case PairsSettings():
            links.append(Link("completions", settings.completions, "completions"))
        case CompareSettings():
            links.extend(Link("models", name, "evaluation") for name in settings.models)
    return tuple(links)
