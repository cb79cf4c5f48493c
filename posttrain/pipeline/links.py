"""What a stage reads of earlier ones: the setting that names the stage, and the one that its artifact fills.

Floor 6: names and settings alone; whether the stages exist and make the right thing is `recipe.py`'s to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.data.named import SOURCES
from posttrain.models.files import is_path
from posttrain.pipeline.stages import Product
from posttrain.settings import (
    CompareSettings,
    DpoSettings,
    PairsSettings,
    RmSettings,
    ScoredStageSettings,
    StageSettings,
)

FILLED = {"init_from": "model.name_or_path", "reward_model": "reward_model", "data.source": "data.source"}


@dataclass(frozen=True, slots=True)
class Link:
    """One earlier stage that a stage reads."""

    key: str  # the setting that names it, as the recipe writes it
    stage: str
    wanted: Product

    @property
    def fills(self) -> str | None:
        """The setting that gets the path of the artifact; None where the stage finds the other by itself."""
        return FILLED.get(self.key)


def find_links(settings: StageSettings, init_from: str | None, stage_names: Sequence[str]) -> tuple[Link, ...]:
    """Return the links of a stage among the stages of its recipe; a name that no stage has may be a link too."""
    links = [] if init_from is None else [Link("init_from", init_from, "model")]
    match settings:
        case ScoredStageSettings(reward_model=str(name)) if name in stage_names or not ("/" in name or is_path(name)):
            links.append(Link("reward_model", name, "reward_model"))
        case RmSettings() | DpoSettings() if settings.data.source in {*stage_names} - {*SOURCES}:
            links.append(Link("data.source", settings.data.source, "pairs"))
        case PairsSettings():
            links.append(Link("completions", settings.completions, "completions"))
        case CompareSettings():
            links.extend(Link("models", name, "evaluation") for name in settings.models)
    return tuple(links)
