"""Several results of one comparison that differ in their seed, seen together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from gradshare.config import ARM_FIELDS, MACHINE_FIELDS, ORIGINAL, RATE_CONTROL, SHARING
from gradshare.errors import RunError
from gradshare.experiments.results import Arm, Results
from gradshare.experiments.speedup import differences_by_task, paired_difference, results_of
from gradshare.training.statistics import Interval, confidence95, student95

# Settings that tell the runs of one comparison apart, or that change no result.
MAY_DIFFER: Final = frozenset({"seed", *ARM_FIELDS, *MACHINE_FIELDS})


def over_seeds_and_tasks(table: Sequence[npt.NDArray[np.float64]]) -> Interval:
    """The mean of values (tasks,), one row for each seed, the tasks the same in every seed.

    The variance over seeds of their means and that over tasks of theirs are added up. What is left
    of a seed's and a task's meeting is in both, so that the interval errs on the wide side. A
    single seed says nothing about others: the interval is then over tasks.
    """
    values = np.stack(table)
    by_task = confidence95(values.mean(0).tolist())
    if len(values) == 1:
        return by_task
    by_seed = student95(values.mean(1).tolist())
    parts = [interval.ci95 for interval in (by_task, by_seed) if interval.ci95 is not None]
    return Interval(by_seed.mean, math.hypot(*parts), len(values))


def mean_difference(
    results: Sequence[Results], first: str, second: str
) -> tuple[Interval, int] | None:
    """Test accuracy of first - second over the seeds in which both arms trained.

    Args:
        results: one a seed.
        first: an arm's name.
        second: another's.

    Returns:
        the mean, and of how many seeds it is; its interval is over test tasks for a single one,
        over seeds and test tasks for several. None where no seed has both arms trained and tested.
    """
    pairs, rows = [], []
    for one in results:
        arms = trained_pair(one, first, second)
        paired = arms and (one.pair(first, second) or paired_difference(*arms))
        if arms is None or paired is None:
            continue
        pairs.append(paired.interval)
        by_task = differences_by_task(*arms)
        if by_task is not None:
            rows.append(by_task)
    if not pairs:
        return None
    if len(pairs) == 1:
        return pairs[0], 1
    return _over_seeds(pairs, rows), len(pairs)


def mean_of_tested(runs: Iterable[Arm]) -> Interval | None:
    """The mean test accuracy of those of an arm's runs, one a seed, that were tested.

    Its interval is over seeds and test tasks. A single run has none, since it says nothing about
    other seeds.
    """
    runs = [run for run in runs if run.test is not None]
    tests = [run.test.interval for run in runs if run.test is not None]
    rows = [run.test_accuracies for run in runs if run.test_accuracies is not None]
    if not tests:
        return None
    if len(tests) == 1:
        return student95([tests[0].mean])
    return _over_seeds(tests, [np.asarray(row) for row in rows])


def _over_seeds(each: Sequence[Interval], rows: Sequence[npt.NDArray[np.float64]]) -> Interval:
    """The mean of several seeds' values, over seeds and tasks.

    Args:
        each: of every seed, with its interval over tasks.
        rows: the values (tasks,) of the seeds of which they are known.
    """
    if len(rows) == len(each) and len({len(row) for row in rows}) == 1:
        return over_seeds_and_tasks(rows)
    # Of the tasks only each seed's interval is known. Were every task as hard for every seed, that
    # of the mean would be as wide as theirs; it is never wider.
    of_tasks = [one.ci95 for one in each if one.ci95 is not None]
    by_seed = student95([one.mean for one in each])
    half = math.hypot(by_seed.ci95 or 0.0, math.fsum(of_tasks) / len(each))
    return by_seed._replace(ci95=half)


def trained_pair(one: Results, first: str, second: str) -> tuple[Arm, Arm] | None:
    """The arms of these names; None unless both were run and trained."""
    mine, theirs = one.arm(first), one.arm(second)
    if mine is None or theirs is None or not (mine.trained and theirs.trained):
        return None
    return mine, theirs


def one_a_seed(results: Sequence[Results]) -> tuple[Results, ...]:
    """The same results, those of one seed put together, in the order of the seeds.

    Arms that were trained by separate commands are compared as if one command had trained them:
    the test tasks are the same for every run.

    Raises:
        RunError: there are no results, they are not of one comparison, or the run of an arm with
            one seed is there twice, which would make the interval over seeds too small.
    """
    _require_one_comparison(results)
    return by_seed(results)


def by_seed(results: Iterable[Results]) -> tuple[Results, ...]:
    """Those of one seed put together, in the order of the seeds, whatever they are of."""
    found: dict[int, list[Results]] = {}
    for one in results:
        found.setdefault(one.arms[0].seed, []).append(one)
    return tuple(_together(found[seed]) for seed in sorted(found))


def _together(parts: Sequence[Results]) -> Results:
    """Results of one seed that were trained apart, as if one command had trained them.

    Raises:
        ValidationError: two of them have an arm of the same name.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    return results_of(
        [arm for part in parts for arm in part.arms],
        dataset=first.dataset,
        method=first.method,
        config=first.config,
        environment=first.environment,
        command="\n".join(dict.fromkeys(part.command for part in parts)),
    )


