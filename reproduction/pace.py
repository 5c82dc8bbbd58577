"""How soon arms learn, and how well their inner loops fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal

import numpy as np

from gradshare.config import ORIGINAL
from reproduction.conditions import Condition
from reproduction.records import Run

SHARES: Final = (80, 90, 95)
"""Percent of the original's gain over chance."""

SMOOTHED_OVER: Final = 3
"""Validations in a running mean."""

FLAT: Final = 0.05
"""A curve has flattened when the mean of its last quarter is within this share of the whole gain
over chance of the mean of the quarter before."""

LONG: Final = 20
"""With fewer validations it cannot be told whether a curve has flattened."""


def paper_speedup(original: Run, other: Run) -> float | None:
    """(Epoch_OG - Epoch_GS) / Epoch_GS of the epochs of the best validation accuracy (paper, §3).

    Returns:
        0.66 for the paper's "66 %"; None unless both trained.
    """
    if not (original.trained and other.trained and original.best_epoch and other.best_epoch):
        return None
    return (original.best_epoch - other.best_epoch) / other.best_epoch


def level(original: Run, share: int) -> float | None:
    """Chance + share · (the original's best validation accuracy - chance); None if it did not
    train.
    """
    if not original.trained or original.best is None:
        return None
    return original.chance + share / 100 * (original.best.mean - original.chance)


def speedup_to_reach(original: Run, other: Run, share: int) -> float | None:
    """The paper's ratio for the first epochs at which both reach a share of the original's gain.

    These epochs depend less on noise than those of a flat curve's maximum.
    """
    accuracy = level(original, share)
    if accuracy is None or not other.trained:
        return None
    slow, fast = (
        next((epoch for epoch, value in enumerate(run.validation, 1) if value >= accuracy), None)
        for run in (original, other)
    )
    return None if slow is None or fast is None else (slow - fast) / fast


def smoothed(run: Run) -> Run:
    """The run with a centred running mean of its validation curve.

    The first values keep their own: the curve is steep there. The last are left out: they have no
    neighbours, and the highest of noisy values is no level.
    """
    curve = run.validation
    half = SMOOTHED_OVER // 2
    values = []
    for place in range(len(curve[: max(1, len(curve) - half)])):
        reach = min(half, place, len(curve) - 1 - place)
        near = curve[place - reach : place + reach + 1]
        values.append(math.fsum(near) / len(near))
    changed = {"validation": tuple(values), "ci95": run.ci95[: len(values)]}
    return run.model_copy(update=changed)


def crossing(run: Run, accuracy: float) -> float | None:
    """The epoch at which a validation curve, straight from point to point, first has an accuracy.

    Returns:
        None if it never has it; 1 if it had it at its first validation, or sooner.
    """
    curve = run.validation
    if curve and curve[0] >= accuracy:
        return 1
    for epoch, (before, after) in enumerate(pairwise(curve), 1):
        if after >= accuracy:
            return epoch + (accuracy - before) / (after - before)
    return None


def flattened(run: Run) -> bool:
    """Whether a run was long and steady enough for its best epoch to mean something."""
    accuracies = run.validation
    if len(accuracies) < LONG or not run.trained:
        return False
    quarter = len(accuracies) // 4
    last = math.fsum(accuracies[-quarter:]) / quarter
    before = math.fsum(accuracies[-2 * quarter : -quarter]) / quarter
    steady = abs(last - before) <= FLAT * (max(accuracies) - run.chance)
    # The best epoch of the smoothed curve is not a lucky one.
    best = [run.best_epoch, smoothed(run).best_epoch]
    return steady and all(epoch and epoch <= len(accuracies) - quarter for epoch in best)


def papers_speedups(condition: Condition, arm: str) -> list[float | None]:
    """The paper's speed-up for each seed; None where a curve has not flattened."""
    return [
        paper_speedup(original, mine) if flattened(mine) and flattened(original) else None
        for mine, original in condition.pairs(arm, ORIGINAL)
    ]


@dataclass(frozen=True)
class Pace:
    """How soon an arm reached a share of the original's gain over chance.

    Attributes:
        told: for each seed of the arm, whether the original's gain is large enough for its shares
            to be told apart.
        iterations: for each seed; None where the arm never got there, or where `told` is False.
        at_once: for each seed, whether that was at the first validation, so that it may have been
            sooner.
        ratios: original / arm in iterations, for each seed that can be told. Empty if the arm did
            not get there in one of them, if both were there at once in one, or if some are lower
            and others upper bounds: then their mean is unknown.
        seconds: the same in seconds; empty where the time of an epoch is not known.
        bound: "≥" if the ratios are lower bounds, since the arm was there at once in some seed;
            "≤" if the original was; else "".
    """

    told: tuple[bool, ...]
    iterations: tuple[float | None, ...]
    at_once: tuple[bool, ...]
    ratios: tuple[float, ...]
    seconds: tuple[float, ...]
    bound: Literal["", "≥", "≤"]

    @property
    def arrived(self) -> int:
        """In how many seeds the arm got there."""
        return sum(count is not None for count in self.iterations)


def paces(condition: Condition, arm: str, study: Sequence[Condition]) -> list[Pace]:
    """For each share, on smoothed curves, how soon an arm was there.

    Args:
        condition: in which.
        arm: its name.
        study: all conditions of the study, from which the time of an epoch is known.
    """
    dearer = _seconds_beside_the_original(condition, arm, study)
    originals = {run.seed: smoothed(run) for run in condition.runs(ORIGINAL)}
    pairs = [(smoothed(run), originals.get(run.seed)) for run in condition.runs(arm)]
    return [_pace(pairs, share, dearer) for share in SHARES]


