"""Values over epochs as the figures draw them: means over seeds, running means of long runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from gradshare.experiments.results import Arm
from gradshare.training.statistics import student95

Floats = npt.NDArray[np.float64]

Weight = Literal["m", "lambda_"]
"""Which of the sharing parameters, as `SharingPoint` calls it."""

SMOOTHED_FROM: Final = 200
"""From so many epochs on, a running mean is drawn over the pale curve: the noise of hundreds of
epochs is a solid block in which one arm hides another."""


@dataclass(frozen=True)
class Curve:
    """One value over epochs.

    Attributes:
        epochs: (n,) ascending.
        values: (n,) finite.
        ci95: (n,) half the band's width; NaN where it is not known.
    """

    epochs: Floats
    values: Floats
    ci95: Floats

    @classmethod
    def of(cls, points: Iterable[tuple[int, float | None, float | None]]) -> Curve:
        """From (epoch, value, ci95); epochs without a value are left out."""
        known = [(e, v, np.nan if c is None else c) for e, v, c in points if v is not None]
        table = np.asarray(known, dtype=np.float64).reshape(-1, 3)
        return cls(table[:, 0], table[:, 1], table[:, 2])


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over seeds with its 95 % interval, at the epochs that every seed has."""
    if not curves:
        return Curve.of([])
    tables = [dict(zip(c.epochs, c.values, strict=True)) for c in curves]
    shared = sorted(set(tables[0]).intersection(*tables[1:]))
    points = []
    for epoch in shared:
        interval = student95([table[epoch] for table in tables])
        points.append((int(epoch), interval.mean, interval.ci95))
    return Curve.of(points)


def smoothing_window(epochs: int) -> int:
    """How many epochs the running mean takes together: odd, and 1 for a run that is not long."""
    return 1 if epochs < SMOOTHED_FROM else epochs // 50 | 1


def running_mean(curve: Curve, window: int) -> Curve:
    """The mean of each value and its neighbours, half of the window on both sides.

    At the start, as many on both sides as there are before: the first epochs, in which curves are
    steep and which matter most, keep their values. At the end, those that there are.
    """
    count = curve.values.size
    places = np.arange(count)
    before = np.minimum(window // 2, places)
    after = np.minimum(before, count - 1 - places)

    def mean(values: Floats) -> Floats:
        sums = np.concatenate([[0.0], np.cumsum(values)])
        return np.asarray((sums[places + after + 1] - sums[places - before]) / (before + after + 1))

    return Curve(curve.epochs, mean(curve.values), mean(curve.ci95))


def validation_curve(run: Arm) -> Curve:
    """Validation accuracy in percent, with its interval over tasks."""
    return Curve.of(
        (v.epoch, 100 * v.accuracy, None if v.ci95 is None else 100 * v.ci95)
        for v in run.validation
    )


def weight_curve(run: Arm, weight: Weight) -> Curve:
    """Mean σ(m_k) or σ(λ_k)."""
    return Curve.of((point.epoch, getattr(point, weight), None) for point in run.sharing)
