"""How far the cells of a plan are, and how long the rest will take."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from gradshare.experiments.paper.grid import Standing, State
from gradshare.tasks.datasets import DATASETS


@dataclass(frozen=True)
class Tally:
    """How far some cells are together.

    Attributes:
        cells: how many there are.
        states: how many are in each state.
        spent: seconds of training so far, summed over cells.
        left: seconds that remain, summed over cells; None where nothing like them was measured.
    """

    cells: int
    states: Counter[State]
    spent: float
    left: float | None


def tally(of: Sequence[Standing], measured: Sequence[Standing]) -> Tally:
    """Add up how far some cells are.

    Args:
        of: these cells.
        measured: what their time is told from: the same cells and others. A cell is taken to be as
            fast as those of its own study, or else as those on the same images, or else as any,
            by the number of pixels that it passes through its model.
    """
    left: float | None = 0.0
    for one in of:
        seconds = _seconds_left(one, measured)
        left = None if left is None or seconds is None else left + seconds
    return Tally(
        cells=len(of),
        states=Counter(one.state for one in of),
        spent=sum(one.seconds or 0.0 for one in of),
        left=left,
    )


def _seconds_left(one: Standing, measured: Sequence[Standing]) -> float | None:
    """None if nothing like it has an epoch behind it."""
    if one.state == "done":
        return 0.0
    for kind in (_of_itself, _of_study, _of_images, _of_device):
        paces = [
            other.seconds / _passes(other.cell.config, _share(other))
            for other in measured
            if other.seconds and _share(other) and kind(other) == kind(one)
        ]
        if paces:
            whole, done = _passes(one.cell.config, 1.0), _passes(one.cell.config, _share(one))
            return statistics.median(paces) * (whole - done)
    return None


def _of_itself(one: Standing) -> Hashable:
    return one.cell.name


def _of_study(one: Standing) -> Hashable:
    return one.cell.study, _of_images(one)


def _of_images(one: Standing) -> Hashable:
    config = one.cell.config
    return config.dataset, config.image_size, config.device


def _of_device(one: Standing) -> Hashable:
    return str(one.cell.config.device)


def _share(one: Standing) -> float:
    """How much of its training is done. A run that diverged has stopped short of its end."""
    return one.iterations / int(one.cell.config.iterations)


def _passes(config: Any, share: float) -> float:
    """Pixels passed through the model, in forward passes, by a share of a run and, at its end, the
    test.

    A backward pass counts as two forward passes, a second derivative as twice both.
    """
    second = 3 if config.order == "second" else 1
    support = config.ways * config.shots
    query = config.ways * config.queries
    losses = 1.0
    if config.method == "maml++":
        losses += (config.inner_steps - 1) * config.span(config.multi_step_loss) / config.iterations
    adapting = 3 * config.inner_steps * support
    iteration = config.task_batch * (second * adapting + 3 * losses * query)
    validation = config.val_tasks * (adapting + 2 * (support + query))
    test = config.test_tasks * config.ensemble * (adapting + query)
    passes = share * (config.iterations * iteration + config.epochs * validation)
    size = config.image_size or DATASETS[config.dataset].image_size
    return float(size**2 * (passes + (test if share == 1 else 0)))
