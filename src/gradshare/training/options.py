"""The options of `gradshare.fit`, and what of them makes a run the run that it is."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from gradshare.errors import ConfigError, require_choice, require_count
from gradshare.tasks.source import SEEDS
from gradshare.training.layout import Memory, Tasks
from gradshare.training.metrics import Metric
from gradshare.training.outer_loop import Clipping
from gradshare.training.records import History

ADAM = functools.partial(torch.optim.Adam, lr=1e-3)
"""The paper's outer optimiser (Appendix A.3)."""

NO_CLIPPING = Clipping()

OnDivergence = Literal["stop", "skip", "record"]
Phase = Literal["try", "train", "validate", "test"]


@dataclass(frozen=True)
class Event:
    """What a callback is told.

    Attributes:
        kind: "iteration" after each outer step, "epoch" after each validation, "checkpoint" after
            each file that the run can be continued from.
        iteration: how many iterations are done.
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
"""Told of events. One that returns True at an epoch's end stops the training."""


@dataclass(frozen=True)
class Progress:
    """Where a run is, for the display.

    Attributes:
        phase: what it is doing.
        done: of `total`, in iterations or tasks.
        total: of this phase; training counts the whole run.
        epoch: the current one, from 1.
        score: of the last epoch, as text; None before the first.
    """

    phase: Phase
    done: int
    total: int
    epoch: int
    score: str | None


Watch = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """Show nothing."""


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
    clipping: Clipping = NO_CLIPPING
    callbacks: Sequence[Callback] = ()
    on_divergence: OnDivergence = "record"
    device: str = "auto"
    tasks: Tasks = "auto"
    memory: Memory = "auto"

    @classmethod
    def of(
        cls,
        *,
        clamp_gradients: float | None = None,
        clip_norm: float | None = None,
        **options: Any,
    ) -> Options:
        """From the keyword arguments of `fit`."""
        return cls(clipping=Clipping(clamp_gradients, clip_norm), **options)

    def __post_init__(self) -> None:
        """Check them.

        Raises:
            ConfigError: one has a value that it does not take.
        """
        for name in ("epochs", "iterations", "task_batch", "val_tasks", "test_tasks", "ensemble"):
            require_count(name, getattr(self, name))
        require_count("seed", self.seed, least=0)
        if self.seed >= SEEDS:
            raise ConfigError(f"seed is {self.seed}; give a whole number below {SEEDS}")
        for name, choices in (
            ("on_divergence", OnDivergence),
            ("tasks", Tasks),
            ("memory", Memory),
        ):
            require_choice(name, getattr(self, name), choices)
        for name, value in (
            ("clamp_gradients", self.clipping.clamp),
            ("clip_norm", self.clipping.norm),
        ):
            if value is not None and not value > 0:
                raise ConfigError(f"{name} is {value!r}; give a number above 0, or None")
        for name in ("optimizer", "groups", "schedule"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                example = ", such as functools.partial(torch.optim.Adam, lr=1e-3)"
                raise ConfigError(
                    f"{name} is a {type(value).__name__}; give a function"
                    f"{example if name == 'optimizer' else ''}"
                )
        for callback in self.callbacks:
            if not callable(callback):
                raise ConfigError(f"the callback {callback!r:.100} is not a function")

    @property
    def total(self) -> int:
        """Outer iterations of the whole run."""
        return self.epochs * self.iterations

    def factor(self, iteration: int) -> float:
        """What the learning rates are multiplied with at an iteration, from 0."""
        return 1.0 if self.schedule is None else float(self.schedule(iteration))

    def factors(self, total: int) -> str:
        """A digest of the schedule up to an iteration."""
        factors = [self.factor(iteration) for iteration in range(total)]
        return hashlib.sha256(json.dumps(factors).encode()).hexdigest()

    def identity(
        self,
        meta: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        metrics: Mapping[str, Metric],
        score: str,
        sources: Mapping[str, str | None],
    ) -> dict[str, Any]:
        """What makes a run the run that it is, as JSON: a run is continued with the same."""
        groups = [
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]
        return {
            **{
                name: getattr(self, name)
                for name in ("epochs", "iterations", "task_batch", "val_tasks", "test_tasks")
            },
            "seed": self.seed,
            "ensemble": self.ensemble,
            "metrics": {name: metric.best for name, metric in metrics.items()},
            "score": score,
            "optimizer": f"{type(optimizer).__name__} {groups}",
            "clamp_gradients": self.clipping.clamp,
            "clip_norm": self.clipping.norm,
            "meta-parameters": shapes_digest(meta),
            "schedule": self.factors(self.total),
            **{f"{name} source": fingerprint for name, fingerprint in sources.items()},
        }


def shapes_digest(meta: Mapping[str, Tensor]) -> str:
    """A digest of the names, types and shapes of meta-parameters."""
    shapes = {name: [str(t.dtype), *t.shape] for name, t in meta.items()}
    return hashlib.sha256(repr(shapes).encode()).hexdigest()
