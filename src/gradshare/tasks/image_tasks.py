"""Tasks from a prepared dataset of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradshare.errors import ConfigError, require_choice
from gradshare.tasks.arrays import digest, fingerprint
from gradshare.tasks.augment import Augmentation, augmented
from gradshare.tasks.batch import TaskBatch
from gradshare.tasks.drawing import ClassRows, Rows, Size, generator, sides
from gradshare.tasks.images import ImageFormat
from gradshare.tasks.normalization import Normalization
from gradshare.tasks.registry import DATASETS
from gradshare.tasks.store import ImageStore, Split, splits_note

RIGHT_ANGLES = 4
AUGMENTATION_SEED = 1


@dataclass(frozen=True, eq=False)
class ImageTasks:
    """N-way few-shot tasks from one split of an `ImageStore`, drawn as the reference MAML++ code
    does: classes without replacement, then images of each without replacement, support first.

    If the split has groups, no group is in both the support and the query set of a task. A pickle
    of it holds the path of the images, not the images.

    Attributes:
        split: the classes to draw from, such as `ImageStore.open(path).splits["train"]`.
        ways: classes in a task (N); or a range (least, most), from which each task draws its own
            number. Tasks of unequal size are padded.
        shots: support images of each class, or a range likewise.
        queries: query images of each class.
        normalization: what `prepare` applies; None scales the images to [0, 1].
        rotate_classes: turn each class of each task by a random multiple of 90°, which the
            reference code does when it trains on Omniglot.
        augment: changes each image in its own way, for training: "flip", "crop", "colour"; see
            `gradshare.tasks.augment`.

    Raises:
        ConfigError: `split` is not a `Split`; ways, shots or queries is below 1; or `augment` has
            something else.
        DataError: there are fewer classes than ways, or a class has fewer images than
            shots + queries, or too few groups.
    """

    split: Split
    _: KW_ONLY
    ways: Size = 5
    shots: Size = 1
    queries: int = 15
    normalization: Normalization | None = None
    rotate_classes: bool = False
    augment: Sequence[Augmentation] = ()

    def __post_init__(self) -> None:
        split = self.split
        for kind in self.augment:
            require_choice("augment", kind, Augmentation)
        if not isinstance(split, Split):
            raise ConfigError(
                f"split is a {type(split).__name__}; give one of a store's splits, such as "
                "ImageStore.open(path).splits['train']"
            )
        self._class_rows.require_enough(self.ways, self.shots, self.queries)

    @property
    def fingerprint(self) -> str:
        """A digest of the images, the classes and groups of the split, and the settings."""
        split = self.split
        images = getattr(split.images, "sha256", None) or digest(split.images)
        classes = (split.name, split.class_names, split.starts.tolist(), split.counts.tolist())
        sizes = (self.ways, self.shots, self.queries)
        groups = () if split.groups is None else (split.groups.tolist(),)
        more = (*groups, *sorted(self.augment))
        return fingerprint(images, classes, sizes, self.normalization, self.rotate_classes, *more)

    @property
    def dataset(self) -> str | None:
        """The name of the dataset that the images are of, if they are in a store."""
        return self.split.dataset

    @property
    def note(self) -> str | None:
        """A caveat printed with results on these tasks, or None."""
        return splits_note(str(self.dataset), self.split.source)

    @cached_property
    def _class_rows(self) -> ClassRows:
        split, groups = self.split, None
        if split.groups is not None:  # numbers are compared faster than names
            groups = np.unique(split.groups, return_inverse=True)[1]
        where = f"split {split.name!r}" + (f" of {split.dataset}" if split.dataset else "")
        return ClassRows(where, split.class_names, split.starts, split.counts, groups)

    def replace(self, **changes: Any) -> ImageTasks:
        """The same images with other settings."""
        return dataclasses.replace(self, **changes)

    def rows(self, index: int) -> tuple[Rows, Rows]:
        """Choose the images of a task.

        Returns:
            rows (ways, shots + queries) of the split's images, and the quarter turns (ways,) of
            each class.
        """
        random = generator(index)
        rows = self._class_rows.draw(random, self.ways, self.shots, self.queries)
        turns = np.zeros(len(rows), dtype=np.int64)
        if self.rotate_classes:
            turns = random.integers(RIGHT_ANGLES, size=len(rows))
        return rows, turns

    def classes_of(self, index: int) -> tuple[str, ...]:
        """The names of a task's classes 0 … ways - 1."""
        rows, _ = self.rows(index)
        return self._class_rows.classes_of(rows)

    def batch(self, indices: Sequence[int]) -> TaskBatch:
        """The tasks of the given indices, as uint8 images (T, ways·n, C, H, W)."""
        tasks = [self.rows(index) for index in indices]
        turns = [turns for _, turns in tasks]
        support, query = sides([rows for rows, _ in tasks], self.queries, self.ways, self.shots)
        (rows, y, n), (query_rows, query_y, query_n) = support, query
        x, query_x = self._images(rows, y, turns), self._images(query_rows, query_y, turns)
        for task, index in enumerate(indices) if self.augment else ():
            random = generator(index, AUGMENTATION_SEED)
            for images, sizes in ((x, n), (query_x, query_n)):
                real = slice(None if sizes is None else sizes[task])
                images[task, real] = augmented(images[task, real], self.augment, random)
        return TaskBatch(x, y, query_x, query_y, n, query_n)

    def _images(self, rows: Rows, labels: Tensor, turns: Sequence[Rows]) -> Tensor:
        """The images (T, n, C, H, W) of some rows (T, n), turned as the classes of their task."""
        # `take` reads a memory map three times as fast as indexing it does.
        images = self.split.images.take(rows, axis=0)
        of_image = np.stack([own[y] for own, y in zip(turns, labels.numpy(), strict=True)])
        for turn in range(1, RIGHT_ANGLES) if self.rotate_classes else ():
            turned = of_image == turn
            images[turned] = np.rot90(images[turned], turn, axes=(-2, -1))
        return torch.from_numpy(np.asarray(images))

    @property
    def form(self) -> ImageFormat:
        """What the images were turned into when they were prepared."""
        channels, size, _ = self.split.images.shape[1:]
        return ImageFormat(size, channels, self.split.source.get("resize", "stretch"))

    @property
    def used_normalization(self) -> Normalization:
        """What `prepare` applies."""
        channels = self.split.images.shape[1]
        return self.normalization or Normalization((0.0,) * channels, (1.0,) * channels)

    def prepare(self, batch: TaskBatch) -> TaskBatch:
        """Scale the images to floats and normalise them."""
        return self.used_normalization.batch(batch)


def image_splits(
    store: ImageStore,
    *,
    normalization: Normalization | None = None,
    augment: Sequence[Augmentation] = (),
    **settings: Any,
) -> tuple[ImageTasks, ImageTasks, ImageTasks]:
    """The training, validation and test tasks of a prepared dataset.

    Args:
        store: the dataset, from `open_dataset`.
        normalization: of the images; by default with the mean and deviation of the training images.
        augment: of the training images; see `ImageTasks`.
        **settings: ways, shots and queries; see `ImageTasks`.

    Raises:
        ConfigError, DataError: see `ImageTasks`; or characters were to be mirrored.
    """
    dataset = DATASETS.get(store.name)
    if "flip" in augment and dataset is not None and dataset.characters:
        raise ConfigError(
            f"flip mirrors images, and a mirrored character of {store.name} is another one or "
            "none; leave it out"
        )
    normalization = normalization or Normalization(store.mean, store.std)
    train, validation, test = (
        ImageTasks(store.splits[name], normalization=normalization, **settings)
        for name in ("train", "val", "test")
    )
    train = train.replace(rotate_classes=store.rotate_classes, augment=augment)
    return train, validation, test
