"""What all figures have in common: the looks of arms, a note below, and their files."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradshare.comparison.figures import COLORS, LINES, MARKERS, PALE, style
from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING

KNOWN: Final = (ORIGINAL, SHARING, RATE_CONTROL)
"""The arms that are drawn first, in this order, so that they look the same in each figure."""

DASHES: Final = LINES[0]
LEVEL_LINE: Final[Any] = {"color": PALE, "linewidth": 1.0, "linestyle": ":", "zorder": 1}

Look = Mapping[str, Any]
"""An arm's colour, line style and marker as matplotlib's arguments, the same in each figure."""


class Drawing(NamedTuple):
    """A figure and the name of its file."""

    name: str
    figure: Figure


def looks(arms: Iterable[str]) -> dict[str, Look]:
    """The look of each arm; those of `KNOWN` come first."""
    arms = list(arms)
    return {
        arm: {
            "color": COLORS[i % len(COLORS)],
            "linestyle": LINES[(i + i // len(COLORS)) % len(LINES)],
            "marker": MARKERS[i % len(MARKERS)],
        }
        for i, arm in enumerate(dict.fromkeys((*KNOWN, *arms)))
        if arm in arms
    }


def sample(look: Look) -> Line2D:
    """An arm in the legend."""
    return Line2D([], [], **look)


def noted(name: str, figure: Figure, title: str, note: str) -> Drawing:
    """A drawing with its title and a note below it, in lines that fit its width."""
    lines = textwrap.fill(f"{title} {note}", round(16.2 * figure.get_figwidth()))
    with style():
        figure.supxlabel(lines, fontsize=7.0, color=PALE)
    return Drawing(name, figure)