def runs_by_arm(results: Sequence[Results]) -> dict[str, tuple[Arm, ...]]:
    """Every arm's runs, one a seed: the original first, then sharing, then the controls."""
    runs: dict[str, list[Arm]] = {name: [] for name in (ORIGINAL, SHARING, RATE_CONTROL)}
    for one in results:
        for arm in one.arms:
            runs.setdefault(arm.name, []).append(arm)
    return {name: tuple(arms) for name, arms in runs.items() if arms}


def seeds_of(results: Sequence[Results]) -> tuple[int, ...]:
    """The seeds, ascending, each once."""
    return tuple(sorted({arm.seed for one in results for arm in one.arms}))


@dataclass(frozen=True)
class Achieved:
    """What the runs of an arm came to, as the legends of the paper's figures say it.

    Where some trained, what they came to is told of these alone; else of all that did not diverge.

    Attributes:
        validation: the highest validation accuracy, with its interval over seeds; None if there is
            none.
        epochs: at which it was reached, as "133", or "120–140" over seeds; empty if there is none.
        test: accuracy, ± over test tasks for one run, as `mean_of_tested` for several; None without
            a test.
        failures: such as "diverged after epoch 3"; of several seeds, "1 of 3 did not train".
    """

    validation: Interval | None
    epochs: str
    test: Interval | None
    failures: tuple[str, ...]


def achieved(runs: Sequence[Arm]) -> Achieved:
    """What the runs of an arm came to, one run a seed."""
    told = [run for run in runs if run.trained] or [r for r in runs if r.outcome != "diverged"]
    best = [run.best for run in told if run.best is not None]
    validation = None
    epochs = ""
    if best:
        reached = [point.epoch for point in best]
        first, last = min(reached), max(reached)
        epochs = str(first) if first == last else f"{first}–{last}"
        validation = student95([point.accuracy for point in best])
    test = mean_of_tested(told)
    if len(runs) == 1 and runs[0].test is not None:
        test = runs[0].test.interval
    return Achieved(validation, epochs, test, tuple(_failures(runs)))


def _failures(runs: Sequence[Arm]) -> list[str]:
    diverged = [run for run in runs if run.outcome == "diverged"]
    untrained = [run for run in runs if run.outcome == "not trained"]
    of = "" if len(runs) == 1 else f" of {len(runs)} "
    words = []
    if diverged:
        after = f" after epoch {diverged[0].epochs}" if diverged[0].epochs else " at once"
        words.append(f"{len(diverged)}{of}diverged" if of else f"diverged{after}")
    if untrained:
        words.append(f"{len(untrained)}{of}did not train" if of else "did not train")
    return words


def _require_one_comparison(results: Sequence[Results]) -> None:
    if not results:
        raise RunError("a report needs at least one results file, got none")
    known: dict[str, object] = {}
    for one in results:
        for what, value in _what_is_compared(one).items():
            if known.setdefault(what, value) != value:
                raise RunError(
                    f"these results are not of one comparison: {what} is {known[what]!r} in one "
                    f"and {value!r} in another; report them apart"
                )
    for name, runs in runs_by_arm(results).items():
        seeds = [run.seed for run in runs]
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            raise RunError(
                f"the run of {name} with seed {twice[0]} is given twice; give each results file "
                "once"
            )


def _what_is_compared(one: Results) -> dict[str, object]:
    """What must not differ between the seeds of a comparison."""
    settings = {key: value for key, value in one.config.items() if key not in MAY_DIFFER}
    # Of other images other test tasks are drawn. Earlier versions did not say of which.
    images = one.environment.get("images_sha256")
    of = {} if images is None else {"the images' SHA-256": images}
    return {
        **settings,
        **of,
        "dataset": one.dataset,
        "method": one.method,
        "chance": one.arms[0].chance,
    }