def _pace(pairs: Sequence[tuple[Run, Run | None]], share: int, dearer: float | None) -> Pace:
    """How soon an arm was there.

    Args:
        pairs: for each seed the arm's run and the original's, both smoothed.
        share: of the original's gain.
        dearer: the arm's time for an epoch / the original's, if it is known.
    """
    told, here, there = [], [], []
    for mine, original in pairs:
        accuracy = None if original is None else _level(original, share)
        told.append(accuracy is not None)
        here.append(None if accuracy is None else crossing(mine, accuracy))
        if original is not None and accuracy is not None:
            there.append((here[-1], crossing(original, accuracy)))
    known = [(h, t) for h, t in there if h and t and not h == t == 1]
    bounds: set[Literal["≥", "≤"]] = {"≥" if h == 1 else "≤" for h, t in known if 1 in (h, t)}
    if len(known) < len(there) or len(bounds) > 1:
        known, bounds = [], set()
    ratios = tuple(t / h for h, t in known)
    epochs = [run.settings["iterations_per_epoch"] for run, _ in pairs]
    return Pace(
        tuple(told),
        tuple(h and h * epoch for h, epoch in zip(here, epochs, strict=True)),
        tuple(h == 1 for h in here),
        ratios,
        () if dearer is None else tuple(ratio / dearer for ratio in ratios),
        next(iter(bounds), ""),
    )


def _level(original: Run, share: int) -> float | None:
    """The accuracy at a share of its gain; None where the smallest and the largest of `SHARES` are
    no further apart than a validation errs.
    """
    best = original.best
    if best is None or best.ci95 is None:
        return None
    apart = (SHARES[-1] - SHARES[0]) / 100
    distinct = apart * (best.mean - original.chance) > best.ci95
    return level(original, share) if distinct else None


WORK: Final = (
    *("dataset", "image_size", "method", "ways", "shots", "queries", "task_batch", "inner_steps"),
    *("filters", "order", "iterations_per_epoch", "val_tasks"),
)
"""Settings that an epoch's time depends on."""

MACHINE: Final = ("device", "gpu", "processor", "cores", "threads", "torch", "layout", "commit")
"""What else it depends on, of what is recorded of a run's environment."""

TIMED_RUNS: Final = 3
"""Of fewer runs it cannot be told whether one of them was undisturbed."""

SAME_TIME: Final = 0.05
"""Two undisturbed runs differ by less than this share of the quicker one's time."""


def _seconds_beside_the_original(
    condition: Condition, arm: str, study: Sequence[Condition]
) -> float | None:
    """The time of an arm's epoch / that of the original's; None where one is not known.

    It is told from all conditions with the same work in which a seed has both on one machine; of
    several machines, from the one with the most of these.
    """
    alike: dict[str, list[tuple[Run, Run]]] = {}
    for other in study:
        if _work(other) == _work(condition):
            for mine, original in other.pairs(arm, ORIGINAL):
                if (machine := _machine(mine)) == _machine(original):
                    alike.setdefault(machine, []).append((mine, original))
    if not alike:
        return None
    mine_too, originals_too = zip(*max(alike.values(), key=len), strict=True)
    cost, original_cost = seconds_an_epoch(mine_too), seconds_an_epoch(originals_too)
    return cost / original_cost if cost and original_cost else None


def _work(condition: Condition) -> list[Any]:
    settings = next(iter(condition.arms.values()))[0].settings
    return [settings.get(name) for name in WORK]


def _machine(run: Run) -> str:
    return repr([run.environment.get(name) for name in MACHINE])


def seconds_an_epoch(runs: Sequence[Run]) -> float | None:
    """What an undisturbed epoch takes, its validation included; None if there may be none.

    It is the least over all epochs of all runs, since runs went side by side with other programs.
    It is trusted if there are `TIMED_RUNS` runs, two of which agree within `SAME_TIME`.
    """
    least = sorted(
        min(times)
        for run in runs
        if (times := [b - a for a, b in pairwise(run.clock) if a is not None and b is not None])
    )
    if len(least) < TIMED_RUNS or least[1] > (1 + SAME_TIME) * least[0]:
        return None
    return least[0]


@dataclass(frozen=True)
class Fit:
    """Accuracies after adaptation on validation tasks, means over a part of the epochs and seeds,
    on the support images and on the query images.
    """

    support: float
    query: float

    @property
    def gap(self) -> float:
        """The inner loop's over-fitting."""
        return self.support - self.query


def fits(runs: Sequence[Run]) -> tuple[Fit, Fit] | None:
    """The fit over the first and the last third of the epochs; None without any validation."""
    curves = []
    for run in runs:
        both = (run.fit["support_accuracy_after"], run.fit["query_accuracy_after"])
        points = [pair for pair in zip(*both, strict=True) if None not in pair]
        if points:
            curves.append(np.asarray(points, dtype=float))
    if not curves:
        return None
    thirds = [math.ceil(len(curve) / 3) for curve in curves]
    parts = zip(curves, thirds, strict=True)
    ends = [(curve[:third].mean(axis=0), curve[-third:].mean(axis=0)) for curve, third in parts]
    first, last = np.mean(ends, axis=0).tolist()
    return Fit(*first), Fit(*last)
