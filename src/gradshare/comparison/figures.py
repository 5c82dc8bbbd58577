"""The figures of a comparison: learning curves, differences by task, what rules learned.

An arm has the same colour, line and marker in each figure, and no other arm has all three.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import Any, Final, NamedTuple

import matplotlib as mpl
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from gradshare.comparison.results import ArmRun, Results, Values
from gradshare.comparison.statistics import test_score
from gradshare.training.records import VALIDATION
from gradshare.training.statistics import student95

MOST_ARMS: Final = 24
MOST_BANDS: Final = 8
MOST_QUANTITIES: Final = 6
MOST_POINTS: Final = 600

LARGEST: Final = 1e100
"""Larger values are left out, as those that are not finite: matplotlib's ticks would overflow."""

INK: Final = "#1f2328"
PALE: Final = "#6e7781"
# Okabe and Ito's, which the colour-blind can tell apart, without the yellow; then two more.
COLORS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6A3D9A", PALE)
LINES: Final = ((0, (5, 1.6)), "-", (0, (6, 1.5, 1.2, 1.5)), (0, (1.2, 1.4)), (0, (9, 2)))
MARKERS: Final = "so^DvP*<>pX"

STYLE: Final[Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.xmargin": 0.02,
    "grid.color": "#e3e6ea",
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.0,
    "text.color": INK,
    # Names come from users: a "$" in one of them begins no formula.
    "text.parse_math": False,
    # Text stays text, which can be searched, copied and set in the page's font.
    "svg.fonttype": "none",
    # The same results give the same file.
    "svg.hashsalt": "gradshare",
}

Arms = Mapping[str, Sequence[ArmRun]]
"""The runs of each arm that is drawn, one for each seed."""

Looks = Mapping[str, Mapping[str, Any]]
"""Each arm's colour, line style and marker, as matplotlib's arguments."""


@dataclass(frozen=True)
class Drawing:
    """A figure with a description, for a reader who cannot see it, and a caption."""

    name: str
    figure: Figure
    description: str
    caption: str

    def svg(self) -> str:
        """An `<svg>` element whose ids no other figure has."""
        buffer = StringIO()
        with style():
            nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            self.figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
        text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
        text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{self.name}-", text)
        return text[text.index("<svg") :].replace("xlink:href", "href")


class Curve(NamedTuple):
    """Points (n,) with half the height of their band; NaN where there is none."""

    x: Values
    y: Values
    half: Values


