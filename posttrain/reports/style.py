"""How reports look: the colours of pages and figures, and a drawing as the bytes of a file.

Floor 5: knows matplotlib, no figure. One drawing serves light and dark pages: `inline_svg` puts CSS variables in the
place of the light colours. Nothing global of matplotlib is changed, and a user's matplotlibrc changes nothing here.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import IO, TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

PX_PER_INCH = 72  # one unit of an SVG by matplotlib is one CSS px, and a point of type is one too
PNG_SCALE = 2  # PNG pixels for each CSS px
FONT = "DejaVu Sans"  # comes with matplotlib, so that layout is the same everywhere; wider than what pages show
FONT_STACK = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p")
HACKING_HATCH = "////"
FILE_MARGIN = 12.0  # CSS px around a drawing that is a file of its own


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours as `#rrggbb`, each with one use; no two are equal, so that a colour names its use."""

    paper: str  # behind everything
    panel: str  # behind cards and code
    ink: str  # text and data without a colour of their own
    muted: str  # text of second rank
    grid: str  # lines behind data, borders
    accent: str  # links, and shares that belong to no model
    better: str
    worse: str
    doubt: str  # cannot tell
    warning: str  # suspected hacking
    models: tuple[str, ...]  # the baseline's first
    parts: tuple[str, ...]  # of a whole: outcomes, terms of a reward

    def variables(self) -> dict[str, str]:
        """Return each colour under the name of its CSS variable."""
        named = {f"--{field.name}": getattr(self, field.name) for field in fields(self)}
        for several in ("models", "parts"):
            colors = named.pop(f"--{several}")
            named |= {f"--{several}-{i}": color for i, color in enumerate(colors, 1)}
        return named


Draw = Callable[[Theme], "Drawing"]

LIGHT = Theme(
    paper="#ffffff",
    panel="#f5f6f8",
    ink="#1c2128",
    muted="#596270",
    grid="#dfe3e8",
    accent="#2f5fb3",
    better="#17703a",
    worse="#b3261e",
    doubt="#6b5a00",
    warning="#9c4a00",
    models=("#81878f", "#2955d3", "#d97a1f", "#175437", "#7a2391", "#4b121d", "#049bde", "#696b04"),
    parts=("#0f2f6e", "#8c3919", "#9a6d02", "#6f3aa0", "#6b7587", "#1d5d5d"),
)
DARK = Theme(
    paper="#14171c",
    panel="#1c2027",
    ink="#e4e8ee",
    muted="#9ba6b4",
    grid="#313842",
    accent="#8db4f5",
    better="#57c27e",
    worse="#ff8a80",
    doubt="#d8bf57",
    warning="#f5a25d",
    models=("#9299a2", "#5878c4", "#ec8208", "#6cf2b4", "#d881f3", "#b95453", "#99cfed", "#c3c37a"),
    parts=("#7bb6fe", "#e5703b", "#eec649", "#af6ec3", "#9b9fa5", "#a3e0ca"),
)


@dataclass(frozen=True, slots=True)
class Look:
    """What a model is known by in every figure of a report."""

    color: str
    marker: str


