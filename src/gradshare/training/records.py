"""What a run writes down after each epoch: JSON lines and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from gradshare.errors import RunError
from gradshare.inner_loop import Tensors
from gradshare.training.evaluation import InnerLoopFit
from gradshare.training.files import null_where_not_finite, write_atomically
from gradshare.training.statistics import best_epochs


@dataclass(frozen=True)
class EpochRecord:
    """One line of `metrics.jsonl`. Accuracies are fractions, losses cross-entropies in nats.

    Attributes:
        epoch: from 1.
        iterations: outer iterations so far.
        train_loss: outer loss, mean over the epoch's iterations.
        train_accuracy: of the queries of the training tasks after adaptation.
        val_accuracy: mean over the validation tasks.
        val_ci95: half the 95 % interval over tasks; None for a single task.
        inner_loop: the fit before and after adaptation on the validation tasks.
        m: σ(m_k) for each inner step; None where there is no m.
        lambda_: σ(λ_k) for each inner step; None where there is no λ.
        outer_lr: the outer learning rate at the epoch's end.
        seconds: of training, validation and writing, since the run began.
        skipped: the epoch's iterations that were refused and passed over; the training loss and
            accuracy are means over the others, not finite if there are none.
        first_skipped: where and why the first of them was refused; None if there is none.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    epoch: int
    iterations: int
    train_loss: float
    train_accuracy: float
    val_accuracy: float
    val_ci95: float | None
    inner_loop: InnerLoopFit
    m: list[float] | None
    lambda_: list[float] | None
    outer_lr: float
    seconds: float
    skipped: int = 0
    first_skipped: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As a line of the file."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> EpochRecord:
        """From a line of the file, where null stands for what is not finite.

        Raises:
            ValueError, TypeError, KeyError: it is no such line.
        """
        return _RECORD.validate_python(
            {**_with_nan(record, _MAY_BE_NAN), "inner_loop": _with_nan(record["inner_loop"])}
        )


_RECORD = TypeAdapter(EpochRecord)
_MAY_BE_NAN = ("train_loss", "train_accuracy")


def _with_nan(values: Mapping[str, Any], names: Iterable[str] | None = None) -> dict[str, Any]:
    return {
        name: math.nan if value is None and (names is None or name in names) else value
        for name, value in values.items()
    }


def kept_epochs(history: Sequence[EpochRecord], count: int) -> list[int]:
    """The epochs whose models make the ensemble: the best by validation accuracy, best first."""
    return best_epochs([r.epoch for r in history], [r.val_accuracy for r in history], count)


def sharing_parameters(learned: Tensors) -> dict[str, list[float] | None]:
    """σ(m_k) and σ(λ_k) for each inner step, for an `EpochRecord`."""
    values: dict[str, list[float] | None] = {}
    for field, name in (("m", "sharing.m"), ("lambda_", "sharing.lambda")):
        values[field] = torch.sigmoid(learned[name]).tolist() if name in learned else None
    return values


class MetricsWriter:
    """Writes every epoch's record to `metrics.jsonl` and `tensorboard/` in a run's folder.

    Args:
        folder: the run's.
        history: records of epochs done before, of a run that is continued.

    Raises:
        RunError: the files cannot be written.
    """

    def __init__(self, folder: Path, history: Sequence[EpochRecord]) -> None:
        self._folder = folder
        write_atomically(folder / "metrics.jsonl", "".join(map(_line, history)).encode())
        with self._errors():
            (folder / "tensorboard").mkdir(exist_ok=True)
            for old in (folder / "tensorboard").iterdir():
                old.unlink()
            # Not SummaryWriter: its thread would meet a full disk where nobody can say so.
            self._events = RecordWriter(
                str(folder / "tensorboard" / f"events.out.tfevents.{time.time_ns()}.gradshare")
            )
            self._event(0, file_version="brain.Event:2")
            for record in history:
                self._scalars(record)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        # Everything was flushed when it was written; what fails now must not hide what ends this.
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
        scalars = {
            "train/loss": record.train_loss,
            "train/accuracy": record.train_accuracy,
            "validation/accuracy": record.val_accuracy,
            "outer_lr": record.outer_lr,
            "train/skipped": record.skipped,
            **{f"inner_loop/{name}": value for name, value in asdict(record.inner_loop).items()},
        }
        for name, values in (("m", record.m), ("lambda", record.lambda_)):
            if values is not None:
                scalars |= {f"sharing/{name}_{k}": v for k, v in enumerate(values, start=1)}
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
                "the space and continue with --resume auto"
            ) from error


def _line(record: EpochRecord) -> str:
    # JSON has no NaN: what is not finite is null, as in results.json.
    return json.dumps(null_where_not_finite(record.to_json()), allow_nan=False) + "\n"
