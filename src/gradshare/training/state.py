"""Everything that changes while a run is trained, as one value that is saved and restored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from gradshare.errors import RunError
from gradshare.inner_loop import Tensors
from gradshare.training.checkpoint import Checkpoint, on_device
from gradshare.training.evaluation import Values
from gradshare.training.records import EpochRecord, EpochTotals, first_mistake

# A refused iteration changes nothing, so that the next differs from it in its tasks alone: after
# so many in a row a run that skips them will not get any further.
MOST_SKIPPED_IN_A_ROW = 50

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Test:
    """What the best checkpoints came to on the test tasks.

    Attributes:
        ensemble: the values of each task, of the mean outputs of all models.
        single: likewise, of the best model alone.
        members: how many models there were.
        right: of classes, the ensemble's accuracy on each label of each task, None without queries.
        predicted: of classes, its label of each query, for the first `SAMPLE_TASKS` tasks.
    """

    __test__ = False  # to pytest, which collects classes by this prefix

    ensemble: Values
    single: Values
    members: int
    right: list[list[float | None]] = field(default_factory=list)
    predicted: list[list[int]] = field(default_factory=list)


class Progress(BaseModel):
    """What a checkpoint says besides its tensors: fields of `TrainState`, and two of its own.

    Attributes:
        run: the identity of the run.
        canary: the loss of a fixed small batch at this moment, and the norm of its gradient.
    """

    run: str
    canary: list[float] | None
    iteration: int
    totals: EpochTotals
    skipped_in_a_row: int
    seconds: float
    training_seconds: float
    diverged: str | None
    stopped: bool
    test: Test | None
    history: list[dict[str, Any]]
    environment: dict[str, Any]


@dataclass
class TrainState:
    """A moment of a run.

    Attributes:
        meta: the meta-parameters, leaves on the device.
        carried: the rules' carried tensors.
        optimizer: over `meta`.
        iteration: how many iterations were taken or skipped.
        totals: of the epoch that goes on.
        skipped_in_a_row: iterations that were refused since the last one that was taken.
        seconds: how long the run has taken.
        training_seconds: how long its iterations have taken.
        diverged: where and how it became non-finite; None if it did not.
        stopped: whether a callback has ended the training.
        test: None before the test.
        history: one record for each completed epoch.
        environment: of the last process that trained it.
    """

    meta: dict[str, Tensor]
    carried: Tensors
    optimizer: torch.optim.Optimizer
    iteration: int = 0
    totals: EpochTotals = field(default_factory=EpochTotals)
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    diverged: str | None = None
    stopped: bool = False
    test: Test | None = None
    history: list[EpochRecord] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> tuple[Tensors, Tensors]:
        """The meta-parameters and the carried tensors."""
        return self.meta, self.carried

    def checkpoint(self, run: str, canary: list[float] | None) -> Checkpoint:
        """As it is saved."""
        own = {name: getattr(self, name) for name in Progress.model_fields if hasattr(self, name)}
        own["history"] = [record.to_json() for record in self.history]
        progress = Progress(run=run, canary=canary, **own)
        return Checkpoint(
            on_device(self.meta, CPU),
            on_device(self.carried, CPU),
            progress.model_dump(),
            self.optimizer.state_dict(),
        )

    def epoch_checkpoint(self, run: str) -> Checkpoint:
        """The model alone."""
        return Checkpoint(on_device(self.meta, CPU), on_device(self.carried, CPU), {"run": run})

    def restore(self, saved: Checkpoint, iterations: int) -> None:
        """Go to a saved moment of the same run.

        Args:
            saved: the moment.
            iterations: of the whole run.

        Raises:
            RunError: what it says of the run's progress is not what a run says.
        """
        device = next(iter(self.meta.values())).device
        try:
            progress = Progress.model_validate(saved.progress)
            history = [EpochRecord.from_json(record) for record in progress.history]
            _require(progress, saved, iterations)
            for name, tensor in self.meta.items():
                tensor.data.copy_(saved.meta[name])
            self.carried = on_device(saved.carried, device)
            self.optimizer.load_state_dict(saved.optimizer or {})
        except (ValidationError, ValueError, TypeError, KeyError) as error:
            cause = first_mistake(error) if isinstance(error, ValidationError) else error
            raise RunError(
                f"the newest checkpoint cannot be continued from: {cause!s:.300}; start again in "
                "another folder (--out)"
            ) from error
        for name in Progress.model_fields:
            if hasattr(self, name) and name != "history":
                setattr(self, name, getattr(progress, name))
        self.history = history

    def pass_over(self, fault: str, *, skip: bool) -> None:
        """Leave a refused iteration behind, and end the run there unless it is to be skipped."""
        self.iteration += 1
        if not skip:
            self.diverged = fault
            return
        self.totals.skipped += 1
        self.totals.first_skipped = self.totals.first_skipped or fault
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row == MOST_SKIPPED_IN_A_ROW:
            self.diverged = f"{fault} (the last of {MOST_SKIPPED_IN_A_ROW} in a row to be refused)"

    def end_epoch(self, record: EpochRecord) -> None:
        """Begin the next epoch."""
        self.history.append(record)
        self.totals = EpochTotals()


def _require(progress: Progress, saved: Checkpoint, iterations: int) -> None:
    """Raise ValueError unless a checkpoint is of a moment of a run of so many iterations."""
    if not 0 <= progress.iteration <= iterations:
        raise ValueError(f"iteration is {progress.iteration}, this run has {iterations}")
    if saved.optimizer is None:
        raise ValueError("it has no state of the optimiser")
