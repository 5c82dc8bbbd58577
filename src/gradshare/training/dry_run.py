"""What a run would take, from a few of its steps: `gradshare train --dry-run`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gradshare.config import RunConfig
from gradshare.training.compilation import compile_if_right
from gradshare.training.evaluation import measure_test, validate
from gradshare.training.folder import refuse_if_occupied
from gradshare.training.layout import Layout
from gradshare.training.memory import CHUNK, PeakMemory, estimate
from gradshare.training.outer_loop import make_optimizer, outer_iteration
from gradshare.training.preflight import (
    disk_bytes,
    less_memory,
    memory_errors,
    require_disk,
    require_memory,
)
from gradshare.training.setup import Setup, set_up

# The first of its kind is slower, and is not counted.
REPETITIONS = 5
ENOUGH_SECONDS = 20


@dataclass(frozen=True)
class Stretch:
    """Iterations that cost the same: MAML++ has some of the first order, and some with a loss after
    every inner step.

    Attributes:
        first: of them, from 1.
        last: of them.
        seconds: each takes.
    """

    first: int
    last: int
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Attributes:
        layout: how its work is laid out.
        stretches: of its training.
        validation: seconds of the validation after each epoch.
        test: seconds of the test at the end.
        epochs: how many there are.
        memory_measured: bytes at the peak over those of the idle process; None where the system
            does not say.
        memory_estimated: likewise, from the shapes alone.
        disk: bytes in the run's folder.
    """

    layout: Layout
    stretches: tuple[Stretch, ...]
    validation: float
    test: float
    epochs: int
    memory_measured: int | None
    memory_estimated: int
    disk: int

    @property
    def training(self) -> float:
        """Seconds of all iterations."""
        return sum(
            stretch.seconds * (stretch.last + 1 - stretch.first) for stretch in self.stretches
        )

    @property
    def epoch(self) -> float:
        """Seconds of an epoch and its validation; their mean where epochs differ."""
        return self.training / self.epochs + self.validation

    @property
    def run(self) -> float:
        """Seconds of the whole run."""
        return self.epochs * self.epoch + self.test


def dry_run(config: RunConfig, folder: Path | None) -> Estimate:
    """Check all that a run checks before its first step, then time a few steps of each kind.

    Args:
        config: of the run.
        folder: where it would go, to be checked; nothing is written. None to leave that out.

    Raises:
        GradshareError: see `gradshare.training.run.train`.
    """
    if folder is not None:
        refuse_if_occupied(folder, resume=False)
    with memory_errors(less_memory(config, recomputes=config.memory == "recompute")):
        setup = set_up(config)
        learned, state = setup.learner.init()
        require_memory(config, setup)
        if folder is not None:
            require_disk(config, learned, state, folder)
        peak = PeakMemory(setup.device)
        setup = compile_if_right(config, setup)
        stretches = _stretches(config, setup)
        tasks = min(config.val_tasks, CHUNK)
        validation = _seconds(lambda _: validate(setup, (learned, state), tasks, _ignore))
        tested = min(config.test_tasks, CHUNK)
        test = _seconds(lambda _: measure_test(setup, [(learned, state)], tested, _ignore))
    return Estimate(
        layout=setup.layout,
        stretches=tuple(stretches),
        validation=validation / tasks * config.val_tasks,
        test=test / tested * config.test_tasks * min(config.ensemble, config.epochs),
        epochs=config.epochs,
        memory_measured=peak.bytes(),
        memory_estimated=estimate(config, setup.learner, setup.image_shape),
        disk=disk_bytes(config, learned, state),
    )


def _stretches(config: RunConfig, setup: Setup) -> list[Stretch]:
    learner = setup.learner
    schedule = learner.multi_step_loss
    changes = {
        learner.first_order_iterations if learner.second_order else 0,
        schedule.iterations if schedule else 0,
    }
    starts = sorted({0, *(change for change in changes if change < config.iterations)})
    ends = [*starts[1:], config.iterations]
    return [
        Stretch(start + 1, end, _iteration_seconds(config, setup, start))
        for start, end in zip(starts, ends, strict=True)
    ]


def _iteration_seconds(config: RunConfig, setup: Setup, start: int) -> float:
    """What an outer iteration takes, its tasks' sampling included, where the run is at `start`."""
    learned, state = setup.learner.init()
    optimizer = make_optimizer(learned, config.outer_lr)

    def iterate(number: int) -> None:
        first = number * config.task_batch
        batch = setup.train.batch(range(first, first + config.task_batch))
        outer_iteration(
            setup.learner,
            learned,
            state,
            optimizer,
            setup.normalization.batch(batch.to(setup.device)),
            iteration=start,
            clamp_gradients=config.clamp_gradients,
        )

    return _seconds(iterate)


def _seconds(work: Callable[[int], object]) -> float:
    """The median time of some repetitions of work, which is told their number."""
    work(0)
    times: list[float] = []
    while len(times) < REPETITIONS and sum(times) < ENOUGH_SECONDS:
        began = time.perf_counter()
        work(len(times) + 1)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _ignore(tasks: int) -> None:
    pass
