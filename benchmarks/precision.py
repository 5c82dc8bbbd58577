"""The time of a meta-step in bfloat16 against float32, the two in turn in one process.

OMP_NUM_THREADS=1 python benchmarks/precision.py
"""

from __future__ import annotations

import statistics
import time
from typing import get_args

import torch
from torch import Tensor

from gradshare.methods import MetaLearner, maml
from gradshare.methods.network import Precision
from gradshare.models import Conv4
from gradshare.tasks import TaskBatch
from gradshare.training.machine import keep_freed_memory

WAYS, STEPS, QUERIES = 5, 5, 15
ROUNDS = 5
# Image size, channels, shots, tasks.
SETTINGS = [(28, 1, 1, 5), (84, 3, 5, 1)]


def random_tasks(size: int, channels: int, shots: int, count: int) -> TaskBatch:
    """Standard normal images, their channels last in memory as those of a dataset are."""

    def images(each: int) -> Tensor:
        return torch.randn(count, WAYS * each, size, size, channels).movedim(-1, -3)

    def labels(each: int) -> Tensor:
        return torch.arange(WAYS).repeat_interleave(each).expand(count, -1)

    return TaskBatch(images(shots), labels(shots), images(QUERIES), labels(QUERIES))


def seconds(learner: MetaLearner, tasks: TaskBatch) -> float:
    """One meta-step: the outer loss and its gradient."""
    meta, carried = learner.init()
    start = time.perf_counter()
    objective = learner.outer_step(meta, carried, tasks, iteration=0).objective
    torch.autograd.grad(objective.mean(), list(meta.values()), allow_unused=True)
    return time.perf_counter() - start


def main() -> None:
    keep_freed_memory()
    torch.set_num_threads(1)
    for size, channels, shots, count in SETTINGS:
        torch.manual_seed(0)
        tasks = random_tasks(size, channels, shots, count)
        model = Conv4(ways=WAYS, image_size=size, channels=channels)
        learners = {
            precision: maml(model, steps=STEPS, sharing=True, precision=precision)
            for precision in get_args(Precision)
        }
        rounds = [
            {precision: seconds(learner, tasks) for precision, learner in learners.items()}
            for _ in range(1 + ROUNDS)
        ][1:]
        median = {p: statistics.median(each[p] for each in rounds) for p in learners}
        ratios = [each["float32"] / each["bfloat16"] for each in rounds]
        print(
            f"{size}x{size}, {shots}-shot, task batch {count}: "
            + ", ".join(f"{precision} {median[precision]:.3f} s" for precision in learners)
            + f", {median['float32'] / median['bfloat16']:.2f} times as fast "
            f"({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
