"""The episode sampler: a pure function of (seed, split, index).

Nothing is remembered between calls, so any process, worker or resumed run that asks for task 17
of the training split under seed 0 gets the same images, whatever was asked before.
"""

from __future__ import annotations

import operator
import zlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradshare.errors import ConfigError, DataError, require_count
from gradshare.tasks.batch import TaskBatch
from gradshare.tasks.store import Split

RIGHT_ANGLES = 4


class EpisodeSampler:
    """Draws N-way few-shot tasks from a split, as the reference MAML++ code does: classes
    without replacement, then images of each class without replacement, support first.

    Args:
        split: the classes to draw from.
        ways: classes a task (N).
        shots: support images a class.
        queries: query images a class.
        seed: the same seed gives the same tasks.
        rotate_classes: turn each class of each task by a random multiple of 90° (Omniglot's
            train-time augmentation in the reference code).

    Raises:
        ConfigError: ways, shots or queries below one, a negative seed, or no split.
        DataError: more ways than classes, or a class with fewer than shots + queries images.
    """

    def __init__(
        self,
        split: Split,
        *,
        ways: int,
        shots: int,
        queries: int,
        seed: int,
        rotate_classes: bool = False,
    ) -> None:
        if not isinstance(split, Split):
            raise ConfigError(
                f"split is a {type(split).__name__}; give one of a store's splits, such as "
                "store.splits['train']"
            )
        for what, value in (("ways", ways), ("shots", shots), ("queries", queries)):
            require_count(what, value)
        require_count("seed", seed, least=0)
        if ways > len(split.class_names):
            raise DataError(
                f"{ways}-way tasks need {ways} classes, split {split.name!r} has "
                f"{len(split.class_names)}; lower --ways or add classes"
            )
        smallest = int(split.counts.argmin())
        if split.counts[smallest] < shots + queries:
            raise DataError(
                f"class {split.class_names[smallest]!r} of split {split.name!r} has "
                f"{split.counts[smallest]} images, a task needs {shots + queries} "
                f"({shots} shots + {queries} queries); lower --queries or --shots, or add images"
            )
        self.split = split
        self.ways = ways
        self.shots = shots
        self.queries = queries
        self.seed = seed
        self.rotate_classes = rotate_classes
        self._stream = zlib.crc32(split.name.encode())

    def rows(self, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """What task `index` is made of.

        Returns:
            rows (ways, shots + queries) of the store, and quarter turns (ways,) of each class.

        Raises:
            DataError: a negative index.
        """
        if index < 0:
            raise DataError(f"there is no task {index}; tasks are counted from 0")
        random = np.random.default_rng([self.seed, self._stream, index])
        classes = random.choice(len(self.split.starts), self.ways, replace=False)
        rows = np.empty((self.ways, self.shots + self.queries), dtype=np.int64)
        for row, count in zip(rows, self.split.counts[classes], strict=True):
            row[:] = random.choice(count, len(row), replace=False)
        rows += self.split.starts[classes, None]
        turns = np.zeros(self.ways, dtype=np.int64)
        if self.rotate_classes:
            turns = random.integers(RIGHT_ANGLES, size=self.ways)
        return rows, turns

    def batch(self, indices: Iterable[int]) -> TaskBatch:
        """The tasks of the given indices, as uint8 images.

        Raises:
            DataError: no index, or a negative one.
        """
        # Of a tensor or an array they are 0-d ones, which no seed can be made of.
        tasks = [self.rows(operator.index(index)) for index in indices]
        if not tasks:
            raise DataError("a batch needs at least one task, and no index was given")
        rows = np.stack([rows for rows, _ in tasks])  # (T, ways, shots + queries)
        turns = np.stack([turns for _, turns in tasks])  # (T, ways)
        labels = torch.arange(self.ways).expand(len(tasks), self.ways)
        return TaskBatch(
            self._images(rows[:, :, : self.shots], turns),
            labels.repeat_interleave(self.shots, dim=1),
            self._images(rows[:, :, self.shots :], turns),
            labels.repeat_interleave(self.queries, dim=1),
        )

    def _images(self, rows: npt.NDArray[np.int64], turns: npt.NDArray[np.int64]) -> Tensor:
        """The images of some rows (T, ways, n), turned: (T, ways·n, C, H, W)."""
        # `take` reads a memory map three times as fast as indexing it does.
        images = self.split.images.take(rows, axis=0)
        for turn in range(1, RIGHT_ANGLES) if self.rotate_classes else ():
            turned = turns == turn
            images[turned] = np.rot90(images[turned], turn, axes=(-2, -1))
        return torch.from_numpy(np.asarray(images)).flatten(1, 2)
