"""The time, memory and disk space of a run, estimated from a few of its steps."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gradshare.methods import Learner
from gradshare.tasks import TaskSource
from gradshare.tasks.source import notes_of, prepared, training_indices
from gradshare.training import evaluation
from gradshare.training.device import choose_device
from gradshare.training.distributed import OneProcess
from gradshare.training.folder import RunFolder, refuse_if_occupied
from gradshare.training.layout import Layout
from gradshare.training.memory import amount, explain_out_of_memory, require_memory
from gradshare.training.options import Options, options_from
from gradshare.training.outer_loop import outer_iteration
from gradshare.training.prepare import Sources, memory_needed, prepare_run, saved_bytes
from gradshare.training.progress import duration
from gradshare.training.randomness import isolated

REPETITIONS = 5
ENOUGH_SECONDS = 20


@dataclass(frozen=True)
class Estimate:
    """The time, memory and disk space of a run. `print(estimate)` shows all of it.

    Attributes:
        layout: of its work.
        iteration: seconds of an iteration, the slower of the first and the last.
        validation: seconds of the validation after each epoch.
        test: seconds of the test at the end.
        epochs: their number.
        iterations: in an epoch.
        memory: bytes at the peak, from what autograd keeps.
        disk: bytes in the run's folder.
        note: those of the sources; see `TaskSource`.
    """

    layout: Layout
    iteration: float
    validation: float
    test: float
    epochs: int
    iterations: int
    memory: int
    disk: int
    note: str = ""

    @property
    def epoch(self) -> float:
        """Seconds of an epoch and its validation."""
        return self.iterations * self.iteration + self.validation

    @property
    def run(self) -> float:
        """Seconds of the whole run."""
        return self.epochs * self.epoch + self.test

    def __str__(self) -> str:
        """A line for each quantity."""
        rows = {
            "layout": self.layout.describe(),
            "an iteration": f"{self.iteration:.3f} s at most",
            "validation": f"{duration(self.validation)} after each epoch",
            "test": duration(self.test),
            "an epoch": f"{duration(self.epoch)}, validation included",
            "the whole run": f"{duration(self.run)}, {self.epochs} × an epoch and the test",
            "peak memory": f"about {amount(self.memory)}",
            "disk": f"{amount(self.disk)} at most",
        }
        lines = [f"{name:<13}  {value}" for name, value in rows.items()]
        return "\n".join([self.note, *lines] if self.note else lines)


def estimate(
    learner: Learner,
    train: TaskSource,
    validation: TaskSource,
    test: TaskSource | None = None,
    *,
    out: str | Path | None = None,
    **options: Any,
) -> Estimate:
    """Check everything that `fit` checks before its first step, time a few steps of each kind, and
    write nothing.

    Args:
        learner, train, validation, test: as for `fit`.
        out: where the run would go, to be checked; None to leave that out.
        **options: options of `fit`, except `resume` and `progress`.

    Raises:
        GradshareError: as by `fit`.
    """
    folder = None if out is None else Path(out).expanduser()
    return dry_run(learner, (train, validation, test), options_from(options), folder)


def dry_run(learner: Learner, sources: Sources, options: Options, folder: Path | None) -> Estimate:
    """See `estimate`; arguments as of `fit_in`."""
    train, validation, test = sources
    if folder is not None:
        refuse_if_occupied(folder, resume=False)
    device = choose_device(options.device)
    with explain_out_of_memory(), isolated(device):
        state, metrics, _, contents = prepare_run(learner, sources, options, device)
        layout = Layout(**contents["layout"])
        learner = layout.applied(learner)
        need, disk = memory_needed(layout, options, state), saved_bytes(state, options)
        require_memory(need, device)
        if folder is not None:
            RunFolder(folder).require_disk(disk)

        def iterate(iteration: int, repetition: int) -> None:
            tasks = training_indices(options.seed, repetition, options.task_batch)
            batch = prepared(train, train.batch(tasks).to(device))
            outer_iteration(
                learner,
                state.meta,
                state.carried,
                state.optimizer,
                batch,
                iteration=iteration,
                metrics=metrics,
            )

        def seconds_of(source: TaskSource, tasks: int, measure: evaluation.Measure) -> float:
            few = min(tasks, evaluation.CHUNK)
            run = functools.partial(evaluation.on_all_tasks, OneProcess(), source, few, device)
            return _seconds(lambda _: run(measure)) * tasks / few

        # MAML++ has some iterations of the first order, and some with a loss after each inner step.
        ends = (0, options.total - 1)
        iteration = max(_seconds(functools.partial(iterate, number)) for number in ends)
        fit = evaluation.values_before_and_after(learner, state.model, metrics)
        models = [state.model] * min(options.ensemble, options.epochs)
        ensemble = evaluation.ensemble_values(learner, models, metrics)
        return Estimate(
            layout=layout,
            iteration=iteration,
            validation=seconds_of(validation, options.val_tasks, fit),
            test=0.0 if test is None else seconds_of(test, options.test_tasks, ensemble),
            epochs=options.epochs,
            iterations=options.iterations,
            memory=need,
            disk=disk,
            note=" ".join(notes_of(train, test)),
        )


def _seconds(work: Callable[[int], object]) -> float:
    """The median time of `work`, which is called with the number of the repetition."""
    work(0)  # the first is slower
    times: list[float] = []
    while len(times) < REPETITIONS and sum(times) < ENOUGH_SECONDS:
        began = time.perf_counter()
        work(len(times) + 1)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
