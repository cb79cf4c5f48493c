"""What decides the scores that rewards give: names, weights, options, and the content of models and files.

Floor 3. Two evaluations whose scores come of different identities are not compared.
"""

import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from posttrain.models.files import locate
from posttrain.rewards import GOLD_REWARDS, JUDGE, REWARD_MODEL
from posttrain.rewards.math_answers import GRADER_VERSION
from posttrain.rewards.user_files import public_functions
from posttrain.runs.artifact import MANIFEST
from posttrain.runs.durable import hash_file
from posttrain.settings import RewardOptions, ScoredStageSettings

JUDGE_DECIDES = ("model", "mode", "rubric", "max_score", "max_tokens")  # its other options decide cost and time
HASH_CHARACTERS = 16


def reward_identity(settings: ScoredStageSettings) -> dict[str, Any]:
    """Return what decides the weighted rewards of a stage, as flat JSON; what is only watched is not in it.

    Of options it holds those that differ from the defaults, of the judge what it is asked, of a reward model and a
    reward file a hash of their content; a reward model on the Hub goes by its name.
    """
    gate = settings.reward_gate
    counted = {name: weight for name, weight in settings.rewards.items() if weight != 0 or name == gate}
    return {
        **{f"rewards.{name}": weight for name, weight in counted.items()},
        "combination": settings.reward_combination if gate is None else f"{settings.reward_combination} by {gate}",
        **{key: value for name in counted for key, value in _options(settings.reward_options, name)},
        **_contents(settings, counted),
        **({"grader_version": GRADER_VERSION} if GOLD_REWARDS & counted.keys() else {}),
    }


def _options(options: RewardOptions, name: str) -> Iterator[tuple[str, Any]]:
    if name not in RewardOptions.model_fields:
        return
    own = getattr(options, name)
    asked = own.model_dump(mode="json", include=set(JUDGE_DECIDES)) if name == JUDGE else {}
    for key, value in (asked or own.model_dump(mode="json", exclude_defaults=True)).items():
        yield f"{name}.{key}", value


def _contents(settings: ScoredStageSettings, names: Collection[str]) -> dict[str, str]:
    """Return the hashes of the reward model and the reward file, as far as one of the names is theirs."""
    found = {}
    if REWARD_MODEL in names and settings.reward_model is not None:
        directory = locate(settings.reward_model)
        found["reward_model"] = settings.reward_model if directory is None else _content(directory)
    if settings.reward_file is not None and {*public_functions(settings.reward_file)} & {*names}:
        found["reward_file"] = hash_file(Path(settings.reward_file)).sha256[:HASH_CHARACTERS]
    return found


def _content(directory: Path) -> str:
    """Return the seal of an artifact; of a directory without one, a hash of the names and contents of its files."""
    if (directory / MANIFEST).is_file():
        return str(json.loads((directory / MANIFEST).read_bytes())["sha256"])[:HASH_CHARACTERS]
    files = sorted(path for path in directory.iterdir() if path.is_file())
    content = "\n".join(f"{path.name} {hash_file(path).sha256}" for path in files)
    return hashlib.sha256(content.encode()).hexdigest()[:HASH_CHARACTERS]
