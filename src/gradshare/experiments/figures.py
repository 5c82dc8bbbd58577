"""The figures of one comparison: validation accuracy, m and λ, inner-loop over-fitting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnchoredOffsetbox, DrawingArea, HPacker, TextArea, VPacker
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from gradshare.experiments import wording
from gradshare.experiments.curves import (
    Curve,
    Weight,
    mean_curve,
    running_mean,
    smoothing_window,
    validation_curve,
    weight_curve,
)
from gradshare.experiments.drawing import (
    DASHES,
    INK,
    LEVEL_LINE,
    Drawing,
    arm_styles,
    draw_chance,
    draw_runs,
    epoch_axis,
    put_below,
    sample,
    seeds_are_drawn,
    shown,
    sound_runs,
    style,
)
from gradshare.experiments.results import Arm, Results
from gradshare.experiments.seeds import achieved, runs_by_arm

LegendEntry = tuple[Line2D, tuple[str, ...]]

CLIPPED_LOSS: Final = 4.0
"""Losses above so many times the loss of guessing are left out: one bad epoch would flatten the
rest."""


def draw_all(results: Sequence[Results]) -> tuple[Drawing, ...]:
    """Every figure that the results have data for, in the order of the report."""
    drawings = [draw_validation(results)]
    runs = [run for one in results for run in one.arms]
    if any(run.sharing for run in runs):
        drawings.append(draw_sharing(results))
    if any(run.inner_loop for run in runs):
        drawings.append(draw_inner_loop(results))
    return tuple(drawings)


# Validation accuracy ------------------------------------------------------------------------------


def draw_validation(results: Sequence[Results]) -> Drawing:
    """Validation accuracy over epochs with 95 % bands, as the paper's Figures 2, 4 and 6."""
    arms = runs_by_arm(results)
    styles = arm_styles(arms)
    last = max(run.epochs for runs in arms.values() for run in runs)
    with style():
        figure = Figure(figsize=(6.8, 4.4), layout="constrained")
        axes = figure.add_subplot()
        entries: list[LegendEntry] = []
        for order, (name, runs) in enumerate(arms.items()):
            draw_runs(
                axes, runs, validation_curve, styles[name], order, len(arms), last, noisy=True
            )
            entries.append((sample(styles[name]), (shown(name), *_achieved_words(runs))))
        chances = sorted({run.chance for runs in arms.values() for run in runs})
        guessing, accuracy = draw_chance(axes, chances)
        entries.append((guessing, ("chance", accuracy)))
        axes.set_ylabel("validation accuracy (%)")
        epoch_axis(axes, last)
        axes.add_artist(_legend_above(axes, entries))
        note = _note(figure, results, f"{band_note(results)} {test_note(arms.values())}".rstrip())
    legend = "; ".join(" ".join(filter(None, words)) for _, words in entries)
    return Drawing("validation", figure, f"Validation accuracy over epochs. {legend}.", note)


def band_note(results: Sequence[Results]) -> str:
    """What the bands of the curves are intervals over."""
    arms = runs_by_arm(results)
    longest = max(run.epochs for runs in arms.values() for run in runs)
    note = interval_note([(shown(name), runs) for name, runs in arms.items()])
    window = smoothing_window(longest)
    return note if window == 1 else f"{note} Running mean over {window} epochs.".lstrip()


def test_note(arms: Iterable[Sequence[Arm]]) -> str:
    """What the intervals of the test accuracies in a legend are over, where not over tasks alone.

    Args:
        arms: the runs of every arm, one a seed.
    """
    counts = {sum(run.test is not None for run in runs) for runs in arms}
    if not any(count > 1 for count in counts):
        return ""
    of_one = ", of one seed over test tasks alone" if 1 in counts else ""
    return f"Test accuracies: ± over seeds and test tasks{of_one}."


