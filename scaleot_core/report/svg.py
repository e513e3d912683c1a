"""How every plot of a report looks, and the figure as SVG text for a page: no files, no scripts, no fonts."""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.figure import Figure

WIDTH_INCHES = 7.6

# Okabe and Ito's palette, which the colour-blind can tell apart, and a grey.
VERMILION, BLUE, GREEN, PURPLE = "#d55e00", "#0072b2", "#009e73", "#cc79a7"
ORANGE, SKY_BLUE, BLACK, GREY = "#e69f00", "#56b4e9", "#000000", "#999999"
PALETTE = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY_BLUE, BLACK, GREY)

MODEL_COLOURS = {
    "zero_shot": GREY,
    "emulator_zero_shot": SKY_BLUE,
    "emulator_tuned": BLUE,
    "plug_in": VERMILION,
    "full_fine_tuning": GREEN,
}

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "scaleot",
    "text.parse_math": False,  # a name with a dollar is no formula
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
}


@contextmanager
def plot_style() -> Iterator[None]:
    """Draws and writes all figures within in the one style."""
    with mpl.rc_context(_STYLE):
        yield


def legend(figure: Figure, handles: Sequence[Artist], *, columns: int = 4) -> None:
    """Puts the legend of a figure above its axes."""
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False, fontsize=9)


def svg(figure: Figure) -> str:
    """Returns a figure as an SVG element, the same text for the same figure; call it within ``plot_style``."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
