"""How the work of a run is laid out on its machine: the one place that decides it.

A layout changes how fast a run is and what memory it takes, and its results by rounding only. It
is a function of the configuration, the images' shape and the kind of device, never of what happens
to be free: a run that is continued must be laid out as it was.

Two more decisions are the same everywhere and made elsewhere. Images have their channels last in
memory, which a network keeps (`gradshare.tasks.Normalization`); and programs tell the C library
to keep the memory that they free, when they start (`gradshare.training.machine`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from gradshare.config import RunConfig
from gradshare.training.memory import peak_of_graphs

GIB = 1 << 30
# Graphs are kept where a run then takes no more than this; on a CPU several runs go side by side.
KEPT_UP_TO = {"cpu": 4 * GIB, "cuda": 16 * GIB}


@dataclass(frozen=True)
class Layout:
    """How the work of a run is laid out.

    Attributes:
        device: "cpu" or "cuda".
        tasks: whether the tasks of a batch are computed one after the other or all at once.
        memory: whether the graph of every inner step is kept for the backward pass, or built again
            in it.
        compile: whether the model's forward pass goes through `torch.compile`; see
            `gradshare.training.compilation`.
    """

    device: str
    tasks: Literal["loop", "vmap"]
    memory: Literal["keep", "recompute"]
    compile: bool

    @property
    def tasks_at_a_time(self) -> int | None:
        """As `MetaLearner` takes it."""
        return None if self.tasks == "vmap" else 1

    @property
    def recompute(self) -> bool:
        """As `MetaLearner` takes it."""
        return self.memory == "recompute"

    def describe(self) -> str:
        """The layout in one line."""
        tasks = {"loop": "tasks one at a time (loop)", "vmap": "tasks all at once (vmap)"}
        memory = {
            "keep": "graphs kept (keep)",
            "recompute": "graphs built again in the backward pass (recompute)",
        }
        compiled = "compiled" if self.compile else "not compiled"
        return (
            f"{self.device}: {tasks[self.tasks]}, {memory[self.memory]}, {compiled}, "
            "channels last, freed memory kept where the C library is glibc"
        )


def choose_layout(
    config: RunConfig, model: nn.Module, image_shape: Sequence[int], device: torch.device
) -> Layout:
    """The layout of a run: what its configuration asks for, and where that says "auto" what is
    best on such a device.

    All arms of a comparison have the same, that of the one which shares, so that their times can
    be compared too.

    Args:
        config: of the run.
        model: what it trains.
        image_shape: (C, H, W).
        device: where.
    """
    # Where graphs are kept, all tasks at once take a third less time on small images, and on large
    # ones neither more nor less. Where they are not, only one task at a time keeps memory flat in
    # the task batch, while on a GPU many small kernels would cost more than that saves.
    if config.memory == "auto":
        tasks = "vmap" if config.tasks == "auto" else config.tasks
        sharing = config.without_arm()
        kept = peak_of_graphs(sharing, model, image_shape, vmap=tasks == "vmap", recompute=False)
        memory: Literal["keep", "recompute"] = (
            "keep" if kept <= KEPT_UP_TO[device.type] else "recompute"
        )
    else:
        memory = config.memory
    if config.tasks == "auto":
        flat = memory == "recompute" and device.type == "cpu"
        return Layout(device.type, "loop" if flat else "vmap", memory, config.compile)
    return Layout(device.type, config.tasks, memory, config.compile)
