"""What the results of a comparison say: differences, the verdict, the table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from statistics import NormalDist

import numpy as np
from rich.cells import cell_len, set_cell_size

from gradshare.comparison.results import ArmRun, Results, Values
from gradshare.training.records import ranked
from gradshare.training.statistics import Z95, Interval, confidence95, over_seeds_and_tasks

POWER = 0.8
GAIN = 0.95


@dataclass(frozen=True)
class Difference:
    """The score of first − second, over the seeds in which both trained.

    Attributes:
        rows: the differences by task (tasks,), one row for each of these seeds.
        interval: their mean; over seeds and test tasks of several seeds, over test tasks of one.
            None if no seed has both.
        better: 1 if first is better and the interval excludes 0, −1 if it is worse, else 0.
    """

    first: str
    second: str
    rows: tuple[Values, ...]
    interval: Interval | None
    better: int

    @property
    def seeds(self) -> int:
        """The number of seeds in which both trained."""
        return len(self.rows)

    @property
    def detectable(self) -> float | None:
        """The smallest difference that would have been seen with a power of 80 %."""
        if self.interval is None or self.interval.ci95 is None:
            return None
        return self.interval.ci95 * (1 + NormalDist().inv_cdf(POWER) / Z95)


def difference(results: Results, first: str, second: str) -> Difference:
    """Compare two arms by the score."""
    others = {run.seed: run for run in results.of(second) if run.trained}
    rows = tuple(
        np.subtract(run.test[results.score], others[run.seed].test[results.score])
        for run in results.of(first)
        if run.trained and run.seed in others
    )
    interval = over_seeds_and_tasks(rows) if rows else None
    better = 0
    if interval is not None and interval.ci95 is not None and abs(interval.mean) > interval.ci95:
        high = results.metrics[results.score].best == "high"
        better = 1 if (interval.mean > 0) == high else -1
    return Difference(first, second, rows, interval, better)


def counted(runs: Sequence[ArmRun]) -> list[ArmRun]:
    """The runs of an arm that its test values are means over: those that trained. If none did,
    those that were tested and did not diverge.
    """
    trained = [run for run in runs if run.trained]
    return trained or [run for run in runs if run.test and run.outcome != "diverged"]


def mean_score(runs: Sequence[ArmRun], metric: str) -> Interval | None:
    """The mean of a metric over the runs of an arm that count; None if there are none."""
    rows = [np.asarray(run.test[metric]) for run in counted(runs)]
    return over_seeds_and_tasks(rows) if rows else None


def epochs_to_gain(results: Results, run: ArmRun) -> int | None:
    """The first epoch in which a run's validation score reaches 95 % of the baseline's gain.

    The gain is that of the baseline's run of the same seed, to its best, from chance. A metric
    without chance counts from the first epoch.
    """
    baseline = next((r for r in results.of(results.baseline) if r.seed == run.seed), None)
    if baseline is None or not baseline.history or baseline.outcome != "trained":
        return None
    metric, score = results.metrics[results.score], results.score
    origin = metric.chance if metric.chance is not None else baseline.history[0].mean(score)
    best = ranked(baseline.history, metric, score)[0].mean(score)
    level = metric.rank(origin + GAIN * (best - origin))
    return next((r.epoch for r in run.history if metric.rank(r.mean(score)) <= level), None)


ENOUGH_SEEDS = 3
"""Fewer seeds decide nothing: rounding alone, like another seed, moves a run by more than its
interval over test tasks says.
"""

FEW_IN_HEADLINE = 3
MOST_SENTENCES = 12


@dataclass(frozen=True)
class Verdict:
    """What a reader should take away.

    Attributes:
        headline: one sentence that is true without the others.
        sentences: the differences behind it, and the arms that failed.
        caveats: what limits these conclusions.
    """

    headline: str
    sentences: tuple[str, ...]
    caveats: tuple[str, ...]

    def __str__(self) -> str:
        """Each sentence in a line."""
        return "\n".join((self.headline, *self.sentences, *self.caveats))


def verdict(results: Results) -> Verdict:
    """Say what a comparison shows."""
    baseline = results.baseline
    arms = [arm for arm in results.arms if arm not in (baseline, *results.controls)]
    found = [difference(results, arm, baseline) for arm in arms or results.controls]
    if not found:
        headline = _alone(results)
    elif len(found) <= FEW_IN_HEADLINE:
        headline = " ".join(_headline(results, each) for each in found)
    else:
        headline = _summary(results, found)
    if 0 < max((each.seeds for each in found), default=0) < ENOUGH_SEEDS:
        headline = f"Too few seeds to decide. So far: {headline}"
    sentences = list(islice(_sentences(results, found), MOST_SENTENCES + 1))
    if len(sentences) > MOST_SENTENCES:
        sentences[-1] = "The table has the differences of all arms."
    return Verdict(headline, tuple(sentences), tuple(_caveats(results, found)))


def _headline(results: Results, found: Difference) -> str:
    names = f"“{found.first}” and “{found.second}”"
    if found.interval is None:
        return f"{names} cannot be compared: no seed has both trained."
    over = results.where + results.among_seeds(found.seeds)
    if found.better == 0:
        return f"No difference between {names} can be told from these numbers{over}."
    word = "better" if found.better > 0 else "worse"
    beside = ""
    if found.better > 0 and found.first not in results.controls:
        beside = _beside_controls(results, found.first)
    return f"“{found.first}” was {word} than “{found.second}”{over}{beside}."


def _beside_controls(results: Results, arm: str) -> str:
    """How an arm that was better than the baseline did beside its strongest control."""
    found = [difference(results, arm, control) for control in results.controls]
    known = [each for each in found if each.interval is not None]
    if not known:
        why = "no control trained" if results.controls else "no control was run"
        return f"; {why}, so it stays open why"
    strongest = min(known, key=lambda each: each.better)
    control = f"“{strongest.second}”"
    if strongest.better > 0:
        return f", and better than {control}"
    if strongest.better < 0:
        return f", but {control}, a control, did better still"
    return (
        f", but not distinguishably better than {control}, a control: the gain is not shown to "
        f"come from what “{arm}” adds"
    )


def _summary(results: Results, found: list[Difference]) -> str:
    """The number of arms that differ from the baseline, in one sentence."""
    words = {1: "better", -1: "worse", 0: "not distinguishable", None: "not trained"}
    counts = Counter(None if each.interval is None else each.better for each in found)
    said = ", ".join(f"{counts[key]} {word}" for key, word in words.items() if counts[key])
    return f"Of {len(found)} arms compared with “{results.baseline}”{results.where}: {said}."


def _sentences(results: Results, found: list[Difference]) -> Iterator[str]:
    """Which arms failed, and how the others differ from the baseline and the controls."""
    for arm in results.arms:
        runs = results.of(arm)
        for outcome, word in (("diverged", "diverged"), ("not trained", "did not train")):
            failed = [run for run in runs if run.outcome == outcome]
            if failed:
                where = f" ({failed[0].message})" if failed[0].message else ""
                yield f"“{arm}” {word} in {len(failed)} of {len(runs)} runs{where}."
    for first in found:
        others = [control for control in results.controls if control != first.first]
        for each in (first, *(difference(results, first.first, other) for other in others)):
            if each.interval is not None:
                yield _difference(results, each, each.interval)


def _difference(results: Results, found: Difference, interval: Interval) -> str:
    metric = results.metrics[results.score]
    over = f"{found.seeds} seeds" if found.seeds > 1 else "the test tasks of one seed"
    text = f"“{found.first}” − “{found.second}” in {results.score}{results.where}: "
    if interval.mean == 0 == interval.ci95:
        return f"{text}none on any test task, over {over}."
    text += f"{metric.show_difference(interval)} over {over}, "
    if found.better:
        return f"{text}distinguishable from zero."
    seen = ""
    if found.detectable is not None and math.isfinite(found.detectable):
        size = f"{metric.factor * found.detectable:.{metric.digits(interval)}f}"
        size = f"{size} {metric.unit_of_differences}".rstrip()
        seen = f" (a difference of {size} would have been seen)"
    return f"{text}not distinguishable from zero{seen}."


def _alone(results: Results) -> str:
    found = mean_score(results.of(results.baseline), results.score)
    if found is None:
        return f"“{results.baseline}” was not tested."
    shown = results.metrics[results.score].show(found)
    return f"“{results.baseline}” has a test {results.score}{results.where} of {shown}."


def _caveats(results: Results, found: list[Difference]) -> Iterator[str]:
    if any(0 < each.seeds < ENOUGH_SEEDS for each in found):
        yield (
            "One or two seeds say little about others: rounding alone can move a run by more than "
            "its interval over tasks. Compare at least three (seeds=3, --seeds 3)."
        )
    if found and not results.controls:
        yield (
            "There was no control. If an arm changes more than one thing at a time, such as the "
            "size of its steps, only a control that leaves one of them out shows which one matters."
        )
    means = [mean_score(results.of(arm), results.score) for arm in results.arms]
    scale = results.metrics[results.score]
    for name, metrics in results.yardsticks.items():
        if results.score not in metrics:
            continue
        easy = confidence95(metrics[results.score])
        if not any(mean and scale.rank(mean.mean) <= scale.rank(easy.mean) for mean in means):
            yield (
                f"“{name}”, which needs no meta-training, has a test {results.score}"
                f"{results.where} of {scale.show(easy)}: better than each arm."
            )


NOTHING = "–"

FEW_ARMS = 5
"""Up to this number the arms are the columns of the table, which is narrower then."""

Row = dict[str, str]


def as_text(results: Results) -> str:
    """The table, the verdict and the notes."""
    table = cells(arm_rows(results))
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(set_cell_size(cell, width) for cell, width in zip(line, widths, strict=True))
        for line in table
    ]
    return "\n".join((*map(str.rstrip, lines), "", str(verdict(results)), *results.notes))


def arm_rows(results: Results) -> list[Row]:
    """One row for each arm, and for each yardstick."""
    rows = [_arm_row(results, arm) for arm in results.arms]
    for name, metrics in results.yardsticks.items():
        scores = {
            f"test {metric}{results.where}": results.metrics[metric].show(confidence95(values))
            for metric, values in metrics.items()
        }
        rows.append({**dict.fromkeys(rows[0], NOTHING), "arm": name, "role": "yardstick", **scores})
    return rows


def cells(rows: list[Row]) -> list[list[str]]:
    """Lines of cells, the heading first. A few rows become columns."""
    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    return [list(column) for column in zip(*table, strict=True)] if len(rows) <= FEW_ARMS else table


def _arm_row(results: Results, arm: str) -> Row:
    runs, score = results.of(arm), results.metrics[results.score]
    role = "baseline" if arm == results.baseline else ""
    row = {"arm": arm, "role": "control" if arm in results.controls else role}
    for name, metric in results.metrics.items():
        mean, over = mean_score(runs, name), results.among_seeds(len(counted(runs)))
        row[f"test {name}{results.where}"] = NOTHING if mean is None else metric.show(mean) + over
    for other in (results.baseline, *results.controls):
        found = difference(results, arm, other)
        row[f"− {other}"] = NOTHING
        if found.interval is not None and arm != other:
            shown = score.show_difference(found.interval)
            row[f"− {other}"] = shown + results.among_seeds(found.seeds)
    best = [ranked(run.history, score, results.score)[0].epoch for run in runs if run.history]
    row["best epoch"] = span(best) or NOTHING
    reached = [epochs_to_gain(results, run) for run in runs]
    row["epochs to 95 % of the baseline’s gain"] = ", ".join(str(e or NOTHING) for e in reached)
    seconds = sum(run.training_seconds for run in runs) / len(runs)
    row["training time (h:mm:ss)"] = str(timedelta(seconds=round(seconds)))
    row["trained"] = f"{sum(run.outcome == 'trained' for run in runs)} of {len(runs)}"
    return row


def span(numbers: Sequence[float]) -> str:
    """Such as "5", or "3–5"; empty for no numbers."""
    return "–".join(str(n) for n in sorted({min(numbers), max(numbers)})) if numbers else ""
