"""Drawing classes and examples: what the sources of this package share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradshare.errors import ConfigError, DataError, require_count

Rows = npt.NDArray[np.int64]
Size = int | tuple[int, int]
"""A number; or the smallest and the largest one, between which each task draws its own."""
Source = TypeVar("Source")

_ATTEMPTS = 1000
_SALT = 0x7461736B  # keeps these draws apart from those of a user who seeds with the index alone


def generator(index: int, seed: int = 0) -> np.random.Generator:
    """The random generator of one task."""
    return np.random.default_rng([int(index), _SALT, *([seed] if seed else [])])


class ClassRows(NamedTuple):
    """The classes of a source, and the rows of its examples that each class has.

    Attributes:
        where: what has the classes, for messages.
        classes: their names.
        starts: (classes,) the first row of each class; the rows of a class follow each other.
        counts: (classes,) how many rows each class has.
        groups: (n,) the group of each row; no group is on both sides of a task. None if there are
            no groups.
    """

    where: str
    classes: Sequence[object]
    starts: Rows
    counts: Rows
    groups: npt.NDArray[Any] | None

    def draw(self, random: np.random.Generator, ways: Size, shots: Size, queries: int) -> Rows:
        """Draw classes without replacement, then examples of each without replacement.

        Of a range of ways or shots, the task's own number is drawn first; all are as likely.

        Returns:
            (ways, shots + queries) rows, the support ones first.

        Raises:
            DataError: the groups of the classes that were drawn could never be divided.
        """
        if isinstance(ways, tuple):
            ways = int(random.integers(ways[0], ways[1] + 1))
        if isinstance(shots, tuple):
            shots = int(random.integers(shots[0], shots[1] + 1))
        if self.groups is None:
            classes = random.choice(len(self.classes), ways, replace=False)
            places = [
                random.choice(count, shots + queries, replace=False)
                for count in self.counts[classes]
            ]
            return np.stack(places) + self.starts[classes, None]
        for _ in range(_ATTEMPTS):
            classes = random.choice(len(self.classes), ways, replace=False)
            rows = [np.arange(self.counts[code]) + self.starts[code] for code in classes]
            groups = [self.groups[of_class] for of_class in rows]
            divided = divide_groups(random, groups, shots, queries)
            if divided is not None:
                return np.stack(
                    [
                        np.append(
                            random.choice(of_class[support], shots, replace=False),
                            random.choice(of_class[~support], queries, replace=False),
                        )
                        for of_class, support in zip(rows, divided, strict=True)
                    ]
                )
        raise DataError(
            f"the groups of {ways} classes of {self.where} could not be divided into {shots} shots "
            f"and {queries} queries of each, in {_ATTEMPTS} draws; lower ways, shots or queries, "
            "or use smaller groups"
        )

    def classes_of(self, rows: Rows) -> tuple[Any, ...]:
        """The class of each of a task's ways, given its rows (ways, n)."""
        first = rows[:, :1]
        is_of = (first >= self.starts) & (first < self.starts + self.counts)  # (ways, classes)
        return tuple(self.classes[code] for code in is_of.argmax(1))

    def require_enough(self, ways: Size, shots: Size, queries: int) -> None:
        """Raise an error if the classes are too few or too small for the largest tasks.

        Raises:
            ConfigError: ways, shots or queries is not a whole number of at least 1, and ways or
                shots not two of them in ascending order.
            DataError: there are fewer classes than ways, or a class has too few examples or groups.
        """
        ways, shots = _largest("ways", ways), _largest("shots", shots)
        require_count("queries", queries)
        if len(self.classes) < ways:
            raise DataError(
                f"{ways}-way tasks need {ways} classes, {self.where} has {len(self.classes)}; "
                "lower ways, or give it more classes"
            )
        smallest = int(self.counts.argmin())
        if self.counts[smallest] < shots + queries:
            raise DataError(
                f"class {self.classes[smallest]!r} of {self.where} has {self.counts[smallest]} "
                f"examples, a task needs {shots + queries} ({shots} shots + {queries} queries); "
                "lower queries or shots, add examples, or leave the class out"
            )
        if self.groups is None:
            return
        for label, start, count in zip(self.classes, self.starts, self.counts, strict=True):
            sizes = np.unique(self.groups[start : start + count], return_counts=True)[1]
            if not can_divide(sizes.tolist(), shots, queries):
                raise DataError(
                    f"class {label!r} of {self.where} has examples of {len(sizes)} groups, which "
                    f"cannot be divided into {shots} shots and {queries} queries from different "
                    "groups; lower shots or queries, add groups, or leave the class out"
                )