def draw_all(results: Results) -> list[Drawing]:
    """The figures that the results have numbers for.

    Args:
        results: with names of arms that a legend has room for, see `shown`.
    """
    arms = _drawn(results)
    looks: dict[str, dict[str, Any]] = {}
    for i, arm in enumerate(arms):
        looks[arm] = {"color": COLORS[i % 8], "linestyle": LINES[(i + i // 8) % 5]}
        looks[arm]["marker"] = MARKERS[i % 11]
    with style():
        drawings = [draw(results, arms, looks) for draw in (_curves, _differences, _learned)]
    return [drawing for drawing in drawings if drawing is not None]


def shown(text: str, width: int = 32) -> str:
    """A user's text in one short line, without control characters, which can turn the text around
    it or make a page invalid.
    """
    plain = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", " ", text)
    plain = " ".join(plain.split()) or "unnamed"
    return plain if len(plain) <= width else f"{plain[: width - 1].rstrip()}…"


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's settings for these figures, whatever the user's own are."""
    with mpl.style.context(["default", STYLE]), warnings.catch_warnings():
        # The page's reader may have the font; only the width of the text is then a guess.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _drawn(results: Results) -> dict[str, list[ArmRun]]:
    """The arms that are drawn: of too many the baseline, the controls and those with the best test
    scores.
    """
    arms: dict[str, list[ArmRun]] = {}
    for run in results.runs:
        arms.setdefault(run.arm, []).append(run)
    rank = results.metric(results.score).rank

    def place(arm: str) -> tuple[bool, bool, float]:
        found = test_score(arms[arm], results.score)
        score = math.inf if found is None else rank(found.mean)
        return arm != results.baseline, arm not in results.controls, score

    chosen = arms if len(arms) <= MOST_ARMS else sorted(arms, key=place)[:MOST_ARMS]
    return {arm: runs for arm, runs in arms.items() if arm in chosen}


def _curves(results: Results, arms: Arms, looks: Looks) -> Drawing | None:
    """The score on the validation tasks over epochs."""
    metric, score = results.metric(results.score), shown(results.score)
    scale = 100 if metric.unit == "%" else 1
    seeds = {arm: [_history(run, results.score, scale) for run in arms[arm]] for arm in arms}
    curves = {}
    for arm, runs in arms.items():
        sound = [c for run, c in zip(runs, seeds[arm], strict=True) if run.outcome != "diverged"]
        curve = _mean(sound or seeds[arm]) if len(runs) > 1 else seeds[arm][0]
        if curve.x.size:
            curves[arm] = _thinned(curve)
    if not curves:
        return None
    if all(curve.x.size == 1 for curve in curves.values()):  # beside each other, so that all show
        places = np.arange(len(curves)) / len(curves)
        shifts = dict(zip(curves, places - places.mean(), strict=True))
        curves = {arm: curve._replace(x=curve.x + shifts[arm]) for arm, curve in curves.items()}
    banded = len(curves) <= MOST_BANDS
    figure, [[axes]] = _figure(1, 1, looks, {arm: arm for arm in curves})
    for arm in curves:
        for run, curve in zip(arms[arm], seeds[arm], strict=True):
            color = looks[arm]["color"]
            if banded and len(arms[arm]) > 1:
                axes.plot(*_thinned(curve)[:2], color=color, linewidth=0.6, alpha=0.5)
            if run.outcome == "diverged":
                axes.plot(curve.x[-1:], curve.y[-1:], "X", color=color, markersize=10)
    same = _lines(axes, curves, looks)
    values = np.concatenate([curve.y for curve in curves.values()])
    logarithmic = scale == 1 and metric.chance is None and 0 < 30 * values.min() < values.max()
    if logarithmic:
        axes.set_yscale("log")
    if banded:
        _bands(axes, curves, looks)
    near = metric.chance is not None and _chance(axes, scale * metric.chance)
    units = ", ".join(filter(None, [metric.unit, "logarithmic" if logarithmic else ""]))
    axes.set_ylabel(f"validation {score}" + (f" ({units})" if units else ""))
    _whole_numbers(axes, "epoch")
    several = len(results.seeds) > 1
    notes = {
        "After each epoch.": True,
        "Bands: 95 % confidence interval over validation tasks.": banded and not several,
        "Thin lines: the seeds. Bands: 95 % confidence interval over the seeds that did not "
        "diverge.": banded and several,
        "✖: diverged.": any(run.outcome == "diverged" for runs in arms.values() for run in runs),
        "Dotted: chance.": near,
    }
    caption = " ".join(note for note, holds in notes.items() if holds)
    ends = "; ".join(f"{arm} ends at {curve.y[-1]:.4g}" for arm, curve in curves.items())
    return Drawing("curves", figure, f"Validation {score} over epochs: {ends}.", caption + same)


def _differences(results: Results, arms: Arms, looks: Looks) -> Drawing | None:
    """The score of each arm minus the baseline's on each test task, sorted."""
    metric = results.metric(results.score)
    scale, unit = (100, "points") if metric.unit == "%" else (1, metric.unit)
    curves, labels = {}, {}
    for arm in [arm for arm in arms if arm != results.baseline]:
        values = np.sort(_by_task(arms[arm], arms[results.baseline], results.score))
        curve = _finite(np.arange(1.0, 1 + len(values)), scale * values)
        if curve.x.size:
            curves[arm] = _thinned(curve)
            signs = [int((np.sign(curve.y) == sign).sum()) for sign in (1, -1)]
            better, worse = signs if metric.best == "high" else signs[::-1]
            labels[arm] = f"{arm}: better on {better}, worse on {worse} of {curve.x.size} tasks"
    if not curves:
        return None
    figure, [[axes]] = _figure(1, 1, looks, labels)
    axes.axhline(0, color=INK, linewidth=0.8)
    same = _lines(axes, curves, looks)
    label = f"{shown(results.score, 20)} − {results.baseline}"
    axes.set_ylabel(f"{label} ({unit})" if unit else label)
    _whole_numbers(axes, "test tasks, sorted by the difference")
    side = "Above" if metric.best == "high" else "Below"
    caption = (
        f"The difference from {results.baseline} on each test task, the mean over the seeds in "
        f"which both trained. {side} zero the arm is better."
    )
    said = "; ".join(labels.values())
    return Drawing("differences", figure, f"Differences by task. {said}.", caption + same)


def _learned(_: Results, arms: Arms, looks: Looks) -> Drawing | None:
    """What rules report, over epochs and by inner step."""
    histories = [run.history for runs in arms.values() for run in runs]
    found = dict.fromkeys(name for h in histories for record in h for name in record.learned)
    names = list(found)[:MOST_QUANTITIES]
    panels: list[dict[str, Curve]] = []
    for name in names:
        epochs, steps = {}, {}
        for arm, runs in arms.items():
            kept = [
                [(r.epoch, r.learned[name]) for r in run.history if r.learned.get(name)]
                for run in runs
            ]
            kept = [values for values in kept if values]
            epochs[arm] = _mean([_points((e, np.mean(v)) for e, v in one) for one in kept])
            steps[arm] = _mean([_points(enumerate(one[-1][1], 1)) for one in kept])
        panels += [{arm: c for arm, c in p.items() if c.x.size} for p in (epochs, steps)]
    having = {arm: arm for arm in arms if any(arm in panel for panel in panels)}
    if not having:
        return None
    figure, axes = _figure(len(names), 2, looks, having)
    same = dict.fromkeys(_lines(a, p, looks) for a, p in zip(axes.flat, panels, strict=True))
    for panel in axes.flat:  # a finer axis would make much of the fourth digit
        low, high = panel.get_ylim()
        least = max(high - low, 0.05 * max(abs(low), abs(high)))
        panel.set_ylim((low + high - least) / 2, (low + high + least) / 2)
    for name, (over_epochs, by_step) in zip(names, axes, strict=True):
        over_epochs.set_title(f"{shown(name)}, mean over inner steps")
        by_step.set_title(f"{shown(name)}, after the last epoch")
        _whole_numbers(over_epochs, "epoch")
        _whole_numbers(by_step, "inner step")
    caption = "What the update rules report, the mean over seeds."
    if len(found) > len(names):
        caption += f" {len(names)} of {len(found)} quantities are drawn."
    said = ", ".join(map(shown, names))
    return Drawing("learned", figure, f"Learned over epochs: {said}.", caption + "".join(same))


def _history(run: ArmRun, score: str, scale: float) -> Curve:
    rows = [(r.epoch, *r.metrics[VALIDATION][score][:2]) for r in run.history]
    x, y, half = np.array(rows, dtype=float).reshape(-1, 3).T
    return _finite(x, scale * y, scale * half)


def _by_task(first: Sequence[ArmRun], second: Sequence[ArmRun], score: str) -> Values:
    """First - second on each test task, the mean over the seeds in which both trained."""
    theirs = {run.seed: np.array(run.test[score]) for run in second if run.trained}
    pairs = [(np.array(r.test[score]), theirs.get(r.seed)) for r in first if r.trained]
    rows = [one - two for one, two in pairs if two is not None and one.shape == two.shape]
    return np.mean(rows, axis=0) if len({len(row) for row in rows}) == 1 else np.array([])


def _points(pairs: Any) -> Curve:
    x, y = np.array(list(pairs), dtype=float).reshape(-1, 2).T
    return _finite(x, y)


def _finite(x: Values, y: Values, half: Values | None = None) -> Curve:
    half = np.full_like(y, math.nan) if half is None else half
    kept = np.abs(y) < LARGEST  # False for NaN
    return Curve(x[kept], y[kept], np.where(np.abs(half) < LARGEST, half, math.nan)[kept])


def _mean(curves: Sequence[Curve]) -> Curve:
    """The mean of seeds with its 95 % interval, where each has a value."""
    if not curves:
        return _points([])
    tables = [dict(zip(curve.x, curve.y, strict=True)) for curve in curves]
    x = sorted(set(tables[0]).intersection(*tables[1:]))
    means = [student95([table[at] for table in tables]) for at in x]
    half = np.array([mean.ci95 for mean in means], dtype=float)
    return _finite(np.array(x), np.array([mean.mean for mean in means]), half)


def _thinned(curve: Curve) -> Curve:
    kept = np.linspace(0, curve.x.size - 1, min(curve.x.size, MOST_POINTS)).astype(int)
    return Curve(*(values[kept] for values in curve))


def _figure(rows: int, columns: int, looks: Looks, labels: Mapping[str, str]) -> tuple[Figure, Any]:
    """A figure with axes and, above them, a legend of some arms."""
    handles = [Line2D([], [], **looks[arm]) for arm in labels]
    # matplotlib before 3.10 leaves out a label that begins with "_".
    names = [f" {text}" if text.startswith("_") else text for text in labels.values()]
    across = 2 if max(map(len, names)) <= 40 else 1
    height = (3.2 if rows == 1 else 2.4 * rows) + 0.2 * len(names) / across
    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw={"hspace": 0.12})
    figure.legend(handles, names, loc="outside upper left", ncols=min(across, len(names)))
    return figure, axes


def _lines(axes: Axes, curves: Mapping[str, Curve], looks: Looks) -> str:
    """A line for each arm.

    Returns:
        Sentences on arms with the same values, which alternate in one line; empty without them.
    """
    groups: dict[tuple[bytes, bytes], list[str]] = {}
    for arm, curve in curves.items():
        groups.setdefault((curve.x.tobytes(), curve.y.tobytes()), []).append(arm)
    same = ""
    for arms in groups.values():
        for place, arm in enumerate(arms):
            x, y, _ = curves[arm]
            every = -(-x.size // 8)
            line = {**looks[arm], "label": arm, "markeredgecolor": "white", "markeredgewidth": 0.7}
            if len(arms) > 1:
                line["linestyle"] = (4 * place, (4, 4 * (len(arms) - 1)))
            # Markers of close curves lie apart where they can, and the one below is larger.
            line["markevery"] = (list(curves).index(arm) * every // len(curves), every)
            line["markersize"] = 5 + 3 * min(4, len(arms) - 1 - place)
            axes.plot(x, y, **line)
        if len(arms) > 1:
            same += f" The lines of {', '.join(arms)} coincide: their dashes alternate."
    return same


def _bands(axes: Axes, curves: Mapping[str, Curve], looks: Looks) -> None:
    """Bands of curves that are drawn; they may double the height of the axes, no more."""
    scale = axes.yaxis.get_transform()
    low, high = scale.transform(axes.get_ylim())
    for arm, (x, y, half) in curves.items():
        color = looks[arm]["color"]
        axes.fill_between(x, y - half, y + half, color=color, alpha=0.15, linewidth=0)
        if x.size == 1:
            axes.errorbar(x, y, half, color=color, fmt="none", capsize=3)
    lowest, highest = scale.transform(axes.get_ylim())
    room = (high - low) / 2
    limits = np.array([max(lowest, low - room), min(highest, high + room)])
    axes.set_ylim(*scale.inverted().transform(limits))


def _chance(axes: Axes, chance: float) -> bool:
    """A line for guessing, unless it is so far away that the curves would be flat beside it."""
    low, high = axes.get_ylim()
    span = high - low
    near = low - span < chance < high + span
    if near:
        axes.axhline(chance, color=PALE, linewidth=1.0, linestyle=":")
        axes.set_ylim(min(low, chance - 0.03 * span), max(high, chance + 0.03 * span))
    return near


def _whole_numbers(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
