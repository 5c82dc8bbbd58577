"""The tables of a comparison, for the terminal and the report."""

from __future__ import annotations

import math

from gradshare.comparison.results import Results, best_epoch
from gradshare.comparison.statistics import difference, epochs_to_gain, test_score
from gradshare.comparison.verdict import show_difference

NOTHING = "–"

Row = dict[str, str]


def arm_rows(results: Results) -> list[Row]:
    """One row for each arm: its scores, differences and times."""
    rows = []
    for arm in results.arms:
        runs = results.of(arm)
        role = "baseline" if arm == results.baseline else ""
        row = {"arm": arm, "role": "control" if arm in results.controls else role}
        for name in results.metrics:
            found = test_score(runs, name)
            row[f"test {name}"] = NOTHING if found is None else results.metric(name).show(found)
        for other in (results.baseline, *results.controls):
            against = difference(results, arm, other).interval if arm != other else None
            metric = results.metric(results.score)
            row[f"− {other}"] = NOTHING if against is None else show_difference(metric, against)
        best = [
            best_epoch(r.history, results.metric(results.score), results.score)
            for r in runs
            if r.history
        ]
        reached = [epochs_to_gain(results, run) for run in runs]
        row["best epoch"] = _span(best)
        row["epochs to 95 % of the baseline’s gain"] = ", ".join(
            NOTHING if epoch is None else str(epoch) for epoch in reached
        )
        row["training time"] = duration(sum(r.training_seconds for r in runs) / len(runs))
        trained = sum(run.outcome == "trained" for run in runs)
        row["trained"] = f"{trained} of {len(runs)}"
        rows.append(row)
    for name, values in results.yardsticks.items():
        row = dict.fromkeys(rows[0], NOTHING) | {"arm": name, "role": "yardstick"}
        for metric, column in values.items():
            from gradshare.training.statistics import confidence95

            row[f"test {metric}"] = results.metric(metric).show(confidence95(column))
        rows.append(row)
    return rows


def as_text(rows: list[Row]) -> str:
    """Rows as aligned columns of text; a table with more columns than a terminal has is turned."""
    heading = next(iter(rows[0]))
    turned = [
        {heading: column, **{row[heading]: row[column] for row in rows}}
        for column in rows[0]
        if column != heading
    ]
    widths = {c: max(len(c), *(len(r[c]) for r in turned)) for c in turned[0]}
    lines = ["  ".join(c.ljust(w) for c, w in widths.items())]
    lines += ["  ".join(r[c].ljust(w) for c, w in widths.items()) for r in turned]
    return "\n".join(line.rstrip() for line in lines)


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


def _span(numbers: list[int]) -> str:
    if not numbers:
        return NOTHING
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}–{high}"
