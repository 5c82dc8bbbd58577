"""What a run would take, from a few of its steps."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gradshare.methods import Learner, MetaLearner
from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.source import prepared, training_indices
from gradshare.training.checkpoint import on_device
from gradshare.training.device import choose_device
from gradshare.training.distributed import OneProcess
from gradshare.training.evaluation import CHUNK, Rows, measuring, measuring_fit, on_all_tasks
from gradshare.training.fit import memory_needed, prepare_run, saved_bytes
from gradshare.training.folder import refuse_if_occupied
from gradshare.training.layout import Layout
from gradshare.training.memory import PeakMemory
from gradshare.training.options import Options
from gradshare.training.outer_loop import outer_iteration
from gradshare.training.preflight import amount, memory_errors, require_disk, require_memory
from gradshare.training.randomness import isolated

# The first of its kind is slower, and is not counted.
REPETITIONS = 5
ENOUGH_SECONDS = 20


@dataclass(frozen=True)
class Stretch:
    """Iterations that cost the same: MAML++ has some of the first order, and some with a loss after
    each inner step.

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
    """What a run would take. `print(estimate)` shows all of it.

    Attributes:
        layout: how its work is laid out.
        stretches: of its training.
        validation: seconds of the validation after each epoch.
        test: seconds of the test at the end.
        epochs: how many there are.
        memory_measured: bytes at the peak over those of the idle process; None if the system does
            not say.
        memory_estimated: likewise, from what autograd keeps.
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

    def __str__(self) -> str:
        """A line for each quantity."""
        rows = [("layout", self.layout.describe())]
        for stretch in self.stretches:
            which = f"iterations {stretch.first:,} to {stretch.last:,}"
            rows.append((which, f"{stretch.seconds:.3f} s each"))
        measured = self.memory_measured
        rows += [
            ("validation", f"{duration(self.validation)} after each epoch"),
            ("test", duration(self.test)),
            ("an epoch", f"{duration(self.epoch)}, validation included"),
            (f"all {self.epochs} epochs and the test", duration(self.run)),
            (
                "peak memory",
                ("" if measured is None else f"{amount(measured)} measured, ")
                + f"{amount(self.memory_estimated)} estimated from what autograd keeps",
            ),
            ("disk", f"{amount(self.disk)} at most"),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def estimate(
    learner: Learner,
    train: TaskSource,
    validation: TaskSource,
    *,
    test: TaskSource | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Estimate:
    """Check all that `fit` checks before its first step, time a few steps of each kind, and write
    nothing.

    Args:
        learner: as for `fit`.
        train: as for `fit`.
        validation: as for `fit`.
        test: as for `fit`.
        out: where the run would go, to be checked; None to leave that out.
        **options: of `fit`, but for `resume` and `progress`.

    Raises:
        GradshareError: as by `fit`.
    """
    folder = None if out is None else Path(out).expanduser()
    return dry_run(learner, (train, validation, test), Options.of(**options), folder)


def dry_run(
    learner: Learner,
    sources: tuple[TaskSource, TaskSource, TaskSource | None],
    options: Options,
    folder: Path | None,
) -> Estimate:
    """See `estimate`; arguments as of `fit_in`."""
    train, validation, test = sources
    if folder is not None:
        refuse_if_occupied(folder, resume=False)
    device = choose_device(options.device)
    with memory_errors(), isolated(device):
        state, metrics, _, contents = prepare_run(learner, sources, options, device, None)
        layout = Layout(**contents["layout"])
        laid_out = layout.applied(learner)
        need = memory_needed(layout, options, state, processes=1)
        require_memory(need, device)
        disk = saved_bytes(state, options)
        if folder is not None:
            require_disk(disk, folder)
        peak = PeakMemory(device)

        def iterate(number: int, iteration: int) -> None:
            tasks = training_indices(options.seed, number, options.task_batch)
            outer_iteration(
                laid_out,
                state.meta,
                state.carried,
                state.optimizer,
                prepared(train, train.batch(tasks).to(device)),
                iteration=iteration,
                clipping=options.clipping,
                metrics=metrics,
            )

        starts = sorted({0, *(c for c in _changes(laid_out) if c < options.total)})
        ends = [*starts[1:], options.total]
        stretches = [
            Stretch(start + 1, end, _seconds(functools.partial(iterate, iteration=start)))
            for start, end in zip(starts, ends, strict=True)
        ]
        model = (on_device(state.meta, device), state.carried)

        def each(source: TaskSource, count: int, measure: Callable[[TaskBatch], Rows]) -> float:
            few = min(count, CHUNK)
            run = functools.partial(on_all_tasks, OneProcess(), source, few, device, measure)
            return _seconds(lambda _: run()) / few

        validating = each(validation, options.val_tasks, measuring_fit(laid_out, model, metrics))
        testing = 0.0
        if test is not None:
            testing = each(test, options.test_tasks, measuring(laid_out, [model], metrics))
    return Estimate(
        layout=layout,
        stretches=tuple(stretches),
        validation=validating * options.val_tasks,
        test=testing * options.test_tasks * min(options.ensemble, options.epochs),
        epochs=options.epochs,
        memory_measured=peak.bytes(),
        memory_estimated=need,
        disk=disk,
    )


def _changes(learner: Learner) -> set[int]:
    """The iterations at which a meta-step's cost changes."""
    if not isinstance(learner, MetaLearner):
        return set()
    schedule = learner.multi_step_loss
    return {
        learner.first_order_iterations if learner.second_order else 0,
        schedule.iterations if schedule else 0,
    }


def _seconds(work: Callable[[int], object]) -> float:
    """The median time of some repetitions of work, which is told their number."""
    work(0)
    times: list[float] = []
    while len(times) < REPETITIONS and sum(times) < ENOUGH_SECONDS:
        began = time.perf_counter()
        work(len(times) + 1)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
