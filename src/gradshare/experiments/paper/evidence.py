"""What a comparison of arms shows, and what it could not have shown.

Test accuracies are compared task by task: all arms see the same test tasks, in every seed. Where
there are several seeds, an interval covers both that other seeds would give other numbers and that
other tasks would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from gradshare.config import ORIGINAL
from gradshare.experiments.paper.conditions import Condition
from gradshare.experiments.results import Arm, ShareOfGain
from gradshare.experiments.seeds import over_seeds_and_tasks
from gradshare.experiments.speedup import SHARES, level, paper_speedup
from gradshare.training.statistics import Z95, Interval, best_epoch, confidence95, student975

SMOOTHED_OVER: Final = 3
"""Validations that a smoothed curve takes together."""

FLAT: Final = 0.05
"""A curve has flattened when its last quarter is, on average, within this share of the whole gain
over chance of the quarter before."""

LONG: Final = 20
"""With fewer validations nobody can say that a curve has flattened."""

WIDTHS: Final = 200
"""So many widths of an interval stand for all."""

SEEN: Final = 0.8
"""How often a difference that could have been seen would have been: about four times in five."""


@dataclass(frozen=True)
class Difference:
    """One arm's test accuracy less another's.

    Attributes:
        interval: the mean difference, over seeds and tasks.
        count: how many seeds have both arms.
        detectable: the smallest true difference that so many values, if they differ as much as
            these, would show to be other than zero about four times in five; None from a single
            seed, which does not say how much seeds differ, or a single task.
    """

    interval: Interval
    count: int
    detectable: float | None


def differences(condition: Condition, first: str, second: str) -> list[Interval]:
    """Test accuracy of first - second for each seed that has both, over the test tasks."""
    return [confidence95(row.tolist()) for row in _by_task(condition, first, second).values()]


def difference(condition: Condition, first: str, second: str) -> Difference | None:
    """Test accuracy of first - second; None where no seed has both."""
    return pooled_difference([condition], first, second)


def pooled_difference(
    conditions: Sequence[Condition], first: str, second: str
) -> Difference | None:
    """Test accuracy of first - second, the mean over conditions with the same test tasks.

    Conditions share their seeds and tasks, so that they are no independent values: each seed's
    differences are averaged task by task first, and the interval is over seeds and tasks.

    Returns:
        None unless there is a seed that has both arms in every condition.
    """
    tables = [_by_task(condition, first, second) for condition in conditions]
    seeds = set[int].intersection(*(set(table) for table in tables))
    rows = [np.mean([table[seed] for table in tables], axis=0) for seed in sorted(seeds)]
    return _over_seeds(rows)


def change(after: Condition, before: Condition, first: str, second: str) -> Difference | None:
    """How much larger first - second is in one condition than in another with the same test tasks,
    seed by seed and task by task; None unless there is a seed that has both arms in both.
    """
    tables = [_by_task(condition, first, second) for condition in (after, before)]
    seeds = tables[0].keys() & tables[1].keys()
    return _over_seeds([tables[0][seed] - tables[1][seed] for seed in sorted(seeds)])


def _over_seeds(rows: Sequence[npt.NDArray[np.float64]]) -> Difference | None:
    """The mean of values (tasks,) of each seed; None of no seed."""
    if not rows:
        return None
    return Difference(over_seeds_and_tasks(rows), len(rows), _detectable(np.stack(rows)))


def _detectable(values: npt.NDArray[np.float64]) -> float | None:
    """The smallest true difference that values (seeds, tasks) like these would show to be one."""
    seeds, tasks = values.shape
    if min(seeds, tasks) < 2:
        return None
    by_seed, by_task = values.mean(1), values.mean(0)
    rest = values - by_seed[:, None] - by_task + values.mean()
    freedom = (seeds - 1) * (tasks - 1)
    return detectable(
        float(by_seed.std(ddof=1)) / math.sqrt(seeds),
        float(by_task.std(ddof=1)) / math.sqrt(tasks),
        math.sqrt(float(np.square(rest).sum()) / freedom / (seeds * tasks)),
        freedom=seeds - 1,
    )


def detectable(by_seed: float, by_task: float, of_both: float, *, freedom: int) -> float:
    """The smallest true difference that the interval of `over_seeds_and_tasks` would leave zero
    out of in four cases of five.

    Of so few seeds the interval is now much too wide and now too narrow, so that its usual width
    does not say how often it leaves zero out: that is averaged over the widths that it would have.

    Args:
        by_seed: the standard error of the mean by the means of the seeds.
        by_task: that by the means of the tasks.
        of_both: that of what neither a seed nor a task explains, which is in both of these.
        freedom: degrees of freedom of the first.
    """
    error = math.sqrt(max(by_seed**2 + by_task**2 - of_both**2, by_seed**2, by_task**2))
    if error == 0:
        return 0.0
    # A standard deviation of few values, as a multiple of the true one, and how often it is that.
    multiples = (np.arange(WIDTHS) + 0.5) / WIDTHS * (1 + 4 / math.sqrt(freedom))
    logs = (freedom - 1) * np.log(multiples) - freedom * np.square(multiples) / 2
    often = np.exp(logs - logs.max())
    halves = np.hypot(student975(freedom) * by_seed * multiples, Z95 * by_task) / error
    low, high = 0.0, float(halves[-1]) + 4
    for _ in range(40):
        true = (low + high) / 2
        seen = [_normal(true - half) + _normal(-true - half) for half in halves]
        if np.average(seen, weights=often) < SEEN:
            low = true
        else:
            high = true
    return high * error


def _normal(z: float) -> float:
    """The share of a standard normal distribution below z."""
    return math.erfc(-z / math.sqrt(2)) / 2


def mean_test_accuracy(runs: Sequence[Arm]) -> Interval | None:
    """The mean test accuracy of an arm's runs, one a seed.

    A run that diverged before it was ever validated has learned nothing and guesses.
    """
    known = [run for run in runs if run.test_accuracies is not None]
    if not known:
        return None
    tasks = len(known[0].test_accuracies or ())
    return over_seeds_and_tasks([_accuracies(run, tasks) for run in runs])


def smoothed(arm: Arm) -> Arm:
    """The arm with a validation curve that is a centred running mean.

    The first values, which have no neighbours before them, keep their own: the curve is steep
    there. The last, which have none behind them, are left out: the highest of noisy values is no
    level.
    """
    curve = arm.validation
    half = SMOOTHED_OVER // 2
    points = []
    for place, point in enumerate(curve[: max(1, len(curve) - half)]):
        reach = min(half, place, len(curve) - 1 - place)
        near = curve[place - reach : place + reach + 1]
        mean = math.fsum(v.accuracy for v in near) / len(near)
        points.append(point.model_copy(update={"accuracy": mean}))
    best = best_epoch([p.epoch for p in points], [p.accuracy for p in points]) if points else None
    return arm.model_copy(update={"validation": tuple(points), "best_epoch": best})


def crossing(arm: Arm, accuracy: float) -> float | None:
    """The epoch at which a validation curve, straight from point to point, first has an accuracy.

    Whole epochs would be too coarse a measure: of a few, the ratio of two arms takes few values,
    and three seeds that agree by chance would have an interval without width.

    Returns:
        None if it never has it; 1 if it had it at its first validation, or sooner.
    """
    curve = arm.validation
    if curve and curve[0].accuracy >= accuracy:
        return curve[0].epoch
    for before, after in pairwise(curve):
        if after.accuracy >= accuracy:
            part = (accuracy - before.accuracy) / (after.accuracy - before.accuracy)
            return before.epoch + part * (after.epoch - before.epoch)
    return None


def flattened(arm: Arm) -> bool:
    """Whether a run was long enough, and steady enough, for its best epoch to mean something."""
    accuracies = [point.accuracy for point in arm.validation]
    if len(accuracies) < LONG or not arm.trained:
        return False
    quarter = len(accuracies) // 4
    last = math.fsum(accuracies[-quarter:]) / quarter
    before = math.fsum(accuracies[-2 * quarter : -quarter]) / quarter
    steady = abs(last - before) <= FLAT * (max(accuracies) - arm.chance)
    # The formula takes the one of the curve as it is; that of the smoothed one is no luck.
    best = [arm.best_epoch, smoothed(arm).best_epoch]
    latest = arm.validation[-quarter - 1].epoch
    return steady and all(epoch is not None and epoch <= latest for epoch in best)


@dataclass(frozen=True)
class Pace:
    """How soon an arm reached a share of the original's gain over chance.

    Attributes:
        share: of the gain, in percent.
        told: for each seed of the arm, whether the original has a gain there whose shares can be
            told apart, so that there is something to reach.
        iterations: for each seed, between two validations by a straight line; None where it never
            did, or where there is nothing to reach.
        at_once: for each seed, whether that was at the first validation, so that it may have been
            sooner.
        ratios: original / arm in iterations, for each seed in which there is something to reach.
            None of them where the arm did not get there in each of these, where both were there at
            once in one, of which nothing is known, or where some are at least and others at most
            what they are: then nothing is known of their mean.
        seconds: the same in seconds; none where the time of an epoch cannot be trusted.
        bound: "≥" where the ratios are at least so large, since the arm was there at once in some;
            "≤" where at most, since the original was; "" where they are what they are.
    """

    share: ShareOfGain
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
    """For each share, on smoothed curves, how soon an arm was there, and beside the original.

    Args:
        condition: in which.
        arm: its name.
        study: all conditions of the study, from which the time of an epoch is told.
    """
    dearer = _seconds_beside_the_original(condition, arm, study)
    pairs = [
        (
            smoothed(mine),
            None if (original := one.arm(ORIGINAL)) is None else smoothed(original),
            one.config["iterations_per_epoch"],
        )
        for one in condition.results
        if (mine := one.arm(arm)) is not None
    ]
    return [_pace(pairs, share, dearer) for share in SHARES]


def _pace(
    pairs: Sequence[tuple[Arm, Arm | None, JsonValue]], share: ShareOfGain, dearer: float | None
) -> Pace:
    """How soon an arm was there.

    Args:
        pairs: for each seed its run, the original's, both smoothed, and the iterations of an epoch.
        share: of the original's gain.
        dearer: its time for an epoch / the original's; None where that cannot be trusted.
    """
    told: list[bool] = []
    iterations: list[float | None] = []
    at_once: list[bool] = []
    ratios: list[float | None] = []
    bounds: set[Literal["≥", "≤"]] = set()
    for mine, original, an_epoch in pairs:
        accuracy = None if original is None else _level(original, share)
        here = None if accuracy is None else crossing(mine, accuracy)
        told.append(accuracy is not None)
        assert isinstance(an_epoch, int)
        iterations.append(None if here is None else here * an_epoch)
        at_once.append(here == 1)
        if original is None or accuracy is None:
            continue
        there = crossing(original, accuracy)
        if here is None or there is None or here == there == 1:
            ratios.append(None)
            continue
        ratios.append(there / here)
        if here == 1:
            bounds.add("≥")
        elif there == 1:
            bounds.add("≤")
    sound = [ratio for ratio in ratios if ratio is not None]
    if len(sound) < len(ratios) or len(bounds) > 1:
        sound.clear()
        bounds.clear()
    return Pace(
        share,
        tuple(told),
        tuple(iterations),
        tuple(at_once),
        tuple(sound),
        () if dearer is None else tuple(ratio / dearer for ratio in sound),
        next(iter(bounds), ""),
    )


def _level(original: Arm, share: ShareOfGain) -> float | None:
    """The accuracy at a share of its gain; None where the first and the last of `SHARES` are no
    further apart than a validation errs.
    """
    best = original.best
    if best is None or best.ci95 is None:
        return None
    apart = (int(SHARES[-1]) - int(SHARES[0])) / 100
    distinct = apart * (best.accuracy - original.chance) > best.ci95
    return level(original, share) if distinct else None


WORK: Final = (
    *("dataset", "image_size", "method", "ways", "shots", "queries", "task_batch", "inner_steps"),
    *("filters", "order", "iterations_per_epoch", "val_tasks"),
)
"""Settings that an epoch's time hangs on. The inner rate is none of them."""

