"""What a run writes down after each epoch: JSON lines and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from gradshare.errors import RunError
from gradshare.training.files import null_where_not_finite, write_atomically
from gradshare.training.statistics import Interval

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
            splits are `TRAIN` (over the epoch's iterations, without interval), `VALIDATION` and
            `FITS`.
        learned: what the rules report, such as σ(m_k) and σ(λ_k), with a value for each inner step.
        outer_lr: the outer learning rate of the first parameter group at the epoch's end.
        seconds: of training, validation and writing, since the run began.
        skipped: the epoch's iterations that were refused and skipped; the training metrics are
            means over the others, NaN if there are none.
        first_skipped: where and why the first of them was refused.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    epoch: int
    iterations: int
    metrics: dict[str, dict[str, Interval]]
    learned: dict[str, list[float]]
    outer_lr: float
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
        """As a line of the file; JSON has no NaN, so what is not finite is null."""
        # Not by `asdict`, which copies deeply: each checkpoint holds all of the history.
        return null_where_not_finite(vars(self))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> EpochRecord:
        """From a line of the file.

        Raises:
            ValueError, TypeError, KeyError: it is no such line.
        """
        metrics = {
            split: {name: [_nan(mean), ci95, n] for name, (mean, ci95, n) in values.items()}
            for split, values in record["metrics"].items()
        }
        learned = {name: [_nan(v) for v in values] for name, values in record["learned"].items()}
        rate = _nan(record["outer_lr"])  # of an optimiser that has none
        values = {"metrics": metrics, "learned": learned, "outer_lr": rate}
        try:
            return _RECORD.validate_python({**record, **values})
        except ValidationError as error:
            raise ValueError(first_mistake(error)) from error


_RECORD = TypeAdapter(EpochRecord)


def first_mistake(error: ValidationError) -> str:
    """The first of pydantic's complaints, in one line."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


@dataclass
class EpochTotals:
    """Sums over the iterations of an epoch that goes on.

    Attributes:
        sums: of each training metric.
        taken: how many iterations were taken.
        skipped: see `EpochRecord`.
        first_skipped: see `EpochRecord`.
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
        """The mean of each metric over the iterations that were taken."""
        return {
            name: Interval(
                self.sums[name] / self.taken if self.taken else math.nan, None, self.taken
            )
            for name in names
        }


class MetricsWriter:
    """Writes each epoch's record to `metrics.jsonl` and `tensorboard/` in a run's folder.

    Args:
        folder: the run's.
        history: records of earlier epochs, of a run that is continued.

    Raises:
        RunError: the files cannot be written.
    """

    def __init__(self, folder: Path, history: History) -> None:
        self._folder = folder
        write_atomically(folder / "metrics.jsonl", "".join(map(_line, history)).encode())
        with self._errors():
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
        # All was flushed when it was written; an error now must not hide the one that ends this.
        with contextlib.suppress(OSError):
            self._events.close()

    def write(self, record: EpochRecord) -> None:
        """Append one epoch.

        Raises:
            RunError: it cannot be written.
        """
        with self._errors():
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

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(
                f"the metrics in {self._folder} cannot be written: {error.strerror or error}; free "
                "the space and continue with resume='auto' (--resume auto)"
            ) from error


def _line(record: EpochRecord) -> str:
    return json.dumps(record.to_json(), allow_nan=False) + "\n"
