"""What a run writes down after each epoch: JSON lines and TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from tensorboardX import SummaryWriter

from gradshare.errors import RunError
from gradshare.inner_loop import Tensors
from gradshare.training.evaluation import InnerLoopFit
from gradshare.training.files import write_atomically


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
    """

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

    def to_json(self) -> dict[str, Any]:
        """As a line of the file."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> EpochRecord:
        """From a line of the file."""
        return cls(**{**record, "inner_loop": InnerLoopFit(**record["inner_loop"])})


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
    """

    def __init__(self, folder: Path, history: Sequence[EpochRecord]) -> None:
        self._path = folder / "metrics.jsonl"
        lines = "".join(_line(record) for record in history)
        write_atomically(self._path, lines.encode())
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=len(history) + 1)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tensorboard.close()

    def write(self, record: EpochRecord) -> None:
        """Append one epoch."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(record))
        except OSError as error:
            raise RunError(
                f"{self._path} cannot be written: {error.strerror or error}; free the space and "
                "continue with --resume auto"
            ) from error
        scalars = {
            "train/loss": record.train_loss,
            "train/accuracy": record.train_accuracy,
            "validation/accuracy": record.val_accuracy,
            "outer_lr": record.outer_lr,
            **{f"inner_loop/{name}": value for name, value in asdict(record.inner_loop).items()},
        }
        for name, values in (("m", record.m), ("lambda", record.lambda_)):
            if values is not None:
                scalars |= {f"sharing/{name}_{k}": v for k, v in enumerate(values, start=1)}
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, record.epoch)
        self._tensorboard.flush()


def _line(record: EpochRecord) -> str:
    # JSON has no NaN: what is not finite is null, as in results.json.
    return json.dumps(_finite(record.to_json()), allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return None
    return value