MACHINE: Final = ("device", "gpu", "processor", "cores", "threads", "torch", "layout", "commit")
"""What else it hangs on, of what is recorded of a run's environment; one commit may be faster."""

TIMED_RUNS: Final = 3
"""Of fewer runs nobody can say that one of them was undisturbed."""

SAME_TIME: Final = 0.05
"""Two undisturbed runs differ by less than this share of the quicker one's time."""


def _seconds_beside_the_original(
    condition: Condition, arm: str, study: Sequence[Condition]
) -> float | None:
    """The time of an arm's epoch / that of the original's; None where one cannot be trusted.

    By all conditions with the same work in which a seed has both on one `MACHINE`, so that both
    had as many chances of a quiet moment. Where there are several machines it is the one with the
    most of these.
    """
    alike: dict[str, list[tuple[Arm, Arm]]] = {}
    for other in study:
        if _work(other) != _work(condition):
            continue
        originals = dict(_with_machine(other, ORIGINAL))
        for (seed, machine), mine in _with_machine(other, arm):
            if (original := originals.get((seed, machine))) is not None:
                alike.setdefault(machine, []).append((mine, original))
    if not alike:
        return None
    mine_too, originals_too = zip(*max(alike.values(), key=len), strict=True)
    cost, original_cost = seconds_an_epoch(mine_too), seconds_an_epoch(originals_too)
    return cost / original_cost if cost and original_cost else None


