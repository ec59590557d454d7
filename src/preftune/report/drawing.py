"""How every figure of the page is drawn: palette, panels, and SVG whose text stays text."""

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 4.6
HEIGHT = 2.9
LABEL_LENGTH = 16

INK, MUTED, GRID, PAPER = "#1b1f24", "#5b6470", "#dfe3e8", "#fefefe"
RUN_COLOURS = ("#0072b2", "#c44e00", "#007a59", "#a8437f", "#8a6100", "#4b4b9b")
"""Okabe and Ito's palette, darkened until it reads as text on white."""

MARKERS = ("o", "s", "^", "D", "v", "P")
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"} | {
    colour: f"run-{index}" for index, colour in enumerate(RUN_COLOURS)
}

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "preftune",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
}


def run_variable(index: int) -> str:
    """Name of the CSS variable with a run's colour."""
    return _VARIABLES[colour(index)]


def colour(index: int) -> str:
    """A run's colour; they come again after the last."""
    return RUN_COLOURS[index % len(RUN_COLOURS)]


def marker(index: int | None) -> str:
    """A run's marker, or that of the model before training."""
    if index is None:
        return "o"
    # Runs beyond the colours share one, and get another marker with it.
    return MARKERS[(index + index // len(RUN_COLOURS)) % len(MARKERS)]


def short(name: str) -> str:
    """A name as a label has room for it."""
    return name if len(name) <= LABEL_LENGTH else name[: LABEL_LENGTH - 1] + "…"


@contextmanager
def panel(title: str, height: float = HEIGHT, *, polar: bool = False) -> Iterator[tuple[Figure, Axes]]:
    """A figure of one pair of axes, with the page's style while it is drawn."""
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(WIDTH, height))
        axes = figure.add_subplot(polar=polar)
        axes.set_title(title)
        yield figure, axes


def svg(figure: Figure, key: str, description: str) -> str:
    """The figure as an <svg> element whose ids are unique on the page and whose colours are variables."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    whole = buffer.getvalue()
    opening, body = whole[whole.index("<svg") :].split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None
    body = re.sub(r'\bid="', f'id="{key}-', body)
    body = re.sub(r'href="#', f'href="#{key}-', body)
    body = body.replace("url(#", f"url(#{key}-")
    body = re.sub(r'style="[^"]*"', _with_variables, body)
    label = html.escape(description, quote=True)
    return f'<svg {box[0]} role="img" aria-label="{label}">{body.rstrip()}'


def _with_variables(attribute: re.Match[str]) -> str:
    return re.sub(r"#[0-9a-f]{6}", lambda found: _variable(found[0]), attribute[0])


def _variable(colour: str) -> str:
    return f"var(--{_VARIABLES[colour]}, {colour})" if colour in _VARIABLES else colour
