"""Everything that can be known to be wrong with a stage before it starts.

Floor 6: settings, names and the presence of files; loads neither torch nor rows nor models.
"""

from collections.abc import Container, Iterator

from posttrain.config import near_match
from posttrain.data.choices import CHOICE_STYLES
from posttrain.data.fewshot import example_settings
from posttrain.data.filters import check_languages
from posttrain.data.held_out import split_to_read
from posttrain.data.prompts import PROMPT_STYLES
from posttrain.data.sources import open_source
from posttrain.errors import ConfigError, DataError, PosttrainError
from posttrain.pipeline.inputs import data_files, data_of
from posttrain.settings import DataSettings, StageSettings
from posttrain.stages.checks import settings_problems


def stage_problems(settings: StageSettings, *, filled: Container[str] = ()) -> Iterator[tuple[str, PosttrainError]]:
    """Yield each problem with the dotted key that it hangs on; `filled` are the keys that earlier stages fill."""
    yield from settings_problems(settings)
    try:
        data = data_of(settings)
    except ConfigError as error:
        yield "task", error
    else:
        if data:
            yield from data_problems(data)
            yield from filled_source_problems(data) if "data.source" in filled else source_problems(data)


def data_problems(data: DataSettings) -> Iterator[tuple[str, PosttrainError]]:
    """Yield an unknown prompt style or language."""
    style = data.prompt_style
    styles = [*PROMPT_STYLES, *CHOICE_STYLES]
    if style is not None and style not in styles:
        near = near_match(style, styles, known=styles)
        yield "data.prompt_style", ConfigError(f"no prompt style {style}{near}")
    if data.filters.languages:
        try:
            check_languages(data.filters.languages)
        except ConfigError as error:
            yield "data.filters.languages", error


def filled_source_problems(data: DataSettings) -> Iterator[tuple[str, PosttrainError]]:
    """Yield what cannot be asked of rows that an earlier stage makes: another place, or a split that it does not."""
    if data.path is not None:
        yield "data.path", ConfigError(f"the rows come from the stage {data.source}; remove data.path")
    if data.split != "train" and not data.held_out:
        message = f'the rows of the stage {data.source} have one split, train, not "{data.split}"'
        yield "data.split", ConfigError(message, fix="--data.held_out 0.1")


def source_problems(data: DataSettings) -> Iterator[tuple[str, PosttrainError]]:
    """Yield an unknown source or split, one that lacks few-shot examples, and files that are not there."""
    try:
        split_to_read(data)
    except ConfigError as error:
        yield "data.held_out" if data.held_out else "data.split", error
        return
    try:
        if data.num_fewshot:
            example_settings(data)
    except ConfigError as error:
        yield "data.num_fewshot", error
        return
    try:
        open_source(data, seed=0)
        data_files(data)
    except (ConfigError, DataError) as error:
        yield "data.path" if data.path else "data.source", error
