"""The episode sampler: a pure function of (seed, split, index).

Nothing is remembered between calls, so any process, worker or resumed run that asks for task 17
of the training split under seed 0 gets the same images, whatever was asked before.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

from gradshare.episodes.batch import TaskBatch
from gradshare.episodes.store import Split
from gradshare.errors import DataError

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
        """
        random = np.random.default_rng([self.seed, self._stream, index])
        classes = random.choice(len(self.split.starts), self.ways, replace=False)
        rows = np.stack(
            [
                self.split.starts[c]
                + random.choice(self.split.counts[c], self.shots + self.queries, replace=False)
                for c in classes
            ]
        )
        turns = np.zeros(self.ways, dtype=np.int64)
        if self.rotate_classes:
            turns = random.integers(RIGHT_ANGLES, size=self.ways)
        return rows, turns

    def batch(self, indices: Iterable[int]) -> TaskBatch:
        """The tasks of the given indices, as uint8 images."""
        tasks = [self._images(index) for index in indices]
        images = torch.from_numpy(np.stack(tasks))  # (T, ways, shots + queries, C, H, W)
        support, query = torch.tensor_split(images, [self.shots], dim=2)
        labels = torch.arange(self.ways).expand(len(tasks), self.ways)
        return TaskBatch(
            support.flatten(1, 2).contiguous(),
            labels.repeat_interleave(self.shots, dim=1),
            query.flatten(1, 2).contiguous(),
            labels.repeat_interleave(self.queries, dim=1),
        )

    def _images(self, index: int) -> npt.NDArray[np.uint8]:
        rows, turns = self.rows(index)
        images = self.split.images[rows]  # (ways, shots + queries, C, H, W)
        for way, turn in enumerate(turns):
            if turn:
                images[way] = np.rot90(images[way], turn, axes=(-2, -1))
        return np.asarray(images)
