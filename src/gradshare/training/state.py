"""Everything that changes while a run is trained, as one value that is saved and restored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from gradshare.errors import RunError
from gradshare.inner_loop import Tensors
from gradshare.tasks.store import first_mistake
from gradshare.training.checkpoint import Checkpoint, on_device
from gradshare.training.evaluation import Values
from gradshare.training.records import EpochRecord, EpochTotals

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Test:
    """Metric values of the best checkpoints on the test tasks.

    Attributes:
        ensemble: the values of each task, of the mean outputs of all models.
        single: likewise, of the best model alone.
        members: the number of models.
        by_class: the ensemble's accuracy on each class, by name, as the mean over the tasks that
            have it. Empty unless the source names the classes of its tasks (`classes_of`).
        dataset: the name of the test tasks' dataset, if it is not that of the training tasks.
        note: a caveat printed with results on the test tasks; empty if there is none.
        predicted: of classes, the ensemble's label of each query, for the first `SAMPLE_TASKS`.
    """

    __test__ = False  # to pytest, which collects classes by this prefix

    ensemble: Values
    single: Values
    members: int
    by_class: dict[str, float] = field(default_factory=dict)
    predicted: list[list[int]] = field(default_factory=list)
    dataset: str | None = None
    note: str = ""


class RunStatus(BaseModel):
    """How far a run has come and its results so far: what a checkpoint holds besides tensors.

    Attributes:
        run: the `id` in `run.json`, by which a checkpoint of another run is noticed.
        iteration: the number of iterations that were taken or skipped.
        totals: running sums of the current epoch.
        skipped_in_a_row: iterations that were refused since the last one that was taken.
        seconds: of the whole run.
        training_seconds: of its iterations.
        diverged: where and how it became non-finite; None if it did not.
        stopped: whether a callback or the lack of patience has ended the training.
        test: None before the test.
        history: one record for each completed epoch.
        environment: of the last process that trained it.
        canary: the loss of a fixed small batch when it was saved, and the norm of its gradient;
            None if one is not finite.
    """

    run: str = ""
    iteration: int = 0
    totals: EpochTotals = EpochTotals()
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    training_seconds: float = 0.0
    diverged: str | None = None
    stopped: bool = False
    test: Test | None = None
    history: list[EpochRecord] = []
    environment: dict[str, Any] = {}
    canary: tuple[float, float] | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> RunStatus:
        """The status that a checkpoint holds; RunError if it holds none."""
        try:
            return cls.model_validate(checkpoint.progress)
        except ValidationError as error:
            raise _unusable(first_mistake(error)) from error


@dataclass
class TrainState:
    """A run at one iteration.

    Attributes:
        meta: the meta-parameters, leaves on the device.
        carried: the rules' carried tensors.
        optimizer: over `meta`.
        status: everything else.
    """

    meta: dict[str, Tensor]
    carried: Tensors
    optimizer: torch.optim.Optimizer
    status: RunStatus = field(default_factory=RunStatus)

    @property
    def model(self) -> tuple[Tensors, Tensors]:
        """The meta-parameters and the carried tensors."""
        return self.meta, self.carried

    def checkpoint(self) -> Checkpoint:
        """The whole state."""
        return Checkpoint(*self.model, self.status.model_dump(), self.optimizer.state_dict())

    def epoch_checkpoint(self, epoch: int) -> Checkpoint:
        """The model alone."""
        return Checkpoint(*self.model, {"run": self.status.run, "epoch": epoch})

    def restore(self, saved: Checkpoint, iterations: int) -> None:
        """Take over the saved state of the same run, which is to have that many iterations."""
        status = RunStatus.of(saved)
        if not 0 <= status.iteration <= iterations:
            raise _unusable(f"iteration is {status.iteration}, this run has {iterations}")
        for own, held in zip(self.model, (saved.meta, saved.carried), strict=True):
            if others := _shapes(own) ^ _shapes(held):
                raise _unusable(f"{min(others)[0]} is another tensor in this learner, or absent")
        device = next(iter(self.meta.values())).device
        try:
            self.optimizer.load_state_dict(saved.optimizer or {})
        except (ValueError, TypeError, KeyError) as error:
            raise _unusable(error) from error
        for name, tensor in self.meta.items():
            tensor.data.copy_(saved.meta[name])
        self.carried = on_device(saved.carried, device)
        self.status = status


def _shapes(tensors: Tensors) -> set[tuple[str, torch.Size]]:
    return {(name, tensor.shape) for name, tensor in tensors.items()}


def _unusable(cause: object) -> RunError:
    return RunError(
        f"the newest checkpoint cannot be continued from: {cause!s:.300}; start again in another "
        "folder (--out)"
    )
