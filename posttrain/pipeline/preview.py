"""What a recipe would do: every setting with its origin, and one rendered example of each stage; nothing is started.

Floor 6: reads rows and tokenizers; loads no model and writes no file.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.config import leaves_of
from posttrain.data.chat import describe, render_prompt, render_training_tree
from posttrain.data.pairs import render_preference
from posttrain.data.sources import load_rows
from posttrain.evals.tasks import ROW_KINDS, find_task
from posttrain.field_types import show
from posttrain.pipeline.inputs import data_of
from posttrain.pipeline.recipe import Recipe, Stage
from posttrain.pipeline.runner import stage_settings
from posttrain.settings import (
    DataSettings,
    DpoSettings,
    ModelStageSettings,
    PolicyStageSettings,
    RmSettings,
    RowStageSettings,
    StageSettings,
    TaskSettings,
)
from posttrain.stages.checks import row_kinds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from posttrain.data.rows import Kind, Row

PREVIEW_ROWS = 64  # read and checked; the first is shown
LINK_WORDS = {  # by the setting that names the stage
    "init_from": "from",
    "reward_model": "rewarded by",
    "reference": "measured against",
    "policies": "on the policies of",
    "data.source": "on the pairs of",
    "completions": "of the completions of",
}


def preview(recipe: Recipe, runs_dir: str | Path) -> Iterator[str]:
    """Yield the lines of a dry run; raises what the stages would raise about settings, rows and tokenizers."""
    directory = Path(runs_dir) / recipe.name
    for stage in recipe.stages:
        fed = "".join(f", {LINK_WORDS[link.key]} {link.stage}" for link in stage.links if link.key in LINK_WORDS)
        yield f"stage {stage.name} ({stage.type}{fed}) -> {directory / stage.name}"
        yield from _setting_lines(stage, directory)
        yield from _example_lines(recipe, stage, directory)
        yield ""


def _setting_lines(stage: Stage, directory: Path) -> Iterator[str]:
    settings = stage_settings(stage, directory)
    rows = []
    for key, value in leaves_of(dict(settings)):
        dotted = ".".join(key)
        rows.append((dotted, show(value), _origin(stage, dotted)))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        yield f"  {name:{widths[0]}}  {value:{min(widths[1], 24)}}  {origin}"


def _origin(stage: Stage, dotted: str) -> str:
    link = stage.filled.get(dotted)
    if link is None:
        return stage.origin_of(dotted)
    return f"{'policies' if link.wanted == 'policies' else 'artifact'} of {link.stage}"


def _example_lines(recipe: Recipe, stage: Stage, directory: Path) -> Iterator[str]:
    """Yield one example as the stage would see it; stages without rows have none."""
    settings = stage_settings(stage, directory)
    if not isinstance(settings, RowStageSettings | PolicyStageSettings | TaskSettings):
        return
    if (link := stage.filled.get("data.source")) and not (directory / link.stage / "artifact").is_dir():
        yield f"  its rows come from the stage {link.stage}, which has not run"
        return
    data = data_of(settings)
    assert data is not None
    kinds = _kinds_of(settings)
    rows = _some_rows(data, seed=settings.seed, kinds=kinds)
    yield f"  {len(rows)} rows read; the first, {rows[0].origin}:"
    tokenizer = _tokenizer(recipe, stage, directory)
    if tokenizer is None:
        yield f"  its tokenizer comes from the stage {stage.init_from}, which has not run"
    elif isinstance(settings, RowStageSettings):
        tree = render_preference(rows[0], tokenizer) if kinds else render_training_tree(rows[0], tokenizer)
        for line in describe(tree, tokenizer).splitlines():
            yield f"    {line}"
    else:
        yield from _prompt_lines(rows[0], tokenizer)


def _kinds_of(settings: StageSettings) -> "tuple[Kind, ...]":
    """Return the kinds of rows that the stage asks for where columns could mean several."""
    if isinstance(settings, TaskSettings):
        return ROW_KINDS[find_task(settings.task).kind]
    return row_kinds(settings) if isinstance(settings, RmSettings | DpoSettings) else ()


def _some_rows(data: DataSettings, *, seed: int, kinds: "tuple[Kind, ...]") -> "list[Row]":
    count = min(data.rows or PREVIEW_ROWS, PREVIEW_ROWS)
    return list(islice(load_rows(data.model_copy(update={"rows": count}), seed=seed, kinds=kinds), count))


def _prompt_lines(row: "Row", tokenizer: "PreTrainedTokenizerBase") -> Iterator[str]:
    """Yield the prompt as the model meets it, and the columns that the rewards or the task are given."""
    prompt = render_prompt(row, tokenizer)
    yield f"    prompt, {len(prompt.ids)} tokens:"
    for line in str(tokenizer.decode(list(prompt.ids))).splitlines():
        yield f"    | {line}"
    for name, value in prompt.columns.items():
        yield f"    column {name}: {value!r}"


def _tokenizer(recipe: Recipe, stage: Stage, directory: Path) -> "PreTrainedTokenizerBase | None":
    """Load the tokenizer that a stage would have: its own, or that of the stage it starts from."""
    from posttrain.models.lm import load_tokenizer

    upstream = {other.name: other for other in recipe.stages}
    while stage.init_from and not (directory / stage.init_from / "artifact").is_dir():
        stage = upstream[stage.init_from]
    settings = stage_settings(stage, directory)
    if stage.type == "pretrain" or not isinstance(settings, ModelStageSettings):
        return None
    return load_tokenizer(settings.model)
