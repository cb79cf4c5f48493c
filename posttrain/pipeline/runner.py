"""Run a recipe: one flat loop over its stages, each in its own directory under RUNS_DIR/NAME.

Floor 6: knows stage directories and stage functions. The same command again continues where the last one ended:
finished stages are skipped, and the stage that was interrupted resumes from its checkpoint.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from posttrain.config import fingerprint
from posttrain.errors import ConfigError
from posttrain.pipeline.recipe import Recipe, Stage, fed_by, frozen_settings
from posttrain.pipeline.stages import STAGE_TYPES
from posttrain.runs.artifact import MANIFEST
from posttrain.runs.directory import StageRun
from posttrain.runs.display import Display, make_display
from posttrain.runs.durable import hash_file
from posttrain.runs.identity import RUN
from posttrain.runs.signals import stop_on_signals
from posttrain.settings import ModelStageSettings, StageSettings


def run_recipe(
    recipe: Recipe, runs_dir: str | Path, *, overwrite: bool = False, display: Display | None = None
) -> Path:
    """Run the stages that are not finished, and return the run's directory.

    Raises ConfigError before any work where a stage's directory holds other settings; `overwrite` deletes those
    stages, and no other.
    """
    directory = Path(runs_dir) / recipe.name
    display = make_display() if display is None else display
    fingerprints = stage_fingerprints(recipe)
    changed = changed_stages(recipe, directory, fingerprints)
    if changed and not overwrite:
        _refuse(changed[0], directory, fingerprints[changed[0].name])
    with stop_on_signals():
        for stage in recipe.stages:
            with StageRun.open(
                directory / stage.name,
                settings=stage_settings(stage, directory),
                fingerprint=fingerprints[stage.name],
                display=display,
                overwrite=stage in changed,
            ) as run:
                if run.finished:
                    display.message(f"{recipe.name}/{stage.name} is finished")
                    continue
                run.check_stop()
                STAGE_TYPES[stage.type].load()(run.settings, run)
    return directory


def stage_settings(stage: Stage, directory: Path) -> StageSettings:
    """Return a stage's settings with the model of the stage that it starts from."""
    if stage.init_from is None or not isinstance(stage.settings, ModelStageSettings):
        return stage.settings
    model = stage.settings.model.model_copy(update={"name_or_path": str(directory / stage.init_from / "artifact")})
    return stage.settings.model_copy(update={"model": model})


def stage_fingerprints(recipe: Recipe) -> dict[str, str]:
    """Return each stage's fingerprint: of its settings, its local data, its starting model, and the stages before."""
    found: dict[str, str] = {}
    for stage in recipe.stages:
        upstream = {name: found[name] for name in fed_by(stage)}
        content = frozen_settings(stage) | {"upstream": upstream, "inputs": _input_hashes(stage)}
        found[stage.name] = fingerprint(content)
    return found


def _input_hashes(stage: Stage) -> dict[str, str]:
    """Return the sha256 of local data files, and of the artifact that a stage starts from by its path."""
    hashes: dict[str, str] = {}
    if data := getattr(stage.settings, "data", None):
        if data.path and Path(data.path).exists():
            hashes["data"] = _hash_files(Path(data.path))
        elif Path(data.source).is_file():
            hashes["data"] = _hash_files(Path(data.source))
    if stage.init_from is None and isinstance(stage.settings, ModelStageSettings):
        manifest = Path(stage.settings.model.name_or_path) / MANIFEST
        if manifest.is_file():
            hashes["model"] = hash_file(manifest).sha256
    if isinstance(stage.settings, ModelStageSettings):
        template = stage.settings.model.chat_template
        if template and Path(template).is_file():
            hashes["chat_template"] = hash_file(Path(template)).sha256
    return hashes


def _hash_files(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return hashlib.sha256("".join(hash_file(file).sha256 for file in files).encode()).hexdigest()


def changed_stages(recipe: Recipe, directory: Path, fingerprints: Mapping[str, str]) -> Sequence[Stage]:
    """Return the stages whose directory holds a run of another fingerprint."""
    return [
        stage
        for stage in recipe.stages
        if (found := _recorded(directory / stage.name)) is not None and found != fingerprints[stage.name]
    ]


def _recorded(path: Path) -> str | None:
    """Return the fingerprint of the run in a directory; None where there is no run."""
    try:
        return str(json.loads((path / RUN).read_bytes()).get("fingerprint"))
    except (OSError, ValueError, AttributeError):
        return None


def _refuse(stage: Stage, directory: Path, wanted: str) -> None:
    """Raise the directory's own account of what changed, with the ways out."""
    try:
        StageRun.open(directory / stage.name, settings=stage_settings(stage, directory), fingerprint=wanted).close()
    except ConfigError as error:
        raise ConfigError(
            f"{error.args[0]}; nothing was changed",
            fix=f"continue it: restore these settings. Keep it and start new: --name {directory.name}-2. "
            "Delete this stage and those that it feeds, and run them anew: --overwrite",
        ) from None
