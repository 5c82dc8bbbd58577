"""The work that is measured: what every contender is given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

import gradshare as gs
from benchmarks.networks import NETWORKS, SMALL, WAYS, Network

CLASSES = 10
# Of each example's own pattern over its class's.
WITHIN_CLASS = 0.3
SEED = 0


@dataclass(frozen=True)
class Problem:
    """Second-order MAML on random tasks of 5 classes.

    Attributes:
        network: of `NETWORKS`.
        shots: support examples a class.
        task_batch: T, the tasks of a meta-step.
        queries: query examples a class.
        steps: K.
        dtype: "float32" or "float64".
        inner_lr: the inner learning rate. It has few binary digits, since a peer keeps it in
            float32.
    """

    network: str
    shots: int
    task_batch: int
    queries: int = 15
    steps: int = 5
    dtype: str = "float32"
    inner_lr: float = 2**-7

    @property
    def kind(self) -> Network:
        """The network."""
        return NETWORKS[self.network]

    def small(self, dtype: str = "float64") -> Self:
        """The same with few and small tasks, to compare contenders and to test the harness."""
        return replace(
            self,
            network=SMALL.get(self.network, self.network),
            shots=min(self.shots, 2),
            task_batch=min(self.task_batch, 2),
            queries=2,
            steps=min(self.steps, 2),
            dtype=dtype,
        )

    def model(self, *, ours: bool, device: str = "cpu") -> nn.Module:
        """The network with its starting weights, the same in both forms.

        γ and β are away from 1 and 0, where a wrong gradient of theirs could hide.

        Args:
            ours: the package's module, where it brings one.
            device: where the weights are.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            model = self.kind.build()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
        if ours and self.kind.ours is not None:
            theirs, model = model, self.kind.ours()
            model.load_state_dict(theirs.state_dict())
        return model.to(device, getattr(torch, self.dtype))

    def source(self) -> gs.ClassTasks:
        """Tasks from random examples of a few classes, in float32."""
        random = torch.Generator().manual_seed(SEED)
        each, shape = self.shots + self.queries, self.kind.shape
        classes = torch.randn(CLASSES, 1, *shape, generator=random)
        examples = classes + WITHIN_CLASS * torch.randn(CLASSES, each, *shape, generator=random)
        return gs.ClassTasks(
            examples.flatten(0, 1).numpy(),
            torch.arange(CLASSES).repeat_interleave(each).numpy(),
            ways=WAYS,
            shots=self.shots,
            queries=self.queries,
        )

    def tasks(self, *, channels_last: bool = False, device: str = "cpu") -> gs.TaskBatch:
        """One task batch.

        Args:
            channels_last: of images: their layout in memory.
            device: where the tensors are.
        """
        dtype = getattr(torch, self.dtype)

        def given(tensor: Tensor) -> Tensor:
            tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
            if channels_last and self.has_images and tensor.is_floating_point():
                tensor = tensor.movedim(-3, -1).contiguous().movedim(-1, -3)
            return tensor.to(device)

        return self.source().batch(range(self.task_batch)).map(given)

    @property
    def has_images(self) -> bool:
        """Whether the inputs are images, which have two layouts in memory."""
        return len(self.kind.shape) == 3
