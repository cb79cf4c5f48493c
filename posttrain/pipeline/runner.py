"""Run a recipe: one flat loop over its stages, each in its own directory under RUNS_DIR/NAME.

Floor 6: knows stage directories and stage functions. The same command again continues where the last one ended:
finished stages are skipped, and the stage that was interrupted resumes from its checkpoint.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import posttrain
from posttrain.config import fingerprint, with_value
from posttrain.errors import CheckpointError, ConfigError, PosttrainError, Stopped
from posttrain.pipeline.inputs import input_hashes
from posttrain.pipeline.recipe import Recipe, Stage, frozen_settings
from posttrain.pipeline.stages import STAGE_TYPES
from posttrain.runs.artifact import verify_artifact
from posttrain.runs.directory import RESULT, StageRun
from posttrain.runs.display import Display, make_display
from posttrain.runs.identity import recorded_fingerprint
from posttrain.runs.signals import stop_on_signals
from posttrain.settings import StageSettings


def run_recipe(
    recipe: Recipe, runs_dir: str | Path, *, overwrite: bool = False, display: Display | None = None
) -> Path:
    """Run the stages that are not finished, and return the run's directory.

    Raises ConfigError before any work where a stage's directory holds other settings, StorageError where the artifact
    of a finished stage is damaged. `overwrite` deletes the stages that hold other settings or no usable checkpoint,
    and no other.
    """
    directory = Path(runs_dir) / recipe.name
    display = make_display() if display is None else display
    fingerprints = stage_fingerprints(recipe)
    changed = changed_stages(recipe, directory, fingerprints)
    if changed and not overwrite:
        _refuse(changed[0], directory, fingerprints[changed[0].name])
    with stop_on_signals():
        for stage in recipe.stages:
            open_run = partial(
                StageRun.open,
                directory / stage.name,
                settings=stage_settings(stage, directory),
                fingerprint=fingerprints[stage.name],
                display=display,
            )
            try:
                _run_stage(stage, open_run(overwrite=stage in changed), display)
            except CheckpointError:
                if not overwrite:
                    raise
                _run_stage(stage, open_run(overwrite=True), display)
    return directory


def summary_of(stage: Path) -> dict[str, Any]:
    """Return what a finished stage says of itself, by its directory."""
    found: dict[str, Any] = json.loads((stage / RESULT).read_bytes())["summary"]
    return found


def _run_stage(stage: Stage, run: StageRun, display: Display) -> None:
    """Run a stage in its open directory, or say that it is finished once its artifact is found intact."""
    kind = STAGE_TYPES[stage.type]
    with run, _notices_kept(run):
        if run.finished:
            if kind.produces:
                verify_artifact(run.artifact)
            display.message(f"{run.path.parent.name}/{stage.name} is finished")
            if (run.path / "comparison.json").is_file():
                from posttrain.pipeline.evaluations import show_comparison

                show_comparison(run.path)
            return
        run.check_stop()
        try:
            kind.load()(run.settings, run)
        except Stopped:
            raise
        except PosttrainError as error:
            stage.name_in(error)
            raise


class _NoticeHandler(logging.Handler):
    """Makes events of warnings: what a stage left out is then shown once, and on record."""

    def __init__(self, run: StageRun) -> None:
        super().__init__(logging.WARNING)
        self._run = run

    def emit(self, record: logging.LogRecord) -> None:
        self._run.event("notice", record.getMessage())


@contextmanager
def _notices_kept(run: StageRun) -> Iterator[None]:
    logger, handler = logging.getLogger(posttrain.__name__), _NoticeHandler(run)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def stage_settings(stage: Stage, directory: Path) -> StageSettings:
    """Return a stage's settings with the paths of what it reads of earlier stages."""
    settings = stage.settings
    for key, link in stage.filled.items():
        settings = with_value(settings, key, str(link.path(directory)))
    return settings


def stage_fingerprints(recipe: Recipe) -> dict[str, str]:
    """Return each stage's fingerprint: of its settings, its local data, its starting model, and the stages before."""
    found: dict[str, str] = {}
    for stage in recipe.stages:
        upstream = {link.stage: found[link.stage] for link in stage.links}
        try:
            inputs = input_hashes(stage.settings, filled=stage.filled)
        except PosttrainError as error:
            stage.name_in(error)
            raise
        found[stage.name] = fingerprint(frozen_settings(stage) | {"upstream": upstream, "inputs": inputs})
    return found


def changed_stages(recipe: Recipe, directory: Path, fingerprints: Mapping[str, str]) -> Sequence[Stage]:
    """Return the stages whose directory holds a run of another fingerprint, or one that cannot be read."""
    return [
        stage
        for stage in recipe.stages
        if (found := recorded_fingerprint(directory / stage.name)) is not None and found != fingerprints[stage.name]
    ]


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