def divide_groups(
    random: np.random.Generator, groups: Sequence[Rows], shots: int, queries: int
) -> list[npt.NDArray[np.bool_]] | None:
    """Divide the groups of some classes at random into support groups and query groups.

    The groups come in random order. Each goes to the side whose need it fills more; where it fills
    both alike, and once neither needs it, chance decides.

    Args:
        random: the task's generator.
        groups: for each class, the group (n,) of each of its examples.
        shots: support examples that each class needs.
        queries: query examples that each class needs.

    Returns:
        for each class, whether each of its examples (n,) is on the support side; or None if a class
        has too few examples on a side. Another order of the groups may then work.
    """
    present, codes = np.unique(np.concatenate(groups), return_inverse=True)
    lengths = [len(of_class) for of_class in groups]
    table = np.zeros((len(present), len(groups)), dtype=np.int64)  # examples by group and class
    np.add.at(table, (codes, np.repeat(np.arange(len(groups)), lengths)), 1)
    needs = np.array([[shots], [queries]])
    missing = needs.repeat(len(groups), axis=1)  # by side and class
    is_support = np.empty(len(present), dtype=np.bool_)
    for group in random.permutation(len(present)):
        fills = (np.minimum(table[group], missing) / needs).sum(1)
        side = random.integers(2) if fills[0] == fills[1] else fills.argmax()
        is_support[group] = side == 0
        missing[side] = np.maximum(missing[side] - table[group], 0)
    if missing.any():
        return None
    return np.split(is_support[codes], np.cumsum(lengths)[:-1])


def _largest(name: str, size: Size) -> int:
    """The largest number of a range, or the number itself; ConfigError if it is neither."""
    if not isinstance(size, tuple | list):
        require_count(name, size)
        return size
    for bound in size:
        require_count(name, bound)
    if isinstance(size, list) or len(size) != 2 or size[0] > size[1]:
        raise ConfigError(
            f"{name} is {size!r}; give a number, or the smallest and the largest: {name}=(2, 5)"
        )
    return size[1]


def can_divide(sizes: Sequence[int], shots: int, queries: int) -> bool:
    """Whether groups of these sizes can be divided into two sets with enough examples each."""
    sums = 1  # bit s is set if some of the groups have s examples together
    for size in sizes:
        sums |= sums << size
    return any(sums >> support & 1 for support in range(shots, sum(sizes) - queries + 1))


Side = tuple[Rows, Tensor, list[int] | None]
"""The support sets, or the query sets, of T tasks, in which the classes follow each other: rows
(T, n), labels (T, n), and the number of examples of each task, None if that is always the same.
Smaller tasks are padded with their own examples.
"""


def sides(tasks: Sequence[Rows], queries: int, *sizes: Size) -> tuple[Side, Side]:
    """The support and the query sets of some tasks.

    Args:
        tasks: rows (ways, shots + queries) of each.
        queries: of each class.
        sizes: the ways and shots of the source.
    """
    varies = any(isinstance(size, tuple) for size in sizes)

    def side(tasks: Sequence[Rows]) -> Side:
        counts = [rows.size for rows in tasks]
        labels = [np.arange(len(rows)).repeat(rows.shape[1]) for rows in tasks]
        rows, y = (np.stack([np.resize(t, max(counts)) for t in part]) for part in (tasks, labels))
        return rows, torch.from_numpy(y), counts if varies else None

    return side([rows[:, :-queries] for rows in tasks]), side(
        [rows[:, -queries:] for rows in tasks]
    )


def split_source(
    source: Source, members: str, shares: Sequence[float], seed: int
) -> tuple[Source, ...]:
    """Split the classes or groups of a source at random.

    Args:
        source: has `_starts` and `_counts`, a row for each member, a `_name` and `replace`.
        members: the name of its attribute with the classes or groups.
        shares: of the members; they add up to 1.
        seed: the same seed gives the same splits.

    Raises:
        ConfigError: a share is not above 0, or they do not add up to 1; or a negative seed.
        DataError: a part is too small.
    """
    require_count("seed", seed, least=0)
    if not (min(shares, default=0) > 0 and abs(sum(shares) - 1) <= 1e-6):
        raise ConfigError(
            f"the shares of the splits are {shares} and add up to {sum(shares):g}; give fractions "
            "above 0 that add up to 1, such as 0.6, 0.2, 0.2"
        )
    names = getattr(source, members)
    shuffled = np.random.default_rng([seed, _SALT]).permutation(len(names))
    bounds = np.rint(np.cumsum(shares) * len(names)).astype(np.int64)
    parts = []
    for number, part_codes in enumerate(np.split(shuffled, bounds[:-1]), start=1):
        codes = np.sort(part_codes)
        part: Any = copy.copy(source)
        setattr(part, members, tuple(names[code] for code in codes))
        part._starts, part._counts = part._starts[codes], part._counts[codes]
        part._name = f"split {number} of {len(shares)}"
        parts.append(part.replace())  # which checks that the part is large enough
    return tuple(parts)