def _work(condition: Condition) -> list[JsonValue]:
    return [condition.parts[0].config.get(name) for name in WORK]


def _with_machine(condition: Condition, arm: str) -> Iterator[tuple[tuple[int, str], Arm]]:
    """The runs of an arm, under their seed and what they ran on."""
    for part in condition.parts:
        if (run := part.arm(arm)) is not None:
            machine = repr([part.environment.get(name) for name in MACHINE])
            yield (run.seed, machine), run


def seconds_an_epoch(runs: Sequence[Arm]) -> float | None:
    """What an epoch of an arm takes, its validation included; None where that cannot be trusted.

    The least over all epochs of all runs: runs go side by side, on a machine that does other things
    too, and what they wait for is no cost of theirs. That it is the time of an undisturbed epoch is
    believed if there are `TIMED_RUNS` runs, of which two come to the same within `SAME_TIME`.
    """
    least = sorted(min(times) for run in runs if (times := _epoch_times(run)))
    if len(least) < TIMED_RUNS or least[1] > (1 + SAME_TIME) * least[0]:
        return None
    return least[0]


def _epoch_times(run: Arm) -> list[float]:
    """In seconds, of all epochs of which it was recorded."""
    return [
        later.seconds - earlier.seconds
        for earlier, later in pairwise(run.validation)
        if earlier.seconds is not None and later.seconds is not None
    ]


