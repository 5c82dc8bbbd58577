"""The record of each epoch, as a line of JSON and for TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

from pydantic import ConfigDict
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from gradshare.training.files import Number, null_where_not_finite, write_atomically, writing
from gradshare.training.metrics import Scale
from gradshare.training.statistics import Z95, Interval

TRAIN, VALIDATION = "train", "validation"
# The fit on the validation tasks before and after adaptation. A support set that is fitted far
# better than the queries is over-fitting of the inner loop. `VALIDATION` is the queries after it.
FITS = ("support before", "support after", "query before")

History = Sequence["EpochRecord"]


@dataclass(frozen=True)
class EpochRecord:
    """One line of `metrics.jsonl`.

    Attributes:
        epoch: from 1.
        iterations: outer iterations so far.
        metrics: each metric's mean, 95 % interval and number of values, by split and name. The
            splits are "train" (over the epoch's iterations, without interval), "validation", and
            "support before", "support after" and "query before" adaptation.
        learned: what the rules report, such as σ(m_k) and σ(λ_k), with a value for each inner step.
        outer_lr: the outer learning rate of the first parameter group at the epoch's end; NaN of an
            optimiser without one.
        seconds: what training, validation and writing took since the run began.
        skipped: the epoch's iterations that were refused and skipped. The training metrics are
            means over the others, NaN if there are none.
        first_skipped: where and why the first of them was refused.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    epoch: int
    iterations: int
    metrics: dict[str, dict[str, Interval]]
    learned: dict[str, list[Number]]
    outer_lr: Number
    seconds: float
    skipped: int = 0
    first_skipped: str | None = None

    def mean(self, metric: str, split: str = VALIDATION) -> float:
        """The mean of a metric."""
        return self.metrics[split][metric].mean

    def rows(self) -> list[dict[str, Any]]:
        """The record as rows of one long table: epoch, split, metric, value, ci95."""
        return [
            {"epoch": self.epoch, "split": split, "metric": name, "value": m.mean, "ci95": m.ci95}
            for split, metrics in self.metrics.items()
            for name, m in metrics.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """As a line of the file. JSON has no NaN: a number that is not finite becomes null."""
        return null_where_not_finite(vars(self))  # type: ignore[no-any-return]


def ranked(history: History, metric: Scale, score: str) -> list[EpochRecord]:
    """The epochs by their validation scores, best first, ties to the earlier."""
    return sorted(history, key=lambda record: metric.rank(record.mean(score)))


def judge(history: History, metric: Scale, score: str) -> Literal["trained", "not trained"]:
    """Whether a run that did not diverge has learned anything.

    It has not if the 95 % interval of its best validation score reaches chance, where there is
    one. The best of many is the luckiest of them, so its interval is widened by their number
    (Bonferroni's correction).
    """
    if not history:
        return "not trained"
    if metric.chance is None:
        return "trained"
    best = ranked(history, metric, score)[0].metrics[VALIDATION][score]
    if best.ci95 is None:
        return "not trained"
    surer = NormalDist().inv_cdf(1 - 0.025 / len(history)) / Z95
    gain = best.mean - metric.chance if metric.best == "high" else metric.chance - best.mean
    return "trained" if gain > surer * best.ci95 else "not trained"


@dataclass
class EpochTotals:
    """Sums over the iterations of the current epoch.

    Attributes:
        sums: of each training metric.
        taken: the number of iterations that were taken.
    """

    sums: dict[str, float] = field(default_factory=dict)
    taken: int = 0
    skipped: int = 0
    first_skipped: str | None = None

    def add(self, metrics: Mapping[str, float]) -> None:
        """Count an iteration."""
        self.taken += 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self, names: Sequence[str]) -> dict[str, Interval]:
        """The mean of each metric over the iterations that were taken, or NaN."""
        taken = self.taken or math.nan
        return {n: Interval(self.sums.get(n, 0.0) / taken, None, self.taken) for n in names}


class MetricsWriter:
    """Writes each epoch's record to `metrics.jsonl` and `tensorboard/` in a run's folder, behind
    those of `history`.
    """

    def __init__(self, folder: Path, history: History) -> None:
        self._folder = folder
        write_atomically(folder / "metrics.jsonl", "".join(map(_line, history)).encode())
        with writing(folder):
            (folder / "tensorboard").mkdir(exist_ok=True)
            for old in (folder / "tensorboard").iterdir():
                old.unlink()
            # SummaryWriter would meet a full disk in a thread, where it can't be reported.
            self._events = RecordWriter(
                str(folder / "tensorboard" / f"events.out.tfevents.{time.time_ns()}.gradshare")
            )
            self._event(0, file_version="brain.Event:2")
            for record in history:
                self._scalars(record)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        # Everything was flushed when it was written; an error now must not hide an earlier one.
        with contextlib.suppress(OSError):
            self._events.close()

    def write(self, record: EpochRecord) -> None:
        """Append one epoch."""
        with writing(self._folder):
            with (self._folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(_line(record))
            self._scalars(record)

    def _scalars(self, record: EpochRecord) -> None:
        scalars = {f"{row['split']}/{row['metric']}": row["value"] for row in record.rows()}
        scalars |= {"outer_lr": record.outer_lr, "train/skipped": record.skipped}
        for name, values in record.learned.items():
            scalars |= {f"learned/{name}_{k}": value for k, value in enumerate(values, start=1)}
        for name, value in scalars.items():
            if math.isfinite(value):
                self._event(record.epoch, summary=scalar(name, value))
        self._events.flush()

    def _event(self, step: int, **content: Any) -> None:
        event = Event(wall_time=time.time(), step=step, **content)
        self._events.write(event.SerializeToString())


def _line(record: EpochRecord) -> str:
    return json.dumps(record.to_json(), allow_nan=False) + "\n"
