"""Colours that everybody can tell apart and read, and drawings as files and as parts of a page."""

import math
import re
from collections.abc import Sequence
from itertools import combinations, product
from xml.etree import ElementTree

import numpy as np
import pytest

from posttrain.reports.style import DARK, FILE_MARGIN, LIGHT, Theme, contrast, inline_svg, model_looks, svg
from tests.reports.samples import HARD

THEMES = {"light": LIGHT, "dark": DARK}
FIGURES = HARD["ordinary"]
SIGHT = {  # simulations for linear RGB at full severity: Machado, Oliveira and Fernandes 2009, table 1
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_LMS = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
TO_LAB = [
    [0.2104542553, 0.793617785, -0.0040720468],
    [1.9779984951, -2.428592205, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.808675766],
]


def oklab(color: str, sight: Sequence) -> np.ndarray:
    """Return a colour as somebody sees it, in Oklab (Ottosson 2020), times 100."""
    channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(sight) @ linear, 0, 1)
    return 100 * np.array(TO_LAB) @ np.cbrt(np.array(TO_LMS) @ seen)


def nearest(colors: Sequence[str], sight: Sequence) -> float:
    return min(float(np.linalg.norm(oklab(a, sight) - oklab(b, sight))) for a, b in combinations(colors, 2))


@pytest.mark.parametrize(("theme", "sight"), product(THEMES, SIGHT))
def test_colours_of_one_kind_can_be_told_apart(theme: str, sight: str) -> None:
    for colors in (THEMES[theme].models, THEMES[theme].parts):
        assert nearest(colors, SIGHT[sight]) > 7  # 2 is the least that shows side by side


def test_the_distance_finds_colours_that_colour_blind_people_confuse() -> None:
    assert nearest(("#d7191c", "#1a9641"), SIGHT["normal"]) > 30
    assert nearest(("#c23b22", "#5d7d1e"), SIGHT["deuteranopia"]) < 7


@pytest.mark.parametrize("name", THEMES)
def test_text_and_shapes_stand_out_from_what_is_behind_them(name: str) -> None:
    theme = THEMES[name]
    text = (theme.ink, theme.muted, theme.accent, theme.better, theme.worse, theme.doubt, theme.warning)
    for color, ground in product(text, (theme.paper, theme.panel)):
        assert contrast(color, ground) >= 4.5, (color, ground)
    for color in theme.parts:  # bear text in the paper's colour
        assert contrast(color, theme.paper) >= 4.5, color
    for color in theme.models:
        assert contrast(color, theme.paper) >= 3, color


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#ffffff", "#767676") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("name", THEMES)
def test_each_colour_has_one_use(name: str) -> None:
    variables = THEMES[name].variables()
    assert len(set(variables.values())) == len(variables) == 10 + 8 + 6
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in variables.values())


def test_a_model_is_known_by_its_place_in_the_report() -> None:
    looks = model_looks(["base", "sft", "base", "grpo"], LIGHT)
    assert [look.color for look in looks.values()] == list(LIGHT.models[:3])
    many = model_looks([f"m{i}" for i in range(24)], LIGHT)
    assert len({(look.color, look.marker) for look in many.values()}) == 24


@pytest.mark.parametrize("name", FIGURES)
def test_a_stand_alone_svg_is_whole_and_asks_for_nothing(name: str) -> None:
    drawn = svg(FIGURES[name])
    root = ElementTree.fromstring(drawn)
    assert float(root.attrib["width"]) == 368 + 2 * FILE_MARGIN
    assert float(root.attrib["viewBox"].split()[3]) == float(root.attrib["height"])
    assert "var(" not in drawn
    assert not [link for link in re.findall(r'(?:href|src)="([^"]*)"', drawn) if not link.startswith("#")]
    assert not re.search(r"matplotlib|20\d\d-\d\d", drawn)


@pytest.mark.parametrize("name", FIGURES)
def test_an_inline_svg_takes_all_its_colours_from_the_page(name: str) -> None:
    drawn = inline_svg(FIGURES[name], name=name, alt='about "it" <b>')
    assert drawn.startswith('<svg role="img" aria-label=\'about "it" &lt;b&gt;\'')
    assert re.findall(r"#[0-9a-f]{6}\b(?![^<]*</text>)", re.sub(r'(href="|url\()#[^")]*', "", drawn)) == []
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", drawn)) <= set(LIGHT.variables())
    ids = re.findall(r' id="([^"]*)"', drawn)
    assert all(i.startswith(f"{name}-") for i in ids)
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', drawn)) == set(ids)


def test_a_drawing_can_have_the_dark_colours() -> None:
    drawn = svg(FIGURES["scores"], DARK)
    assert DARK.models[1] in drawn
    assert LIGHT.models[1] not in drawn
    assert isinstance(DARK, Theme)
    assert math.isclose(contrast(DARK.paper, DARK.paper), 1)
