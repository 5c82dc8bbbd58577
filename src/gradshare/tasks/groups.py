"""Tasks that are groups: one task for each patient, device, speaker or site."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradshare.errors import DataError, require_count
from gradshare.tasks.arrays import Examples, as_array, fingerprint, inputs, labels, load, take
from gradshare.tasks.batch import TaskBatch
from gradshare.tasks.drawing import Rows, generator, split_source


class GroupTasks:
    """Few-shot tasks from grouped examples: each task is one group, drawn at random.

    With class labels, a task has `shots` support examples and `queries` query examples of each
    class, and a class has the same label in every task: its place in `classes`. With real
    targets, a task has `shots` and `queries` examples.

    Args:
        x: (n, …) inputs: an array (also memory-mapped), a tensor, or a tuple or dictionary of
            them. Batches have float32 for floats and uint8, int64 for other integers.
        y: (n,) class labels, as integers, strings or booleans; or real targets (n,) or (n, d), as
            floats.
        groups: (n,) what an example belongs to, such as a patient, a device or a site.
        shots: support examples, of each class if there are classes.
        queries: query examples likewise; None takes all that are left. Tasks of unequal size are
            then padded.

    Raises:
        ConfigError: shots or queries is below 1.
        DataError: the arrays cannot be used, or a group has too few examples, of one of the classes
            if there are classes.
    """

    def __init__(
        self, x: Any, y: Any, groups: Any, *, shots: int = 1, queries: int | None = 15
    ) -> None:
        targets = as_array(y)
        is_real = targets.dtype.kind == "f"
        if is_real and not np.isfinite(targets).all():
            raise DataError("y holds targets that are not finite; leave those examples out")
        of_group = labels(groups, "groups")
        self._examples = Examples(inputs(x), targets if is_real else labels(y), of_group)
        self.classes: tuple[Any, ...] | None = None
        self._targets, codes = targets, np.zeros(len(targets), dtype=np.int64)
        if not is_real:
            class_names, codes = np.unique(self._examples.y, return_inverse=True)
            self.classes, self._targets = tuple(class_names.tolist()), codes
        group_names, group_codes = np.unique(of_group, return_inverse=True)
        self.groups: tuple[Any, ...] = tuple(group_names.tolist())
        self._order = np.lexsort((codes, group_codes))
        classes = len(self.classes or [None])
        counts = np.bincount(group_codes * classes + codes, minlength=len(self.groups) * classes)
        # Both (groups, classes); the rows of a group and class follow each other in the order.
        self._counts = counts.reshape(-1, classes)
        self._starts = (counts.cumsum() - counts).reshape(-1, classes)
        self._name = "the data"
        self._set(shots, queries)

    @classmethod
    def load(cls, path: str | Path, **options: int | None) -> GroupTasks:
        """Read the examples from files.

        Args:
            path: an `.npz` file with the arrays x, y and groups; or a folder with x.npy, y.npy and
                groups.npy, of which x.npy is memory-mapped.
            **options: shots and queries.

        Raises:
            DataError: there is none of these at the path, or it cannot be used.
        """
        x, y, groups = load(path)
        if groups is None:
            raise DataError(f"{path} has no groups; add an array named groups, or use ClassTasks")
        return cls(x, y, groups, **options)  # type: ignore[arg-type]

    def split_groups(self, *shares: float, seed: int = 0) -> tuple[GroupTasks, ...]:
        """Split the groups at random, for example into training, validation and test groups.

        Args:
            shares: of the groups, such as 0.6, 0.2, 0.2; they add up to 1.
            seed: the same seed gives the same splits.

        Raises:
            ConfigError: the shares do not add up to 1.
            DataError: a split has no groups.
        """
        return split_source(self, "groups", shares, seed)

    def replace(self, **changes: Any) -> GroupTasks:
        """The same data with other shots or queries."""
        changed = copy.copy(self)
        changed._set(**{"shots": self.shots, "queries": self.queries} | changes)
        return changed

    @property
    def fingerprint(self) -> str:
        """A digest of the data, the groups and the settings."""
        return fingerprint(self._examples.digest, self.groups, self.shots, self.queries)

    def __repr__(self) -> str:
        return (
            f"GroupTasks({self._name}: {len(self.groups)} groups, {self._counts.sum()} examples; "
            f"shots={self.shots}, queries={self.queries})"
        )

    def batch(self, indices: Sequence[int]) -> TaskBatch:
        """The tasks of the given indices."""
        tasks = [self._draw(generator(index)) for index in indices]
        sizes = [len(query) for _, query in tasks]
        support = self._order[np.stack([support for support, _ in tasks])]
        # Which example the padding repeats does not matter.
        padded_rows = [np.pad(query, (0, max(sizes) - len(query))) for _, query in tasks]
        query = self._order[np.stack(padded_rows)]
        of_group = self._counts.sum(1)
        padded = self.queries is None and of_group.min() < of_group.max()
        return TaskBatch(
            take(self._examples.x, support),
            take(self._targets, support),
            take(self._examples.x, query),
            take(self._targets, query),
            query_n=sizes if padded else None,
        )

    def classes_of(self, index: int) -> tuple[Any, ...]:
        """The classes of a task's labels 0, 1, …, which all tasks share; none of real targets."""
        return self.classes or ()

    def encode(self, y: Any) -> tuple[torch.Tensor, tuple[Any, ...] | None]:
        """Targets (n,) of one support set as the tasks have them, and the classes in their order.

        Raises:
            DataError: a label that is none of the classes.
        """
        given = as_array(y)
        if self.classes is None:
            return torch.as_tensor(given.astype(np.float32)), None
        numbers = {label: number for number, label in enumerate(self.classes)}
        if unknown := [label for label in given.tolist() if label not in numbers]:
            raise DataError(
                f"the label {unknown[0]!r} is none of the classes {self.classes!r:.100}"
            )
        codes = [numbers[label] for label in given.tolist()]
        return torch.tensor(codes, dtype=torch.int64), self.classes

    def _draw(self, random: np.random.Generator) -> tuple[Rows, Rows]:
        """The support and the query rows, in the order by group and class."""
        group = random.integers(len(self.groups))
        support, query = [], []
        for start, count in zip(self._starts[group], self._counts[group], strict=True):
            size = count if self.queries is None else self.shots + self.queries
            rows = start + random.choice(count, size, replace=False)
            support.append(rows[: self.shots])
            query.append(rows[self.shots :])
        return np.concatenate(support), np.concatenate(query)

    def _set(self, shots: int, queries: int | None) -> None:
        self.shots, self.queries = shots, queries
        require_count("shots", shots)
        queries = 1 if queries is None else queries
        require_count("queries", queries)
        if not self.groups:
            raise DataError(f"{self._name} has no groups; give it a larger share or add groups")
        group, code = np.unravel_index(self._counts.argmin(), self._counts.shape)
        count = self._counts[group, code]
        if count < shots + queries:
            of_class = "" if self.classes is None else f" of class {self.classes[code]!r}"
            raise DataError(
                f"group {self.groups[group]!r} of {self._name} has {count} examples{of_class}, a "
                f"task needs {shots + queries} ({shots} shots + {queries} queries); "
                "lower queries or shots, add examples, or leave the group out"
            )
