"""The table of a comparison, and the whole of it as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from rich.cells import cell_len, set_cell_size

from gradshare.comparison.differences import counted, difference, epochs_to_gain, mean_score
from gradshare.comparison.results import Results
from gradshare.comparison.verdict import verdict
from gradshare.training.records import best_record
from gradshare.training.statistics import confidence95

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
    best = [best_record(run.history, score, results.score).epoch for run in runs if run.history]
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