def interval_note(arms: Sequence[tuple[str, Sequence[Arm]]]) -> str:
    """What the bands, or bars, of curves are intervals over, as `draw_runs` draws them.

    Args:
        arms: the name and the runs, one a seed, of every curve. A name may be there again, of
            another panel. Where bands differ it is told whose is which, unless a name has several.
    """
    drawn = [(name, runs) for name, runs in arms if any(run.epochs for run in runs)]
    if not drawn:
        return ""
    longest = max(run.epochs for _, runs in drawn for run in runs)
    band = "bars" if longest <= 1 else "bands"
    if all(len(runs) == 1 for _, runs in drawn):
        return f"{band.capitalize()}: 95 % confidence interval over validation tasks; one seed."
    bandless = f"no {band} where fewer than two seeds are left"
    groups: dict[str, list[str]] = {}
    for name, runs in sorted(drawn, key=lambda arm: len(sound_runs(arm[1])), reverse=True):
        sound = len(sound_runs(runs))
        over = f"of the mean over {sound} seeds (Student’s t)" if sound > 1 else bandless
        if len(runs) == 1:
            over = "over validation tasks where there is one seed"
        names = groups.setdefault(over, [])
        names += [] if name in names else [name]
    if bandless in groups:
        groups[bandless] = groups.pop(bandless)  # the last
    named = [name for names in groups.values() for name in names]
    tell = len(groups) > 1 and len(set(named)) == len(named)
    parts = [
        f"{over}: {wording.listing(names)}" if tell else over for over, names in groups.items()
    ]
    if any(seeds_are_drawn(runs) for _, runs in drawn):
        parts.append("thin lines: the seeds")
    text = "; ".join(parts)
    if next(iter(groups)) == bandless:
        return f"N{text[1:]}."
    return f"{band.capitalize()}: 95 % confidence interval {text}."


def _note(figure: Figure, results: Sequence[Results], note: str) -> Text:
    """Below a figure: method and dataset, then the note."""
    subject = f"{wording.method(results[0].method)} on {shown(results[0].dataset)}."
    return put_below(figure, f"{subject} {note}")


def _achieved_words(runs: Sequence[Arm]) -> tuple[str, str, str]:
    """The paper's legend: highest validation accuracy with its epoch, and the test accuracy."""
    came_to = achieved(runs)
    last = [] if came_to.test is None else [f"test {wording.accuracy(came_to.test)}"]
    return (
        "" if came_to.validation is None else f"max {wording.accuracy(came_to.validation)}",
        f"ep {came_to.epochs}" if came_to.epochs else "",
        ", ".join([*last, *came_to.failures]),
    )


# m and λ ------------------------------------------------------------------------------------------

START: Final = 0.5
"""σ(0): where m and λ start (Algorithm 1)."""

LEAST_SPAN: Final = 0.2
"""Of the axis of weights: a finer one would make a drama of the third decimal."""


def draw_sharing(results: Sequence[Results]) -> Drawing:
    """Mean σ(m_k) and σ(λ_k) over epochs, as the paper's Figures 3 and 5."""
    arms = {
        name: runs
        for name, runs in runs_by_arm(results).items()
        if any(run.sharing for run in runs)
    }
    styles = arm_styles(runs_by_arm(results))
    panels: tuple[tuple[Weight, str, str], ...] = (
        ("m", "weight of the newest gradients", "σ(m), mean over inner steps"),
        ("lambda_", "weight of the shared gradient", "σ(λ), mean over inner steps"),
    )
    last = max(point.epoch for runs in arms.values() for run in runs for point in run.sharing)
    with style():
        figure = Figure(figsize=(6.8, 3.5), layout="constrained")
        both = figure.subplots(1, 2, sharey=True, sharex=True)
        for axes, (weight, title, label) in zip(both, panels, strict=True):
            for order, (name, runs) in enumerate(arms.items()):

                def curve_of(run: Arm, weight: Weight = weight) -> Curve:
                    return weight_curve(run, weight)

                drawn = [run for run in runs if curve_of(run).epochs.size]
                draw_runs(axes, drawn, curve_of, styles[name], order, len(arms), last, noisy=False)
            axes.axhline(START, **LEVEL_LINE)
            axes.set_title(title)
            axes.set_ylabel(label)
            axes.yaxis.set_tick_params(labelleft=True)
            epoch_axis(axes, last)
        both[0].set_ylim(*_weight_limits(arms))
        both[0].yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        handles = [sample(styles[name]) for name in arms]
        handles.append(Line2D([], [], **LEVEL_LINE))
        labels = [*(shown(name) for name in arms), "start"]
        figure.legend(handles, labels, loc="outside upper left", ncols=min(4, len(labels)))
        note = _note(figure, results, "")
    ends = "; ".join(
        f"{name} ends at σ(m) {ending(runs, 'm')}, σ(λ) {ending(runs, 'lambda_')}"
        for name, runs in arms.items()
    )
    return Drawing("sharing", figure, f"Mean σ(m) and σ(λ) over epochs: {ends}.", note)


