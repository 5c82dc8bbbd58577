"""The paper's Table 1 for one comparison, as plain rows of text: column to cell.

The terminal and the report lay out the same rows. Every row has the same columns in the same
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pydantic import JsonValue

from gradshare.config import ORIGINAL, SHARING
from gradshare.experiments import wording
from gradshare.experiments.results import Arm, Results
from gradshare.experiments.seeds import mean_difference, mean_of_tested, one_a_seed, runs_by_arm
from gradshare.experiments.speedup import SHARES, first_epoch, level, ratio_interval
from gradshare.training.statistics import Interval

Row = dict[str, str]

BATCH_NORM: Final = {
    "transductive": "all queries of a task are normalised together, as in the paper: a prediction "
    "depends on the other queries",
    "inductive": "queries are normalised with the support set’s statistics: a prediction depends "
    "on no other query",
}


def comparison_rows(results: Sequence[Results]) -> list[Row]:
    """Table 1: test accuracy of every arm and the speed-ups, a row a seed and one of means.

    Accuracies are those of the ensembles, ± their 95 % interval over test tasks; in the row of
    means it is over seeds and test tasks, as that of the mean difference is. Differences and
    speed-ups are of seeds in which both arms trained. The mean speed-up is that of the geometric
    mean of the ratios of epochs.

    Raises:
        RunError: the results are not of one comparison.
    """
    results = one_a_seed(results)
    rows = [_comparison_row(one, list(runs_by_arm(results))) for one in results]
    if len(results) > 1:
        rows.append(_comparison_means(results))
    if len(results) == 1:
        del rows[0]["seed"]
    return rows


def _comparison_row(one: Results, names: Sequence[str]) -> Row:
    row = {"method/tasks": method_and_tasks(one), "seed": str(one.arms[0].seed)}
    for name in names:
        arm = one.arm(name)
        row[name] = wording.NOTHING if arm is None else tested(arm)
    if ORIGINAL in names and SHARING in names:
        row["difference"] = _difference([one])
        row["speed-up"] = wording.speedup(one.speedup)
        row["speed-up to 95 %"] = wording.speedup(one.speedup_to_reach.get("95"))
    row["batch norm"] = batch_norm(one)
    return row


def _comparison_means(results: Sequence[Results]) -> Row:
    arms = runs_by_arm(results)
    row = {
        "method/tasks": method_and_tasks(results[0]),
        "seed": f"mean of {len(results)}",
    }
    for name, runs in arms.items():
        tested_runs = [run for run in runs if run.trained and run.test is not None]
        mean = mean_of_tested(tested_runs)
        row[name] = wording.NOTHING if mean is None else wording.accuracy(mean)
        row[name] = _of_seeds(row[name], len(tested_runs), len(results))
    if ORIGINAL in arms and SHARING in arms:
        row["difference"] = _difference(results)
        row["speed-up"] = _mean_speedup([one.speedup for one in results])
        row["speed-up to 95 %"] = _mean_speedup([one.speedup_to_reach.get("95") for one in results])
    row["batch norm"] = batch_norm(results[0])
    return row


def arm_rows(results: Sequence[Results]) -> list[Row]:
    """What each run came to: validation, test with the ensemble and with one model, and time.

    Raises:
        RunError: the results are not of one comparison.
    """
    results = one_a_seed(results)
    names = runs_by_arm(results)
    rows = []
    for name in names:
        for one in results:
            arm = one.arm(name)
            if arm is not None:
                row = _arm_row(arm)
                if ORIGINAL in names:
                    row["epochs to 80 / 90 / 95 %"] = _epochs_to_reach(arm, one.arm(ORIGINAL))
                rows.append(row | _times(arm))
    if len(results) == 1:
        for row in rows:
            del row["seed"]
    return rows


def _arm_row(arm: Arm) -> Row:
    best = arm.best
    return {
        "arm": arm.name,
        "seed": str(arm.seed),
        "outcome": arm.outcome,
        "best validation": wording.NOTHING
        if best is None
        else wording.accuracy(Interval(best.accuracy, best.ci95, 0)),
        "best epoch": wording.NOTHING if best is None else str(best.epoch),
        "test, ensemble": wording.NOTHING
        if arm.test is None
        else f"{wording.accuracy(arm.test.interval)} ({arm.test.ensemble})",
        "test, single best": wording.NOTHING
        if arm.test_single is None
        else wording.accuracy(arm.test_single.interval),
    }


def _times(arm: Arm) -> Row:
    an_epoch = wording.duration(arm.seconds / arm.epochs) if arm.epochs else wording.NOTHING
    return {"time": wording.duration(arm.seconds), "time an epoch": an_epoch}


def _epochs_to_reach(arm: Arm, original: Arm | None) -> str:
    if original is None or not original.trained:
        return wording.NOTHING
    epochs = []
    for share in SHARES:
        accuracy = level(original, share)
        epoch = None if accuracy is None else first_epoch(arm, accuracy)
        epochs.append(wording.NOTHING if epoch is None else str(epoch))
    return " / ".join(epochs)


def method_and_tasks(one: Results) -> str:
    """The method and the size of its task batch, as "MAML/5" in Table 1."""
    tasks = one.config.get("task_batch")
    return wording.method(one.method) + ("" if tasks is None else f"/{tasks}")


def batch_norm(one: Results) -> str:
    """The mode that the accuracies were measured in."""
    mode: JsonValue = one.config.get("batch_norm")
    return mode if isinstance(mode, str) else "not recorded"


def tested(arm: Arm) -> str:
    """The test accuracy, or that the arm diverged or did not train."""
    if arm.trained:
        return wording.NOTHING if arm.test is None else wording.accuracy(arm.test.interval)
    if arm.test is None:
        return arm.outcome
    return f"{arm.outcome} ({wording.accuracy(arm.test.interval)})"


def _mean_speedup(speedups: Sequence[float | None]) -> str:
    known = [speedup for speedup in speedups if speedup is not None]
    if not known:
        return wording.NOTHING
    text = wording.speedup_range(ratio_interval([1 + speedup for speedup in known]))
    return _of_seeds(text, len(known), len(speedups))


def _difference(results: Sequence[Results]) -> str:
    """Of sharing and the original, in the seeds in which both trained."""
    mean, count = mean_difference(results, SHARING, ORIGINAL) or (None, 0)
    if mean is None:
        return wording.NOTHING
    if count == 1 < len(results):
        # An interval over tasks would not be what the other cells of the row have.
        mean = mean._replace(ci95=None)
    return _of_seeds(wording.points(mean), count, len(results))


def _of_seeds(text: str, count: int, seeds: int) -> str:
    """A mean, and over how many seeds it is if not over all; a dash is over none."""
    return text if count in (0, seeds) else f"{text} ({count} of {seeds})"
