"""Recipes of a few lines, written down and read."""

from pathlib import Path

import pytest

from posttrain.errors import ConfigError
from posttrain.pipeline.recipe import Recipe, load_recipe


def load(folder: Path, text: str, *overrides: str) -> Recipe:
    """Write a recipe to `r.toml` in the folder and load it."""
    (folder / "r.toml").write_text(text)
    return load_recipe(folder / "r.toml", overrides)


def problems(folder: Path, text: str, *overrides: str) -> str:
    """Return why such a recipe is refused, without the folder."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return str(caught.value).replace(f"{folder}/", "")
