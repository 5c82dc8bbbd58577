"""Results of training runs, and the compact files that hold them: JSON lines, one file a study."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

import gradshare as gs
from gradshare import Interval, RunConfig, RunError
from gradshare.config.fields import MACHINE_FIELDS
from gradshare.config.parts import build
from gradshare.tasks import ImageTasks
from gradshare.tasks.store import StoredImages
from gradshare.training.files import write_atomically
from gradshare.training.records import judge
from gradshare.training.statistics import confidence95

PACKED: Final = ".jsonl.gz"

ACCURACY: Final = "accuracy"

# The names in `Run.fit`, and the splits of a run's history that they come from.
FITS: Final = {
    "support_{}_before": "support before",
    "support_{}_after": "support after",
    "query_{}_before": "query before",
    "query_{}_after": "validation",
}

Numbers = tuple[float | None, ...]
Outcome = Literal["trained", "not trained", "diverged"]


class Run(BaseModel):
    """The results of a training run.

    Accuracies are fractions, losses are cross entropies in nats. Lists by epoch begin with epoch 1.
    None means unknown or not finite.

    Attributes:
        cell: its name in the plan.
        settings: of the run, as in `gradshare.RunConfig`.
        environment: versions, hardware and images of the process that trained it.
        outcome: "not trained" if the interval of its best validation accuracy reaches down to
            chance, "diverged" if something became non-finite.
        message: why it diverged.
        seconds: wall time.
        validation: mean accuracy over the validation tasks, by epoch.
        ci95: half the 95 % interval over these tasks, by epoch.
        clock: seconds since the run began, by epoch.
        train: mean loss and accuracy over the training tasks, by epoch.
        fit: means over the validation tasks, by epoch, such as "support_accuracy_after": on the
            support images, after adaptation.
        learned: "m" and "lambda", if the arm learns them: σ of each inner step's, by epoch.
        test: accuracy on each test task, of the ensemble of the best checkpoints.
        single: mean accuracy and half its 95 % interval of the best checkpoint alone.
        members: how many checkpoints the ensemble has.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    cell: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    outcome: Outcome
    message: str | None
    seconds: float
    validation: tuple[float, ...]
    ci95: Numbers
    clock: Numbers
    train: dict[str, Numbers]
    fit: dict[str, Numbers]
    learned: dict[str, tuple[tuple[float, ...], ...]]
    test: tuple[float, ...] | None
    single: tuple[float, float | None] | None
    members: int

    @property
    def seed(self) -> int:
        """Of its initialisation and training tasks."""
        return int(self.settings["seed"])

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return 1 / float(self.settings["ways"])

    @property
    def trained(self) -> bool:
        """Whether it learned anything."""
        return self.outcome == "trained"

    @property
    def epochs(self) -> int:
        """How many it completed."""
        return len(self.validation)

    @property
    def best_epoch(self) -> int | None:
        """The earliest epoch with the highest validation accuracy."""
        return self.validation.index(max(self.validation)) + 1 if self.validation else None

    @property
    def best(self) -> Interval | None:
        """The highest validation accuracy, with its interval over tasks."""
        if self.best_epoch is None:
            return None
        return Interval(self.validation[self.best_epoch - 1], self.ci95[self.best_epoch - 1], 0)

    @property
    def tested(self) -> Interval | None:
        """Test accuracy, with its interval over tasks."""
        return None if self.test is None else confidence95(self.test)

    def gate(self, name: str) -> tuple[float, ...]:
        """The mean over inner steps of σ(m_k) or σ(λ_k), by epoch; empty if it is not learned."""
        return tuple(math.fsum(steps) / len(steps) for steps in self.learned.get(name, ()))


def record_of(cell: str, run: gs.Run, config: RunConfig) -> Run:
    """Record a complete run.

    Args:
        cell: its name in the plan.
        run: of the cell.
        config: its settings.
    """
    history = run.history
    intervals = [record.metrics["validation"][ACCURACY] for record in history]
    single = None if run.test is None else confidence95(run.test.single[ACCURACY])
    diverged = run.diverged is not None
    return Run(
        cell=cell,
        settings=config.model_dump(mode="json", exclude=set(MACHINE_FIELDS)),
        environment={**run.environment, **_images_of(config)},
        outcome="diverged" if diverged else judge(history, run.metrics[ACCURACY], ACCURACY),
        message=run.diverged,
        seconds=run.seconds,
        validation=tuple(interval.mean for interval in intervals),
        ci95=tuple(interval.ci95 for interval in intervals),
        clock=tuple(record.seconds for record in history),
        train={
            metric: tuple(_finite(record.mean(metric, "train")) for record in history)
            for metric in ("loss", ACCURACY)
        },
        fit={
            name.format(metric): tuple(_finite(record.mean(metric, split)) for record in history)
            for metric in (ACCURACY, "loss")
            for name, split in FITS.items()
        },
        learned={
            name: tuple(tuple(r.learned[key]) for r in history if key in r.learned)
            for name, key in (("m", "sharing.m"), ("lambda", "sharing.lambda"))
            if any(key in r.learned for r in history)
        },
        test=None if run.test is None else tuple(run.test.ensemble[ACCURACY]),
        single=None if single is None else single[:2],
        members=0 if run.test is None else run.test.members,
    )


def write_runs(path: Path, runs: Iterable[Run]) -> None:
    """Write runs into a packed file; the same runs give the same bytes."""
    lines = [
        json.dumps(run.model_dump(mode="json"), ensure_ascii=False, allow_nan=False) + "\n"
        for run in runs
    ]
    write_atomically(path, gzip.compress("".join(lines).encode(), 9, mtime=0))


def read_runs(path: Path) -> list[Run]:
    """Read a packed file.

    Raises:
        RunError: it is damaged.
    """
    try:
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
        return [Run.model_validate_json(line) for line in lines]
    except (OSError, EOFError, ValueError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else error
        raise RunError(f"{path} cannot be read: {first!s:.300}; get it again") from error


def first_difference(run: Run, config: RunConfig) -> str | None:
    """The first setting in which a run differs from a plan; None if all agree."""
    planned: Mapping[str, Any] = config.model_dump(mode="json", exclude=set(MACHINE_FIELDS))
    for name, value in run.settings.items():
        if name in planned and planned[name] != value:
            return f"{name} {value!r}, the plan has {planned[name]!r}"
    return None


def _images_of(config: RunConfig) -> dict[str, Any]:
    """How many images the dataset has, and their SHA-256."""
    source = build(config).train
    images = source.split.images if isinstance(source, ImageTasks) else None
    if not isinstance(images, StoredImages):
        return {}
    return {"images": len(images), "images_sha256": images.sha256}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
