"""The work that is measured: what every contender is given, and what it must be able to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from gradshare.inner_loop import Tensors
from gradshare.models import Conv4
from gradshare.tasks import Normalization, TaskBatch

# Of all pixels in [0, 1]; of each image's own pattern over its class's; of the noise of a pixel.
MEAN, STD, WITHIN_CLASS, GRAIN = 0.5, 0.2, 0.3, 0.1

LAST_LAYER = 0.03


@dataclass(frozen=True)
class Problem:
    """A meta-step: second-order, Conv-4, N-way classification of random images.

    Attributes:
        image_size: height and width in pixels.
        channels: of the images.
        shots: support images a class.
        task_batch: T, tasks a meta-step.
        ways: classes a task.
        queries: query images a class.
        steps: K.
        filters: of each convolution.
        dtype: "float32" or "float64".
        inner_lr: the inner learning rate, which takes no part in the cost. At 84×84 and this one,
            two layouts of one peer differ by 2e-3 to 4e-3 in the worst tensor of a float32
            meta-gradient, and leaving out the second order by 0.3 to 0.7: the comparison is as
            sharp as it can be. At 0.01 rounding alone reaches 1e-2.
        seed: of images and starting weights.
    """

    image_size: int
    channels: int
    shots: int
    task_batch: int
    ways: int = 5
    queries: int = 15
    steps: int = 5
    filters: int = 48
    dtype: Literal["float32", "float64"] = "float32"
    inner_lr: float = 0.003
    seed: int = 0

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of images and weights."""
        return {"float32": torch.float32, "float64": torch.float64}[self.dtype]

    @property
    def normalization(self) -> Normalization:
        """From the problem's pixels to what a network takes, in our layout."""
        return Normalization((MEAN,) * self.channels, (STD,) * self.channels)


class Runner(Protocol):
    """A contender with its network built: what a worker process measures."""

    def as_given(self, tasks: TaskBatch) -> TaskBatch:
        """The contender's own form of uint8 tasks: normalised, in its layout."""
        ...

    def meta_gradient(self, tasks: TaskBatch) -> Tensors:
        """The gradient of the mean outer loss, by the name of each outer parameter."""
        ...

    def predictions(self, tasks: TaskBatch) -> Tensor:
        """Adapt to each task by itself and predict: (T, ways·queries, ways) logits."""
        ...


def draw_tasks(problem: Problem, count: int, seed: int) -> TaskBatch:
    """`count` tasks of uint8 images.

    The images of a class are one coarse pattern with a coarse pattern of each image's own over it,
    which a network tells apart as it does real ones. On pure noise the losses explode within the
    K steps, and two float32 meta-gradients, both correct, have no digit in common.
    """
    random = torch.Generator().manual_seed(seed)
    cells = problem.image_size // 8 + 1
    size = (problem.image_size, problem.image_size)

    def patterns(each: int) -> Tensor:
        return torch.randn(problem.ways, each, problem.channels, cells, cells, generator=random)

    def images(classes: Tensor, each: int) -> Tensor:
        coarse = (classes + WITHIN_CLASS * patterns(each)).flatten(0, 1)
        smooth = F.interpolate(coarse, size=size, mode="bilinear")
        grain = GRAIN * torch.randn(smooth.shape, generator=random)
        return (255 * (MEAN + STD * (smooth + grain))).clamp(0, 255).to(torch.uint8)

    support, queries = [], []
    for _ in range(count):  # one by one, so that memory is measured of steps and not of this
        classes = patterns(1)
        support.append(images(classes, problem.shots))
        queries.append(images(classes, problem.queries))
    labels = torch.arange(problem.ways).expand(count, problem.ways)
    return TaskBatch(
        torch.stack(support),
        labels.repeat_interleave(problem.shots, 1),
        torch.stack(queries),
        labels.repeat_interleave(problem.queries, 1),
    )


def starting_model(problem: Problem) -> Conv4:
    """The network every contender starts from.

    γ and β are away from 1 and 0, where a wrong gradient of theirs could hide. The last layer
    starts small, as in a meta-trained network: from Xavier's scale the first inner steps overshoot,
    and at 84×84 float32's rounding grows to several percent of the meta-gradient.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(problem.seed)
        model = Conv4(
            ways=problem.ways,
            image_size=problem.image_size,
            channels=problem.channels,
            filters=problem.filters,
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".norm." in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
            model.linear.weight.mul_(LAST_LAYER)
    return model.to(problem.torch_dtype)


def chunks(tasks: TaskBatch, size: int) -> Iterator[TaskBatch]:
    """The tasks in batches of at most `size`."""
    for start in range(0, len(tasks), size):
        yield tasks[start : start + size]