def model_looks(order: Iterable[str], theme: Theme) -> dict[str, Look]:
    """Return the look of each model by its place in `order`, repeated names counted once.

    Past the theme's last colour they begin again, with other markers than the first time.
    """
    names = list(dict.fromkeys(order))
    count = len(theme.models)
    return {
        name: Look(theme.models[i % count], MARKERS[(i + i // count) % len(MARKERS)]) for i, name in enumerate(names)
    }


def svg(draw: Draw, theme: Theme = LIGHT) -> str:
    """Return a drawing as a stand-alone SVG file in the theme's colours, the same text each time."""
    return _tidy(_svg_text(draw, theme, FILE_MARGIN))


def inline_svg(draw: Draw, *, name: str, alt: str) -> str:
    """Return a drawing as an SVG element of a page, in the page's CSS variables, its ids prefixed with `name`."""
    text = _tidy(_svg_text(draw, LIGHT, margin=0), prefix=f"{name}-")
    element = text[text.index("<svg") :]
    element = re.sub(r"<style.*?</style>", "", element, flags=re.DOTALL)  # left in, it would be the whole page's
    names = {color: name for name, color in LIGHT.variables().items()}

    def variable(color: re.Match) -> str:
        return f"var({names[color[0]]})" if color[0] in names else color[0]

    def with_variables(tag: str) -> str:
        tag = re.sub(r' xmlns(:xlink)?="[^"]*"| version="[^"]*"', "", tag)
        return re.sub(r"(?<=[ \"])#[0-9a-f]{6}\b", variable, tag)

    element = _in_tags(element, with_variables)
    return element.replace("<svg", f'<svg role="img" aria-label={quoteattr(alt)}', 1)


def png(draw: Draw, theme: Theme = LIGHT) -> bytes:
    """Return a drawing as a PNG file, `PNG_SCALE` pixels for each CSS px."""
    file = io.BytesIO()
    _save(draw, theme, FILE_MARGIN, file, format="png", metadata={"Software": None})
    return file.getvalue()


def _svg_text(draw: Draw, theme: Theme, margin: float) -> str:
    file = io.StringIO()
    _save(draw, theme, margin, file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _save(draw: Draw, theme: Theme, margin: float, file: IO[Any], **options: Any) -> None:
    from matplotlib.transforms import Bbox

    with _matplotlib(theme):
        drawing = draw(theme)
        width, height = drawing.get_size_inches()
        edge = margin / PX_PER_INCH
        box = Bbox.from_extents(-edge, -edge, width + edge, height + edge)
        drawing.savefig(file, dpi=PX_PER_INCH * PNG_SCALE, bbox_inches=box, **options)


@contextmanager
def _matplotlib(theme: Theme) -> Iterator[None]:
    """Set matplotlib up for drawing and saving, and leave it as it was."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from font")  # a page shows what a PNG cannot
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_settings(theme))
        yield


def _settings(theme: Theme) -> dict[Any, Any]:
    return {
        "figure.dpi": PX_PER_INCH,
        "figure.facecolor": theme.paper,
        "font.family": [FONT],
        "font.size": 11,
        "text.color": theme.ink,
        "text.parse_math": False,  # names may hold dollar signs
        "axes.facecolor": "none",
        "axes.edgecolor": theme.grid,
        "axes.labelcolor": theme.muted,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "hatch.linewidth": 1.2,
        "lines.solid_capstyle": "round",
        "svg.fonttype": "none",
        "svg.hashsalt": "posttrain",
    }


def _tidy(text: str, prefix: str = "") -> str:
    """Drop what no reader needs: metadata, ids without a reference, digits past a hundredth of a px, a font by text."""
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<!DOCTYPE.*?>", "", text, flags=re.DOTALL)
    referenced = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))

    def tidied(tag: str) -> str:
        tag = re.sub(r' id="([^"]*)"', lambda i: f' id="{prefix}{i[1]}"' if i[1] in referenced else "", tag)
        tag = re.sub(r'(url\(|href=")#', rf"\1#{prefix}", tag)
        tag = re.sub(r"-?\b\d+\.\d{3,}\b", lambda digits: f"{float(digits[0]):.2f}".rstrip("0").rstrip("."), tag)
        tag = re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', tag)
        return re.sub(r' font-family: [^;]*;| transform="rotate\(-?0 [^)]*\)"', "", tag)

    text = _in_tags(text, tidied)
    text = text.replace("</style>", f"text{{font-family: {FONT_STACK}}}</style>")
    return re.sub(r"\n\s*", "\n", text)


def _in_tags(text: str, change: Callable[[str], str]) -> str:
    """Change tags and leave the texts between them, which are names and numbers to read."""
    return re.sub("<[^>]*>", lambda tag: change(tag[0]), text)


def contrast(first: str, second: str) -> float:
    """Return the contrast ratio of two colours, 1 to 21 (WCAG 2.2, "contrast ratio"; 4.5 for text, 3 for shapes)."""
    high, low = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
