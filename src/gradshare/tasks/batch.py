"""What the rest of the system sees of the data: batches of few-shot tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradshare.errors import DataError


@dataclass(frozen=True, eq=False)
class TaskBatch:
    """T few-shot classification tasks (the paper's 𝓑).

    Images are uint8 as they come from storage, or float once `Normalization` was applied.
    Labels are int64 in [0, ways). Within a task the classes follow each other: the first `shots`
    support images are of class 0, the next of class 1, and so on; likewise the queries.

    Attributes:
        support_x: (T, ways·shots, C, H, W) images to adapt on.
        support_y: (T, ways·shots) their labels.
        query_x: (T, ways·queries, C, H, W) images to be judged on after adaptation.
        query_y: (T, ways·queries) their labels.

    Raises:
        DataError: there are no tasks, or not as many of them in every tensor, or one is no tensor.
    """

    support_x: Tensor
    support_y: Tensor
    query_x: Tensor
    query_y: Tensor

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, Tensor):
                raise DataError(
                    f"{name} of a task batch is a {type(value).__name__}; give a tensor "
                    "(torch.as_tensor)"
                )
        counts = [tensor.shape[:1] for tensor in vars(self).values()]
        if any(count != counts[0] or not any(count) for count in counts):
            found = ", ".join(f"{name} {tuple(t.shape)}" for name, t in vars(self).items())
            raise DataError(
                f"the tensors of a task batch are {found}; the first dimension must be the tasks, "
                "the same number in each and at least one: give a single task as x[None]"
            )

    def __len__(self) -> int:
        """T, the number of tasks."""
        return self.support_x.shape[0]

    def __getitem__(self, tasks: slice) -> TaskBatch:
        """Some of the tasks, at least one.

        Raises:
            TypeError: an index that is no slice, which would leave the tasks' dimension out.
        """
        if not isinstance(tasks, slice):
            raise TypeError(
                f"a task batch is cut by slices, not by {tasks!r}: batch[2:3] is a batch of the "
                "third task alone"
            )
        return TaskBatch(
            self.support_x[tasks], self.support_y[tasks], self.query_x[tasks], self.query_y[tasks]
        )

    def to(self, device: torch.device | str) -> TaskBatch:
        """The same tasks on another device.

        Towards CUDA the host does not wait for the copy: what uses it there waits its turn. Back on
        the CPU nothing would, and one could read what has not arrived yet.
        """
        non_blocking = torch.device(device).type == "cuda"
        return TaskBatch(
            self.support_x.to(device, non_blocking=non_blocking),
            self.support_y.to(device, non_blocking=non_blocking),
            self.query_x.to(device, non_blocking=non_blocking),
            self.query_y.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True)
class Normalization:
    """uint8 images to float: x / 255, then (x - mean) / std for each channel.

    Attributes:
        mean: one value a channel, of images scaled to [0, 1].
        std: one value a channel, of images scaled to [0, 1].

    Raises:
        DataError: a standard deviation that is not above 0, or more of one than of the other.
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(std > 0 for std in self.std):
            raise DataError(
                f"images cannot be standardised by mean {list(self.mean)} and standard deviation "
                f"{list(self.std)}; give one of each for every channel, the latter above 0"
            )

    def __call__(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normalise images (…, C, H, W) of uint8 on the device where they are.

        The result has the channels last in memory: batch norm and max-pooling on a CPU are five to
        ten times faster on it, and a network keeps the layout it is given.

        Raises:
            DataError: they are of another type: scaled already, they would be scaled again.
        """
        if images.dtype != torch.uint8:
            raise DataError(
                f"the images are {images.dtype}; Normalization takes torch.uint8 from 0 to 255, "
                "and scales it itself"
            )
        mean = torch.tensor(self.mean, dtype=dtype, device=images.device)
        std = torch.tensor(self.std, dtype=dtype, device=images.device)
        # A copy even where nothing moves: with one channel both layouts are the same in memory,
        # and only the strides of a tensor made channels-last tell PyTorch which one it is. It is
        # the only one: a batch of 84×84 images is tens of megabytes.
        last = images.movedim(-3, -1)
        pixels = torch.empty(last.shape, dtype=dtype, device=images.device).copy_(last)
        return pixels.sub_(255 * mean).div_(255 * std).movedim(-1, -3)

    def batch(self, tasks: TaskBatch, dtype: torch.dtype = torch.float32) -> TaskBatch:
        """Normalise the support and query images of a task batch."""
        return TaskBatch(
            self(tasks.support_x, dtype), tasks.support_y, self(tasks.query_x, dtype), tasks.query_y
        )
