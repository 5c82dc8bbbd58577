"""The table of a comparison, for the terminal and the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gradshare.comparison.results import Results, best_epoch
from gradshare.comparison.statistics import difference, epochs_to_gain, test_score
from gradshare.comparison.verdict import show_difference
from gradshare.training.statistics import confidence95

NOTHING = "–"

Row = dict[str, str]


def arm_rows(results: Results) -> list[Row]:
    """One row for each arm, and for each yardstick."""
    rows = [_arm_row(results, arm) for arm in results.arms]
    for name, metrics in results.yardsticks.items():
        scores = {
            f"test {metric}": results.metric(metric).show(confidence95(values))
            for metric, values in metrics.items()
        }
        rows.append({**dict.fromkeys(rows[0], NOTHING), "arm": name, "role": "yardstick", **scores})
    return rows


def _arm_row(results: Results, arm: str) -> Row:
    runs, score = results.of(arm), results.metric(results.score)
    role = "baseline" if arm == results.baseline else ""
    row = {"arm": arm, "role": "control" if arm in results.controls else role}
    for name in results.metrics:
        found = test_score(runs, name)
        row[f"test {name}"] = NOTHING if found is None else results.metric(name).show(found)
    for other in (results.baseline, *results.controls):
        against = difference(results, arm, other).interval if arm != other else None
        row[f"− {other}"] = NOTHING if against is None else show_difference(score, against)
    reached = [epochs_to_gain(results, run) for run in runs]
    row["best epoch"] = _span(
        [best_epoch(run.history, score, results.score) for run in runs if run.history]
    )
    row["epochs to 95 % of the baseline’s gain"] = ", ".join(str(e or NOTHING) for e in reached)
    row["training time"] = duration(sum(run.training_seconds for run in runs) / len(runs))
    row["trained"] = f"{sum(run.outcome == 'trained' for run in runs)} of {len(runs)}"
    return row


def as_text(rows: list[Row]) -> str:
    """Rows as text, with a column for each."""
    names = list(rows[0])
    columns = [names, *([row[name] for name in names] for row in rows)]
    widths = [max(map(len, column)) for column in columns]
    lines = zip(*columns, strict=True)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def duration(seconds: float) -> str:
    """A time with about three digits: 4.2 s, 3 min 05 s, 2 h 10 min."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def _span(epochs: Sequence[int]) -> str:
    if not epochs:
        return NOTHING
    return "–".join(map(str, sorted({min(epochs), max(epochs)})))
