"""What a source of tasks is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gradshare.errors import ConfigError, DataError
from gradshare.tasks.batch import PARTS, TaskBatch, leaves, task_of

SEEDS = 2**22
"""Seeds are below this, so that every task index fits in 64 bits."""

TASKS_PER_SEED = 2**40


class TaskSource(Protocol):
    """Anything with a method `batch`. A class of your own needs no base class.

    A source may also have:

    - `fingerprint`: a string that changes with the data and the settings. A resumed run compares
      it with the one it started with.
    - `prepare(batch) -> TaskBatch`: runs after the batch has moved to the device, for example to
      normalise images. The classifier calls it too.
    - `classes_of(index) -> tuple`: the names of a task's labels 0, 1, …, for the accuracy by class
      in the report of a comparison.
    - `dataset`: the name of the dataset, for reports of a test on another one than was trained on.
    - `note`: a caveat printed with results, such as that the splits were drawn by chance; or None.
    - `replace(**changes) -> TaskSource`: the same data with other shots, ways or queries.
    """

    def batch(self, indices: Sequence[int], /) -> TaskBatch:
        """The tasks of the given indices.

        A task must depend on its own index only: not on the other indices, on earlier calls or on
        a global random generator. Draw from `np.random.default_rng([index, 0])`.

        Args:
            indices: task numbers from 0 to below 2**63. Evaluation uses 0 … n - 1. Training uses
                numbers from 2**40 on.
        """
        ...


def prepared(source: TaskSource, batch: TaskBatch) -> TaskBatch:
    """The batch after the source's `prepare`, if it has one."""
    prepare = getattr(source, "prepare", None)
    return batch if prepare is None else prepare(batch)


class Splits(NamedTuple):
    """What a dataset function of your own returns for `gradshare train --dataset FILE.py:NAME`.

    Attributes:
        train: the source of training tasks.
        validation: the source of validation tasks.
        test: the source of test tasks; None for a run without a test.
    """

    train: TaskSource
    validation: TaskSource
    test: TaskSource | None = None


def of_largest_size(source: TaskSource) -> TaskSource:
    """The source with the largest of its tasks alone, if it has ranges of ways or shots."""
    sizes = {name: getattr(source, name, None) for name in ("ways", "shots")}
    most = {name: size[-1:] * 2 for name, size in sizes.items() if isinstance(size, tuple)}
    return source.replace(**most) if most else source  # type: ignore[attr-defined]


def fingerprint_of(source: TaskSource) -> str | None:
    """The source's fingerprint, or None if it has none.

    Raises:
        DataError: `fingerprint` is not a string.
    """
    fingerprint = getattr(source, "fingerprint", None)
    if not isinstance(fingerprint, str | None):
        raise DataError(
            f"fingerprint of {_name(source)} is a {type(fingerprint).__name__}; make it a string, "
            "or a property that returns one"
        )
    return fingerprint


def notes_of(*sources: TaskSource | None) -> list[str]:
    """The notes of some sources, each once."""
    notes = [getattr(source, "note", None) for source in sources]
    return list(dict.fromkeys(note for note in notes if isinstance(note, str)))


def other_dataset(train: TaskSource | None, test: TaskSource) -> str | None:
    """The name of the dataset of test tasks if it is not that of the training tasks, else None."""
    names = [getattr(source, "dataset", None) for source in (train, test)]
    trained, tested = (name if isinstance(name, str) else None for name in names)
    return tested if tested != trained else None


def training_indices(seed: int, iteration: int, task_batch: int) -> range:
    """The indices of the tasks that one training iteration uses.

    Different seeds and different iterations have different tasks. All of them differ from the
    tasks of the evaluation, also when one source serves both.

    Raises:
        ConfigError: the seed is below 0 or not below 2**22.
    """
    if not 0 <= seed < SEEDS:
        raise ConfigError(f"seed is {seed}; give a whole number from 0 to {SEEDS - 1}")
    start = (seed + 1) * TASKS_PER_SEED + iteration * task_batch
    return range(start, start + task_batch)


def require_pure(source: TaskSource, index: int, other: int | None = None) -> None:
    """Check that the source gives the same task again, and beside another one.

    Args:
        source: the source.
        index: of the task.
        other: of a task beside it; by default the next.

    Raises:
        DataError: it does not; or `batch` returns something else than a `TaskBatch`, or another
            number of tasks than it was asked for.
    """
    alone = _task(_ask(source, [index]), 0)
    again = _task(_ask(source, [index]), 0)
    beside = _task(_ask(source, [index + 1 if other is None else other, index]), 1)
    for found, when in ((again, "asked for again"), (beside, "asked for beside other tasks")):
        for path in dict.fromkeys([*alone, *found]):
            one, two = alone.get(path), found.get(path)
            if one is None or two is None or not torch.equal(one, two):
                raise DataError(
                    f"{_name(source)}.batch gave another {path} for task {index} when it was "
                    f"{when}; a task must depend on its index only: draw every random number of "
                    "a task from np.random.default_rng([index, 0])"
                )


def _ask(source: TaskSource, indices: Sequence[int]) -> TaskBatch:
    batch = source.batch(indices)
    if not isinstance(batch, TaskBatch):
        raise DataError(
            f"{_name(source)}.batch returned a {type(batch).__name__}; return a gradshare.TaskBatch"
        )
    if len(batch) != len(indices):
        raise DataError(
            f"{_name(source)}.batch returned {len(batch)} tasks for {len(indices)} indices; return "
            "one for each index, in their order"
        )
    return batch


def _task(batch: TaskBatch, place: int) -> dict[str, Tensor]:
    """The tensors of one task without padding, which may grow beside larger tasks."""
    tensors = {}
    for part in PARTS:
        sizes = batch.support_n if part.startswith("support") else batch.query_n
        for path, leaf in leaves(task_of(getattr(batch, part), place, sizes), part):
            # NaN is not equal to itself, and the data may hold NaN.
            tensors[path] = leaf.nan_to_num()
    return tensors


def _name(source: TaskSource) -> str:
    return type(source).__name__