def _weight_limits(arms: Mapping[str, Sequence[Arm]]) -> tuple[float, float]:
    """From the lowest to the highest weight and their start, but no narrower than `LEAST_SPAN`."""
    points = [point for runs in arms.values() for run in runs for point in run.sharing]
    values = [v for point in points for v in (point.m, point.lambda_) if v is not None]
    low, high = min([START, *values]), max([START, *values])
    margin = max(0.05 * (high - low), (LEAST_SPAN - (high - low)) / 2)
    return max(0.0, low - margin), min(1.0, high + margin)


def ending(runs: Sequence[Arm], weight: Weight) -> str:
    """The last value, averaged over seeds, with two decimals."""
    last = [getattr(run.sharing[-1], weight) for run in runs if run.sharing]
    known = [value for value in last if value is not None]
    return f"{sum(known) / len(known):.2f}" if known else wording.NOTHING


# The inner loop's over-fitting --------------------------------------------------------------------


def draw_inner_loop(results: Sequence[Results]) -> Drawing:
    """Support and query accuracy and loss before and after adaptation, a column for each arm."""
    everything = runs_by_arm(results)
    arms = {n: [r for r in runs if r.inner_loop] for n, runs in everything.items()}
    arms = {name: runs for name, runs in arms.items() if runs}
    styles = arm_styles(everything)
    with style():
        width = max(4.6, 1.0 + 2.25 * len(arms))
        figure = Figure(figsize=(width, 4.9), layout="constrained")
        grid = figure.subplots(2, len(arms), sharex=True, sharey="row", squeeze=False)
        for column, (name, runs) in enumerate(arms.items()):
            grid[0, column].set_title(shown(name), color=styles[name].color)
            for row, quantity in enumerate(("accuracy", "loss")):
                _draw_gap(grid[row, column], runs, quantity, styles[name].color)
            last = max(run.inner_loop[-1].epoch for r in arms.values() for run in r)
            epoch_axis(grid[1, column], last, ticks=4)
        grid[0, 0].set_ylabel("accuracy (%)")
        grid[1, 0].set_ylabel("cross-entropy (nats)")
        grid[0, 0].set_ylim(0, 100)
        _limit_loss(grid[1, 0], arms)
        handles: list[Any] = [
            Line2D([], [], color=INK, linestyle=DASHES),
            Line2D([], [], color=INK),
            (
                Line2D([], [], color=INK, linestyle=DASHES, linewidth=0.8, alpha=0.6),
                Line2D([], [], color=INK, linewidth=0.8, alpha=0.6),
            ),
            Patch(color=INK, alpha=0.14, linewidth=0),
        ]
        labels = [
            "support, adapted",
            "query, adapted",
            "both before",
            "gap: over-fitting",
        ]
        figure.legend(
            handles,
            labels,
            loc="outside upper left",
            ncols=4 if len(arms) > 2 else 2,
            handler_map={tuple: HandlerTuple(ndivide=None)},
        )
        counts = sorted({len(sound_runs(runs) or runs) for runs in arms.values()})
        seeds = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        means = f"Means over {seeds} seeds." if counts[-1] > 1 else ""
        window = smoothing_window(last)
        means += f" Running means over {window} epochs." if window > 1 else ""
        note = _note(figure, results, means.strip())
    return Drawing(
        "inner_loop",
        figure,
        "Accuracy and loss on support and query images before and after adaptation, over epochs, "
        f"for {wording.listing(list(arms))}.",
        note,
    )


