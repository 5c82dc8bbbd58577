"""The results of a comparison, and `results.json`, the file that holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from gradshare.comparison.plan import shown
from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.batch import task_of
from gradshare.tasks.pictures import can_be_drawn, pictures
from gradshare.training.files import Number, null_where_not_finite, read_signed, write_signed
from gradshare.training.metrics import Scale, class_names
from gradshare.training.records import EpochRecord

FORMAT_VERSION: Final = 3
FILENAME = "results.json"

Outcome = Literal["trained", "not trained", "diverged"]
Values = npt.NDArray[np.float64]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class MetricFacts(_Part, Scale):
    """A `gradshare.Metric` without its function."""

    best: Literal["high", "low"]
    unit: str
    chance: float | None


class Picture(NamedTuple):
    """An example of a sample task: the name of its class, and the example as a data URI."""

    name: str
    image: Annotated[str, Field(pattern="^data:image/")]


class SampleTask(_Part):
    """A test task to look at: some of its support examples and queries, and the names of the
    classes that each arm predicts for these queries.
    """

    support: tuple[Picture, ...]
    queries: tuple[Picture, ...]
    predicted: dict[str, tuple[str, ...]]


class ArmRun(_Part):
    """One run: an arm with a seed.

    Attributes:
        arm: its name.
        seed: its seed.
        outcome: "trained"; "not trained" if the interval of its best validation score reaches
            chance; or "diverged" if something became non-finite.
        message: where it diverged.
        history: a record for each epoch.
        test: each metric's value for each test task, of the ensemble of the best checkpoints.
        members: how many checkpoints the ensemble has.
        by_class: the accuracy on each class, the mean over the test tasks that have it. Empty
            unless the test source names the classes of its tasks (`classes_of`).
        training_seconds: wall time of training alone.
        environment: versions, hardware and layout of the process that trained it.
    """

    arm: str
    seed: int
    outcome: Outcome
    message: str | None
    history: list[EpochRecord]
    test: dict[str, list[Number]]
    members: int = Field(ge=0)
    by_class: dict[str, float] = {}
    training_seconds: float
    environment: dict[str, Any]

    @property
    def trained(self) -> bool:
        """Whether it can be compared."""
        return self.outcome == "trained" and bool(self.test)


class Results(_Part):
    """A whole comparison.

    Attributes:
        baseline: the arm that the others are compared with.
        controls: the names of the controls.
        score: the metric that selects checkpoints and decides.
        metrics: which value of each metric is best, its unit and its chance.
        runs: each arm with each seed; the arms in their order.
        settings: the settings of all runs.
        commands: the commands that reproduce it.
        notes: notes for the reader, such as tensors that start differently.
        yardsticks: values of simple classifiers on the same test tasks, by name and metric.
        samples: some of the first test tasks, if their inputs can be drawn.
        tested_on: the name of the test tasks' dataset, if it is not that of the training tasks.
    """

    format: Literal[3] = FORMAT_VERSION
    gradshare: str
    baseline: str
    controls: tuple[str, ...]
    score: str
    metrics: dict[str, MetricFacts]
    runs: tuple[ArmRun, ...]
    settings: dict[str, Any]
    commands: tuple[str, ...]
    notes: tuple[str, ...]
    yardsticks: dict[str, dict[str, list[Number]]] = {}
    samples: tuple[SampleTask, ...] = ()
    tested_on: str | None = None

    def __repr__(self) -> str:
        """The arms and seeds."""
        return f"Results of {len(self.arms)} arms with {len(self.seeds)} seeds: {self.arms!r:.200}"

    __str__ = __repr__

    @cached_property
    def _by_arm(self) -> dict[str, tuple[ArmRun, ...]]:
        found: dict[str, list[ArmRun]] = {}
        for run in self.runs:
            found.setdefault(run.arm, []).append(run)
        return {arm: tuple(runs) for arm, runs in found.items()}

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of the arms, in their order."""
        return tuple(self._by_arm)

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, ascending."""
        return tuple(sorted({run.seed for run in self.runs}))

    @property
    def where(self) -> str:
        """Words to follow a test score: " on DATASET" if it is another one; else empty."""
        return "" if self.tested_on is None else f" on {shown(self.tested_on)}"

    def among_seeds(self, count: int) -> str:
        """How many seeds a value is over, such as " (2 of 3 seeds)"; empty if it is over all."""
        every = len(self.seeds)
        return "" if count == every else f" ({count} of {every} seeds)"

    def of(self, arm: str) -> tuple[ArmRun, ...]:
        """The runs of an arm."""
        return self._by_arm.get(arm, ())

    def table(self) -> list[dict[str, Any]]:
        """One long table with a row for each epoch, split and metric, and for each test task. The
        `dataset` is None where it is the one that was trained on.
        """
        rows = []
        for run in self.runs:
            own = {"arm": run.arm, "seed": run.seed, "dataset": None, "task": None}
            rows += [own | row for record in run.history for row in record.rows()]
            own |= {"epoch": None, "split": "test", "dataset": self.tested_on, "ci95": None}
            rows += [
                own | {"metric": name, "value": value, "task": task}
                for name, values in run.test.items()
                for task, value in enumerate(values)
            ]
        return rows


def save_results(results: Results, path: Path) -> None:
    """Write `results.json`."""
    write_signed(path, null_where_not_finite(results.model_dump()))


def load_results(path: str | Path) -> Results:
    """Read the results of a comparison.

    Args:
        path: its folder, or `results.json`.

    Raises:
        RunError: there are none, they were written by another version, or edited.
    """
    file = Path(path).expanduser()
    file = file / FILENAME if file.is_dir() else file
    remedy = "give the folder of a comparison, or write it again with --resume auto (resume='auto')"
    return Results.model_validate(read_signed(file, FORMAT_VERSION, remedy))


def sample_tasks(
    source: TaskSource, predicted: Mapping[str, Sequence[Sequence[int]]]
) -> tuple[SampleTask, ...]:
    """The first tasks of a source, with pictures.

    Args:
        predicted: by arm, the label that it predicts for each query of each of these tasks. Empty
            if the tasks have no classes.

    Returns:
        The tasks. None if the inputs are not images (C, H, W) or (H, W), or signals (C, L).
    """
    count = min(map(len, predicted.values()), default=0)
    if count == 0:
        return ()
    batch = source.batch(range(count))
    x = batch.support_x
    if not isinstance(x, Tensor) or batch.support_y.shape != x.shape[:2] or not can_be_drawn(x):
        return ()
    names = class_names(source, count) or [()] * count
    return tuple(
        _sample(batch, task, names[task], {arm: rows[task] for arm, rows in predicted.items()})
        for task in range(count)
    )


def _sample(
    batch: TaskBatch, task: int, classes: tuple[str, ...], predicted: Mapping[str, Sequence[int]]
) -> SampleTask:
    known = dict(enumerate(classes))

    def named(label: int) -> str:
        return known.get(label, f"class {label}")

    support_y = task_of(batch.support_y, task, batch.support_n).tolist()
    query_y = task_of(batch.query_y, task, batch.query_n).tolist()
    support = pictures(task_of(batch.support_x, task, batch.support_n), support_y)
    queries = pictures(task_of(batch.query_x, task, batch.query_n), query_y)
    return SampleTask(
        support=tuple(Picture(named(support_y[i]), image) for i, image in support.items()),
        queries=tuple(Picture(named(query_y[i]), image) for i, image in queries.items()),
        predicted={
            arm: tuple(named(labels[i]) for i in queries) for arm, labels in predicted.items()
        },
    )
