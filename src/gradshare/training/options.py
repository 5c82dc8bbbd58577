"""The options of `gradshare.fit`, and what callbacks and displays are called with."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch

from gradshare.errors import ConfigError, require_choice, require_count
from gradshare.tasks.source import SEEDS, TASKS_PER_SEED
from gradshare.training.layout import Memory, Tasks
from gradshare.training.metrics import Metric
from gradshare.training.records import History

ADAM = functools.partial(torch.optim.Adam, lr=1e-3)
"""The paper's outer optimiser (Appendix A.3)."""

OnDivergence = Literal["stop", "skip", "record"]
Start = Literal["random", "supervised"]
Phase = Literal["try", "train", "validate", "test"]


@dataclass(frozen=True)
class Event:
    """The argument of a callback.

    Attributes:
        kind: "iteration" after each outer step, "epoch" after each validation, "checkpoint" after
            each file that the run can be continued from.
        iteration: the number of iterations that are done.
        history: a record for each completed epoch.
        metrics: of an iteration: the mean of each training metric over its tasks.
        path: of a checkpoint: its file.
    """

    kind: Literal["iteration", "epoch", "checkpoint"]
    iteration: int
    history: History
    metrics: Mapping[str, float] | None = None
    path: Path | None = None


Callback = Callable[[Event], Any]
"""Called with each event. One that returns True at an epoch's end stops the training."""


@dataclass(frozen=True)
class Progress:
    """Where a run is, for the display.

    Attributes:
        phase: what it is doing.
        done: of `total`, in iterations or tasks.
        total: of this phase; training counts the whole run.
        epoch: the current one, from 1.
        score: of the last completed epoch, as text; None before the first.
    """

    phase: Phase
    done: int
    total: int
    epoch: int
    score: str | None


Watch = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """Show nothing."""


def options_from(given: Mapping[str, Any]) -> Options:
    """The options of `fit` from keyword arguments."""
    known = [field.name for field in fields(Options)]
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, 1)
            meant = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(known)}"
            raise ConfigError(f"there is no option {name!r} of training; {meant}")
    for name in ("epochs", "iterations"):
        if name not in given:
            raise ConfigError(f"{name} is missing; give epochs=… and iterations=… (of each epoch)")
    return Options(**given)


@dataclass(frozen=True)
class Options:
    """The options of `gradshare.fit`; see there."""

    epochs: int
    iterations: int
    task_batch: int = 4
    val_tasks: int = 200
    test_tasks: int = 600
    seed: int = 0
    metrics: Mapping[str, Metric] | None = None
    score: str | None = None
    ensemble: int = 1
    optimizer: Callable[..., torch.optim.Optimizer] = ADAM
    groups: Callable[[str], Mapping[str, Any]] | None = None
    schedule: Callable[[int], float] | None = None
    clamp_gradients: float | None = None
    clip_norm: float | None = None
    callbacks: Callback | Sequence[Callback] = ()
    on_divergence: OnDivergence = "record"
    device: str = "auto"
    tasks: Tasks = "auto"
    memory: Memory = "auto"
    start: Start = "random"
    start_iterations: int = 300
    patience: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "iterations", "task_batch", "val_tasks", "test_tasks", "ensemble"):
            require_count(name, getattr(self, name))
        require_count("seed", self.seed, least=0)
        if self.patience is not None:
            require_count("patience", self.patience)
        if self.seed >= SEEDS:
            raise ConfigError(f"seed is {self.seed}; give a whole number below {SEEDS}")
        if self.total * self.task_batch > TASKS_PER_SEED:
            raise ConfigError(
                f"{self.epochs} epochs of {self.iterations} iterations with {self.task_batch} "
                f"tasks take more than the {TASKS_PER_SEED} training tasks of a seed; give fewer"
            )
        require_choice("on_divergence", self.on_divergence, OnDivergence)
        require_choice("tasks", self.tasks, Tasks)
        require_choice("memory", self.memory, Memory)
        require_choice("start", self.start, Start)
        require_count("start_iterations", self.start_iterations)
        for name in ("clamp_gradients", "clip_norm"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not value > 0):
                raise ConfigError(f"{name} is {value!r}; give a number above 0, or None")
        try:
            self.factor(0)
        except Exception as error:
            raise ConfigError(
                f"schedule is {self.schedule!r:.100} and gives no number at iteration 0 "
                f"({error!s:.100}); give a function from the iteration, from 0, to a factor of the "
                "learning rates, such as lambda i: 0.5 ** (i // 1000)"
            ) from error
        for callback in self.all_callbacks:
            if not callable(callback):
                raise ConfigError(f"the callback {callback!r:.100} is not a function")

    @property
    def all_callbacks(self) -> Sequence[Callback]:
        """The callbacks, also if a single one was given."""
        return (self.callbacks,) if callable(self.callbacks) else self.callbacks

    @property
    def total(self) -> int:
        """Outer iterations of the whole run."""
        return self.epochs * self.iterations

    def factor(self, iteration: int) -> float:
        """The schedule's factor of the learning rates at an iteration, from 0."""
        return 1.0 if self.schedule is None else float(self.schedule(iteration))
