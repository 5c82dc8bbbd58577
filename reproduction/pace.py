"""How soon arms learn, and how well their inner loops fit support and query images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from gradshare.config import ORIGINAL
from reproduction.conditions import Condition
from reproduction.records import Run

SHARES: Final = (80, 90, 95)
"""Percent of the original's gain over chance."""

FLAT: Final = 0.05
"""A curve has flattened when the mean of its last quarter is within this share of the whole gain
over chance of the mean of the quarter before."""

LONG: Final = 20
"""The validations that are needed to say whether a curve has flattened."""


def paper_speedup(original: Run, other: Run) -> float | None:
    """(Epoch_OG - Epoch_GS) / Epoch_GS of the epochs of the best validation accuracy (paper, §3).

    Returns:
        0.66 for the paper's "66 %"; None unless both trained.
    """
    if not (original.trained and other.trained and original.best_epoch and other.best_epoch):
        return None
    return (original.best_epoch - other.best_epoch) / other.best_epoch


def level(original: Run, share: int) -> float:
    """Chance + a share, in percent, of the original's highest gain over chance."""
    return original.chance + share / 100 * (max(original.validation) - original.chance)


def speedup_to_reach(original: Run, other: Run, share: int) -> float | None:
    """The paper's ratio for the first epochs at which both reach a share of the original's gain.

    These epochs depend less on noise than those of a flat curve's maximum.
    """
    if not (original.trained and other.trained):
        return None
    accuracy = level(original, share)
    slow, fast = (
        next((epoch for epoch, value in enumerate(run.validation, 1) if value >= accuracy), None)
        for run in (original, other)
    )
    return None if slow is None or fast is None else (slow - fast) / fast


def smoothed(run: Run) -> Run:
    """The run with a centred running mean over three validations.

    The first value is kept: the curve is steep there. The last is left out: it has no neighbour,
    and the highest of noisy values is too high.
    """
    curve = run.validation
    middle = [math.fsum(near) / 3 for near in zip(curve, curve[1:], curve[2:], strict=False)]
    values = (*curve[:1], *middle)
    return run.model_copy(update={"validation": values, "ci95": run.ci95[: len(values)]})


def crossing(run: Run, accuracy: float) -> float | None:
    """The epoch at which a validation curve first reaches an accuracy.

    The curve is straight from one validation to the next.

    Returns:
        None if it never does; 1 if it has done so by its first validation.
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

    All but `seeds` is of the seeds in which the original's gain is large enough to tell its shares
    apart.

    Attributes:
        seeds: how many the arm has.
        iterations: of the arm for each seed; None if it never got there.
        at_once: whether the arm was there at its first validation in some seed, so that it may have
            been sooner.
        ratios: original / arm in iterations for each seed. Empty if the arm did not get there in
            one of them, if both were there at once in one, or if some are lower and others upper
            bounds: then their mean is unknown.
        bound: "≥" if the ratios are lower bounds, since the arm was there at once in some seed;
            "≤" if the original was; else "".
    """

    seeds: int
    iterations: tuple[float | None, ...]
    at_once: bool
    ratios: tuple[float, ...]
    bound: str

    @property
    def arrived(self) -> int:
        """In how many seeds the arm got there."""
        return sum(count is not None for count in self.iterations)


def paces(condition: Condition, arm: str) -> list[Pace]:
    """For each of `SHARES`, on smoothed curves, how soon an arm was there."""
    runs = condition.runs(arm)
    pairs = [(smoothed(run), smoothed(other)) for run, other in condition.pairs(arm, ORIGINAL)]
    clear = [(run, original) for run, original in pairs if _shares_are_apart(original)]
    return [_pace(len(runs), clear, share) for share in SHARES]


def _pace(seeds: int, pairs: Sequence[tuple[Run, Run]], share: int) -> Pace:
    """How soon an arm was there; `pairs` are the arm's runs and the original's, smoothed."""
    here = [crossing(run, level(original, share)) for run, original in pairs]
    there = [crossing(original, level(original, share)) for _, original in pairs]
    known = [(h, t) for h, t in zip(here, there, strict=True) if h and t and not h == t == 1]
    bounds = {"≥" if h == 1 else "≤" for h, t in known if 1 in (h, t)}
    if len(known) < len(pairs) or len(bounds) > 1:
        known, bounds = [], set()
    epochs = [run.settings["iterations_per_epoch"] for run, _ in pairs]
    return Pace(
        seeds,
        tuple(h and h * epoch for h, epoch in zip(here, epochs, strict=True)),
        1 in here,
        tuple(t / h for h, t in known),
        "".join(bounds),
    )


def _shares_are_apart(original: Run) -> bool:
    """Whether the smallest and the largest of `SHARES` are further apart than a validation errs."""
    best = original.best
    if not original.trained or best is None or best.ci95 is None:
        return False
    return (SHARES[-1] - SHARES[0]) / 100 * (best.mean - original.chance) > best.ci95


WORK: Final = (
    *("dataset", "image_size", "method", "ways", "shots", "queries", "task_batch", "inner_steps"),
    *("filters", "order", "iterations_per_epoch", "val_tasks"),
)
"""Settings that an epoch's time depends on."""

MACHINE: Final = ("device", "gpu", "processor", "cores", "threads", "torch", "layout", "commit")
"""What else it depends on, by the names in a run's environment."""

TIMED_RUNS: Final = 3
"""The runs that are needed to say whether one of them was undisturbed."""

SAME_TIME: Final = 0.05
"""Two undisturbed runs differ by less than this share of the quicker one's time."""


def cost_of_epoch(condition: Condition, arm: str, study: Sequence[Condition]) -> float | None:
    """The time of an arm's epoch / that of the original's; None if one of them is not known.

    Both times come from all conditions of the study with the same work, from the seeds that have
    both runs on one machine. Of several machines the one with the most such seeds counts.
    """
    alike: dict[str, list[tuple[Run, Run]]] = {}
    for other in study:
        one, two = condition.first_run.settings, other.first_run.settings
        if all(one.get(name) == two.get(name) for name in WORK):
            for pair in other.pairs(arm, ORIGINAL):
                machines = {repr([run.environment.get(n) for n in MACHINE]) for run in pair}
                if len(machines) == 1:
                    alike.setdefault(machines.pop(), []).append(pair)
    if not alike:
        return None
    most = max(alike.values(), key=len)
    mine, original = (seconds_an_epoch(runs) for runs in zip(*most, strict=True))
    return mine / original if mine and original else None


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


def fits(runs: Sequence[Run]) -> list[tuple[float, float]]:
    """Mean accuracy on support and query images after adaptation, on validation tasks, in the first
    and in the last third of the epochs; empty without any validation.
    """
    ends = []
    for run in runs:
        both = run.fit["support_accuracy_after"], run.fit["query_accuracy_after"]
        known = np.array([pair for pair in zip(*both, strict=True) if None not in pair], float)
        if known.size:
            third = math.ceil(len(known) / 3)
            ends.append([part.mean(axis=0) for part in (known[:third], known[-third:])])
    return [(support, query) for support, query in np.mean(ends, axis=0)] if ends else []
