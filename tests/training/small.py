"""Arguments of `gradshare.fit` for runs of a fraction of a second, with data of each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradshare as gs
from gradshare.inner_loop import sum_over_local_tasks
from gradshare.tasks.batch import tree_map
from gradshare.tasks.source import training_indices
from gradshare.training.distributed import OneProcess
from gradshare.training.fit import fit_in
from gradshare.training.options import Options, Watch, ignore
from gradshare.training.run import Run

Arguments = dict[str, Any]

WAYS = 3


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def class_tasks(*shape: int, classes: int = 14) -> tuple[gs.ClassTasks, ...]:
    """Tasks for training, validation and test, whose classes are noisy copies of one pattern."""
    random = np.random.default_rng(0)
    y = np.arange(classes).repeat(10)
    patterns = random.normal(size=(classes, *shape))
    x = patterns[y] + 0.8 * random.normal(size=(len(y), *shape))
    tasks = gs.ClassTasks(x, y, ways=WAYS, shots=1, queries=4)
    return tasks.split_classes(0.5, 0.25, 0.25)


def mlp(*, seed: int = 0, inputs: int = 6, outputs: int = WAYS) -> nn.Module:
    with seeded(seed):
        return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


def arguments(
    learner: Any, sources: Sequence[Any], changes: Arguments, **defaults: Any
) -> Arguments:
    train, validation, test = sources
    return {
        "learner": learner,
        "train": train,
        "validation": validation,
        "test": test,
        **{"epochs": 3, "iterations": 3, "task_batch": 2, "val_tasks": 6, "test_tasks": 8},
        **{"ensemble": 2, "device": "cpu", "progress": False},
        **defaults,
        **changes,
    }


ROWS = class_tasks(6)


def rows(**changes: Any) -> Arguments:
    """Rows of numbers, in classes: the fastest."""
    return arguments(gs.maml(mlp(), steps=2, sharing=True), ROWS, changes)


SIGNALS = class_tasks(2, 16)


def signals(
    *, dropout: float = 0.3, rule: gs.UpdateRule | None = None, **changes: Any
) -> Arguments:
    """1-D signals, with dropout, batch norm and sharing."""
    with seeded():
        model = nn.Sequential(
            nn.Conv1d(2, 6, 5),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(6 * 12, WAYS),
        )
    return arguments(gs.maml(model, steps=2, sharing=True, rule=rule), SIGNALS, changes)


def regression(*, rule: gs.UpdateRule | None = None, **changes: Any) -> Arguments:
    """Sinusoids, by the squared error, which is best low."""
    model = mlp(inputs=1, outputs=1)
    learner = gs.maml(model, steps=2, inner_lr=0.01, loss=F.mse_loss, rule=rule)
    return arguments(
        learner,
        [gs.Sinusoids(), gs.Sinusoids(), gs.Sinusoids(seed=1)],
        changes,
        metrics={"mse": gs.Metric(F.mse_loss, best="low")},
        score="mse",
    )


class TwoInputs(nn.Module):
    """A network of token ids and numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 4)
        self.numbers = nn.Linear(3, 4)
        self.head = nn.Linear(8, WAYS)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        y: Tensor = self.head(torch.cat([self.tokens(a).mean(1), self.numbers(b)], 1).tanh())
        return y


def two_inputs() -> tuple[gs.ClassTasks, ...]:
    random = np.random.default_rng(0)
    y = np.arange(14).repeat(10)
    tokens = random.integers(20, size=(14, 5))[y]
    numbers = random.normal(size=(14, 3))[y] + 0.3 * random.normal(size=(len(y), 3))
    tasks = gs.ClassTasks({"a": tokens, "b": numbers}, y, ways=WAYS, shots=1, queries=4)
    return tasks.split_classes(0.5, 0.25, 0.25)


TWO_INPUTS = two_inputs()