def _draw_gap(axes: Axes, runs: Sequence[Arm], quantity: str, color: str) -> None:
    """Support and query before (thin) and after (thick) adaptation, and the gap between them."""
    after = {}
    for images, line in (("support", DASHES), ("query", "-")):
        for moment, width, alpha in (("before", 0.8, 0.6), ("after", 1.8, 1.0)):
            curve = _inner_curve(runs, f"{images}_{quantity}_{moment}")
            curve = running_mean(curve, smoothing_window(curve.epochs.size))
            axes.plot(
                curve.epochs,
                curve.values,
                color=color,
                linestyle=line,
                linewidth=width,
                alpha=alpha,
                marker="o" if curve.epochs.size == 1 else None,
                markersize=6 if moment == "after" else 3,
                markerfacecolor="white" if images == "support" else color,
            )
            after[images] = curve
    shared, one, two = np.intersect1d(
        after["support"].epochs, after["query"].epochs, return_indices=True
    )
    axes.fill_between(
        shared,
        after["support"].values[one],
        after["query"].values[two],
        color=color,
        alpha=0.14,
        linewidth=0,
    )


def _inner_curve(runs: Sequence[Arm], field: str) -> Curve:
    scale = 100 if "accuracy" in field else 1

    def curve(run: Arm) -> Curve:
        values = [(point.epoch, getattr(point, field)) for point in run.inner_loop]
        return Curve.of((e, None if v is None else scale * v, None) for e, v in values)

    return mean_curve([curve(run) for run in sound_runs(runs) or runs])


def _limit_loss(axes: Axes, arms: Mapping[str, Sequence[Arm]]) -> None:
    """Start the losses at 0, and leave out those that would flatten the others."""
    chance = next(iter(arms.values()))[0].chance
    guessing = float(-np.log(chance))
    axes.set_ylim(0, min(axes.get_ylim()[1], CLIPPED_LOSS * guessing))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))


# Axes and legends ---------------------------------------------------------------------------------


def _legend_above(axes: Axes, entries: Sequence[LegendEntry]) -> AnchoredOffsetbox:
    """A legend above the axes, where it covers no data, with its numbers in columns."""
    size = mpl.rcParams["legend.fontsize"]
    width, height = 3.2 * size, 0.8 * size
    samples = []
    for line, _ in entries:
        area = DrawingArea(width, height)
        line.set_data([0, width / 2, width], [height / 2] * 3)
        line.set_markevery([1])
        area.add_artist(line)
        samples.append(area)
    columns = []
    for column in range(max(len(words) for _, words in entries)):
        cells = [words[column] if column < len(words) else "" for _, words in entries]
        texts: list[Artist] = [TextArea(cell, textprops={"fontsize": size}) for cell in cells]
        columns.append(VPacker(children=texts, pad=0, sep=0.35 * size))
    # Samples are packed with empty texts, so that their rows are as high as those of the words.
    rows: list[Artist] = [
        HPacker(children=[area, TextArea("", textprops={"fontsize": size})], align="center", pad=0)
        for area in samples
    ]
    packed = HPacker(
        children=[VPacker(children=rows, pad=0, sep=0.35 * size), *columns],
        align="top",
        pad=0,
        sep=1.1 * size,
    )
    return AnchoredOffsetbox(
        "lower left",
        child=packed,
        frameon=False,
        pad=0,
        borderpad=0.8,
        bbox_to_anchor=(-0.01, 1.0),
        bbox_transform=axes.transAxes,
    )