def papers_speedups(condition: Condition, arm: str) -> list[float | None]:
    """The paper's formula for each seed; None where a curve has not flattened."""
    ratios: list[float | None] = []
    for one in condition.results:
        mine, original = one.arm(arm), one.arm(ORIGINAL)
        if mine is None or original is None:
            continue
        flat = flattened(mine) and flattened(original)
        ratios.append(paper_speedup(original, mine) if flat else None)
    return ratios


@dataclass(frozen=True)
class Fit:
    """Accuracies after adaptation on validation tasks, means over a part of the epochs and seeds.

    Attributes:
        support: on the images that were adapted to.
        query: on the others.
    """

    support: float
    query: float

    @property
    def gap(self) -> float:
        """The inner loop's over-fitting."""
        return self.support - self.query


def fits(runs: Sequence[Arm]) -> tuple[Fit, Fit] | None:
    """Of the first and the last third of the epochs; None where no run was ever validated."""
    curves = [
        [
            (point.support_accuracy_after, point.query_accuracy_after)
            for point in run.inner_loop
            if point.support_accuracy_after is not None and point.query_accuracy_after is not None
        ]
        for run in runs
    ]
    curves = [curve for curve in curves if curve]
    if not curves:
        return None

    def mean(part: Callable[[list[tuple[float, float]]], list[tuple[float, float]]]) -> Fit:
        support, query = np.mean([np.mean(part(curve), axis=0) for curve in curves], axis=0)
        return Fit(float(support), float(query))

    first = mean(lambda curve: curve[: math.ceil(len(curve) / 3)])
    last = mean(lambda curve: curve[-math.ceil(len(curve) / 3) :])
    return first, last


def _by_task(condition: Condition, first: str, second: str) -> dict[int, npt.NDArray[np.float64]]:
    """For each seed that has both arms, first - second on each test task (tasks,)."""
    pairs = {
        mine.seed: (mine, theirs)
        for one in condition.results
        if (mine := one.arm(first)) is not None and (theirs := one.arm(second)) is not None
    }
    counts = {
        len(run.test_accuracies)
        for pair in pairs.values()
        for run in pair
        if run.test_accuracies is not None
    }
    if len(counts) != 1:  # nothing was tested; or of other numbers of tasks no task is the other's
        return {}
    (tasks,) = counts
    return {
        seed: _accuracies(mine, tasks) - _accuracies(theirs, tasks)
        for seed, (mine, theirs) in pairs.items()
    }


def _accuracies(run: Arm, tasks: int) -> npt.NDArray[np.float64]:
    """Of each test task; chance where a run diverged before it had learned anything."""
    if run.test_accuracies is None:
        return np.full(tasks, run.chance)
    return np.asarray(run.test_accuracies)