def named_inputs(*, rule: gs.UpdateRule | None = None, **changes: Any) -> Arguments:
    """Inputs by name: token ids and numbers."""
    with seeded():
        model = TwoInputs()
    learner = gs.maml(model, steps=2, inner_lr=0.5, sharing=True, rule=rule)
    return arguments(learner, TWO_INPUTS, changes)


PROBLEMS: dict[str, Callable[..., Arguments]] = {
    "signals": signals,
    "regression": regression,
    "named inputs": named_inputs,
}


class Prototypes:
    """A learner without an inner loop: the mean embedding of each class."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def init(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        parameters = self.model.named_parameters()
        return {name: p.detach().clone().requires_grad_() for name, p in parameters}, {}

    def adapt(self, meta: Any, carried: Any, tasks: Any, *, steps: int | None = None) -> Tensor:
        embedded = torch.func.functional_call(self.model, meta, tasks.support_x)
        of_class = F.one_hot(tasks.support_y, WAYS).to(embedded.dtype).transpose(1, 2)
        means: Tensor = of_class @ embedded / of_class.sum(2, keepdim=True)
        return means

    def predict(self, meta: Any, adapted: Tensor, tasks: Any) -> Tensor:
        embedded: Tensor = torch.func.functional_call(self.model, meta, tasks.query_x)
        return -torch.cdist(embedded, adapted)

    def outer_step(
        self,
        meta: Any,
        carried: Any,
        tasks: Any,
        *,
        iteration: int,
        sum_over_tasks: Any = sum_over_local_tasks,
    ) -> gs.OuterStep:
        outputs = self.predict(meta, self.adapt(meta, carried, tasks), tasks)
        losses = F.cross_entropy(outputs.transpose(1, 2), tasks.query_y, reduction="none").mean(1)
        return gs.OuterStep(losses, losses.detach(), outputs.detach(), {})


class Wrapped:
    """A source with something changed; the rest is as the source has it."""

    def __init__(self, source: Any) -> None:
        self.source = source

    def __getattr__(self, name: str) -> Any:
        if name == "source":  # while it is unpickled there is none
            raise AttributeError(name)
        return getattr(self.source, name)

    def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
        batch: gs.TaskBatch = self.source.batch(indices)
        return batch


class InFloat64(Wrapped):
    """A source with real numbers in float64."""

    def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
        return super().batch(indices).map(lambda t: t.double() if t.is_floating_point() else t)


def in_float64(given: Arguments) -> Arguments:
    """The same run in float64."""
    given["learner"].model.double()
    sources = ("train", "validation", "test")
    return {n: InFloat64(value) if n in sources else value for n, value in given.items()}


class Poisoned(Wrapped):
    """A source with infinite numbers in the first query of some tasks."""

    def __init__(self, source: Any, tasks: set[int]) -> None:
        super().__init__(source)
        self.tasks = tasks

    def batch(self, indices: Sequence[int]) -> gs.TaskBatch:
        batch = super().batch(indices)
        places = [place for place, index in enumerate(indices) if index in self.tasks]

        def poison(tensor: Tensor) -> None:
            if tensor.is_floating_point():
                tensor[places, 0] = float("inf")

        tree_map(poison, batch.query_x)
        return batch


def poisoned(given: Arguments, *iterations: int, task: int = 1) -> Arguments:
    """The same run with an infinite query in a task of some iterations, all counted from 1."""
    seed, size = given.get("seed", 0), given["task_batch"]
    tasks = {training_indices(seed, number - 1, size)[task - 1] for number in iterations}
    return {**given, "train": Poisoned(given["train"], tasks)}


def fit_on(
    processes: OneProcess,
    given: Arguments,
    folder: Path,
    *,
    resume: bool = False,
    watch: Watch = ignore,
) -> Run:
    """`gradshare.fit` in one of several processes."""
    options = {name: value for name, value in given.items() if name != "progress"}
    learner = options.pop("learner")
    sources = tuple(options.pop(name) for name in ("train", "validation", "test"))
    return fit_in(
        processes,
        learner,
        sources,
        Options(**options),
        folder,
        resume=resume,
        watch=watch,
    )
