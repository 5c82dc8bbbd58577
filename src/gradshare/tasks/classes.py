"""Few-shot classification tasks from labelled arrays."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradshare.tasks.arrays import Examples, fingerprint, inputs, labels, load, take
from gradshare.tasks.batch import TaskBatch
from gradshare.tasks.drawing import ClassRows, Rows, Size, generator, sides, split_source


class ClassTasks:
    """N-way few-shot tasks from examples with class labels.

    Each task draws classes without replacement and numbers them 0 … ways - 1 in random order;
    then it draws examples of each class without replacement, first the support ones. Within a
    task the classes follow each other.

    Args:
        x: (n, …) inputs: an array (also memory-mapped), a tensor, or a tuple or dictionary of
            them. Batches have float32 for floats and uint8, int64 for other integers.
        y: (n,) class labels: integers, strings or booleans.
        ways: classes in a task (N); or a range (least, most), from which each task draws its own
            number. Tasks of unequal size are padded.
        shots: support examples of each class, or a range likewise.
        queries: query examples of each class.
        groups: (n,) what an example belongs to, such as a patient, a speaker or a recording. No
            group is then in both the support and the query set of a task.

    Raises:
        ConfigError: ways, shots or queries is below 1.
        DataError: the arrays cannot be used, there are fewer classes than ways, or a class has too
            few examples or groups.
    """

    _name = "the data"

    def __init__(
        self,
        x: Any,
        y: Any,
        *,
        ways: Size = 5,
        shots: Size = 1,
        queries: int = 15,
        groups: Any = None,
    ) -> None:
        grouped = None if groups is None else labels(groups, "groups")
        self._examples = Examples(inputs(x), labels(y), grouped)
        names, codes = np.unique(self._examples.y, return_inverse=True)
        self.classes: tuple[Any, ...] = tuple(names.tolist())
        self._order = np.argsort(codes, kind="stable")
        self._groups = None
        if grouped is not None:
            self._groups = np.unique(grouped, return_inverse=True)[1][self._order]
        self._counts = np.bincount(codes)
        self._starts = self._counts.cumsum() - self._counts
        self._set(ways, shots, queries)

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> ClassTasks:
        """Read the examples from files.

        Args:
            path: an `.npz` file with the arrays x, y and perhaps groups; a folder with x.npy,
                y.npy and perhaps groups.npy; or a folder with one NAME.npy for each class. Inputs
                in a folder are memory-mapped.
            **options: ways, shots and queries.

        Raises:
            DataError: there is none of these at the path, or it cannot be used.
        """
        x, y, groups = load(path)
        return cls(x, y, groups=groups, **options)

    def split_classes(self, *shares: float, seed: int = 0) -> tuple[ClassTasks, ...]:
        """Split the classes at random, for example into training, validation and test classes.

        Args:
            shares: of the classes, such as 0.6, 0.2, 0.2; they add up to 1.
            seed: the same seed gives the same splits.

        Raises:
            ConfigError: the shares do not add up to 1.
            DataError: a split has fewer classes than ways.
        """
        return split_source(self, "classes", shares, seed)

    def replace(self, **changes: Any) -> ClassTasks:
        """The same data with other ways, shots or queries."""
        settings = {"ways": self.ways, "shots": self.shots, "queries": self.queries}
        changed = copy.copy(self)
        changed._set(**settings | changes)
        return changed

    @property
    def fingerprint(self) -> str:
        """A digest of the data, the classes and the settings."""
        return fingerprint(self._examples.digest, self.classes, self.ways, self.shots, self.queries)

    def __repr__(self) -> str:
        return (
            f"ClassTasks({self._name}: {len(self.classes)} classes, {self._counts.sum()} examples; "
            f"ways={self.ways}, shots={self.shots}, queries={self.queries})"
        )

    def batch(self, indices: Sequence[int]) -> TaskBatch:
        """The tasks of the given indices."""
        tasks = [self._order[self._draw(index)] for index in indices]
        support, query = sides(tasks, self.queries, self.ways, self.shots)
        (rows, y, n), (query_rows, query_y, query_n) = support, query
        x = self._examples.x
        return TaskBatch(take(x, rows), y, take(x, query_rows), query_y, n, query_n)

    def classes_of(self, index: int) -> tuple[Any, ...]:
        """The classes of a task's labels 0 … ways - 1."""
        return self._rows.classes_of(self._draw(index))

    def _draw(self, index: int) -> Rows:
        """Rows (ways, shots + queries) of the order by class."""
        return self._rows.draw(generator(index), self.ways, self.shots, self.queries)

    @property
    def _rows(self) -> ClassRows:
        return ClassRows(self._name, self.classes, self._starts, self._counts, self._groups)

    def _set(self, ways: Size, shots: Size, queries: int) -> None:
        self.ways, self.shots, self.queries = ways, shots, queries
        self._rows.require_enough(ways, shots, queries)
