"""The training loop: epochs of outer iterations, a validation after each, a test at the end.

The tasks of an iteration and its random numbers are named by its number, and everything else that
it depends on is one value, `TrainState`. A run that is killed at any point and continued from any
saved moment ends where it would have ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch

from gradshare.errors import RunError
from gradshare.methods import Learner
from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.source import prepared, training_indices
from gradshare.training.batches import Batches
from gradshare.training.canary import Canary
from gradshare.training.checkpoint import Checkpoint, on_device
from gradshare.training.distributed import OneProcess, OtherRankError
from gradshare.training.divergence import diagnose, not_finite
from gradshare.training.evaluation import (
    intervals,
    joined,
    measuring,
    measuring_fit,
    on_all_tasks,
)
from gradshare.training.folder import RunFolder, kept_epochs
from gradshare.training.interruption import RunStoppedError
from gradshare.training.labels import SAMPLE_TASKS
from gradshare.training.metrics import LOSS, Metric
from gradshare.training.options import Event, Options, Phase, Progress, Watch
from gradshare.training.outer_loop import outer_iteration
from gradshare.training.randomness import seed_generators
from gradshare.training.records import FITS, TRAIN, VALIDATION, EpochRecord, MetricsWriter
from gradshare.training.state import CPU, Test, TrainState

# Besides at each epoch's end a moment is saved after so long, which is what a kill can cost.
SAVE_EVERY_SECONDS = 300


@dataclass(frozen=True)
class Job:
    """The parts of a run.

    Attributes:
        identity: of the run, in its folder and each checkpoint.
        learner: in its layout.
        train: the source of training tasks.
        validation: the source of validation tasks.
        test: the source of test tasks; None for no test.
        options: of the run.
        metrics: by name.
        score: the metric that selects checkpoints.
        device: where it all runs.
        home: the run's folder.
        processes: that the run is shared by.
        canary: computes the loss of a fixed small batch.
        watch: told of progress.
    """

    identity: str
    learner: Learner
    train: TaskSource
    validation: TaskSource
    test: TaskSource | None
    options: Options
    metrics: dict[str, Metric]
    score: str
    device: torch.device
    home: RunFolder
    processes: OneProcess
    canary: Canary
    watch: Watch

    def tasks(self, iteration: int) -> range:
        """The indices of an iteration's tasks."""
        return training_indices(self.options.seed, iteration, self.options.task_batch)

    @property
    def trained_metrics(self) -> list[str]:
        """The metrics of the training tasks."""
        return [LOSS, *(name for name in self.metrics if name != LOSS)]

    def kept(self, state: TrainState) -> list[int]:
        """The epochs whose models are kept, best first."""
        rank = self.metrics[self.score].rank
        return kept_epochs(state.history, self.score, rank, self.options.ensemble)


def is_complete(options: Options, state: TrainState, test: TaskSource | None) -> bool:
    """Whether a run has nothing left to do."""
    if state.diverged is None and _owes_validation(options, state):
        return False
    ended = state.iteration == options.total or state.stopped or state.diverged is not None
    owes_test = test is not None and bool(state.history) and state.test is None
    return ended and not owes_test


def run_to_the_end(job: Job, state: TrainState) -> None:
    """Train from a state to the end of the run, and test.

    Raises:
        RunError: an iteration was refused that the options say to stop at, with everything before
            it saved; or another process of the run failed.
        RunStoppedError: Ctrl-C or SIGTERM; everything so far is saved.
    """
    processes, options = job.processes, job.options
    safe = _Safekeeping(job, state)

    with processes.stop, _kept_if_others_fail(job, safe, state), ExitStack() as stack:
        metrics = processes.on_first(
            lambda: stack.enter_context(MetricsWriter(job.home.path, state.history))
        )
        batches = stack.enter_context(Batches(job.train))

        def told(phase: Phase, total: int) -> Callable[[int], None]:
            done = 0

            def advance(tasks: int) -> None:
                nonlocal done
                done += tasks
                job.watch(_progress(job, state, phase, done, total))
                _stop_if(job, state, processes.asked)

            return advance

        while True:
            # A moment is always saved before its epoch is validated, so that validating, however
            # long it takes, can be interrupted and is done first when the run is continued.
            if state.diverged is None and _owes_validation(options, state):
                record = _validate(job, state, told("validate", options.val_tasks))
                record = replace(record, seconds=safe.seconds())
                state.end_epoch(record)
                if metrics is not None:
                    job.home.save_epoch(record.epoch, state.epoch_checkpoint(job.identity))
                    metrics.write(record)
                if options.callbacks:
                    told_to_stop = processes.from_first(lambda: _tell(job, state, "epoch"))
                    state.stopped = state.stopped or told_to_stop
                safe.save()
                processes.on_first(lambda: job.home.prune_epochs(job.kept(state)))
            if state.iteration == options.total or state.diverged or state.stopped:
                break
            began = time.monotonic()
            fault = _iterate(job, state, batches)
            state.training_seconds += time.monotonic() - began
            if fault is not None:
                if options.on_divergence == "stop":
                    safe.halt(fault)
                state.pass_over(fault, skip=options.on_divergence == "skip")
            job.watch(_progress(job, state, "train", state.iteration, options.total))
            ended = _owes_validation(options, state) or state.diverged is not None
            asked = processes.asked  # once: a request that comes while saving is for the next time
            # An outer step that overflows is noticed before what it leaves is saved. What comes of
            # it is decided where each process of the run is, so not by one's own clock.
            if ended or asked is not None:
                overflow = _overflow(options, state)
                if overflow is not None and options.on_divergence == "stop":
                    safe.halt(overflow)
                state.diverged = state.diverged or overflow
                safe.save()
            elif safe.overdue() and not_finite(state.meta) is None:
                safe.save()
            _stop_if(job, state, asked)
        if state.history and job.test is not None:
            state.test = _test(job, job.test, state, told("test", options.test_tasks))
            safe.save()


class _Safekeeping:
    """Saves the moments of a run that goes on, and knows how long ago it last did."""

    def __init__(self, job: Job, state: TrainState) -> None:
        self._job = job
        self._state = state
        self._started = time.monotonic() - state.seconds
        self._saved_at, self._saved_after = time.monotonic(), state.iteration

    @property
    def saves(self) -> bool:
        """Whether this process is the one of the run that saves."""
        return self._job.processes.rank == 0

    def seconds(self) -> float:
        """How long the run has taken so far."""
        return time.monotonic() - self._started

    def overdue(self) -> bool:
        """Whether a kill would cost too much."""
        return time.monotonic() - self._saved_at > SAVE_EVERY_SECONDS

    def save(self) -> None:
        """Save the state as it is."""
        self._saved_at, self._saved_after = time.monotonic(), self._state.iteration
        self._state.seconds = self._saved_at - self._started
        self._job.processes.on_first(self._save)

    def _save(self) -> None:
        job, state = self._job, self._state
        job.home.save_latest(
            state.iteration, state.checkpoint(job.identity, job.canary.values(state))
        )
        if job.options.callbacks:
            _tell(job, state, "checkpoint", path=job.home.latest(state.iteration))

    def halt(self, fault: str) -> NoReturn:
        """End a run that is to stop at a refused iteration, with its last good moment saved."""
        if not_finite(self._state.meta) is None:
            self.save()
        raise RunError(
            f"{fault}; {self._job.home.path} holds the run as it was after iteration "
            f"{self._saved_after}: continue it (resume='auto', --resume auto) with "
            "on_divergence='skip' or 'record', or start another with a lower inner or outer "
            "learning rate"
        )


@contextmanager
def _kept_if_others_fail(job: Job, safe: _Safekeeping, state: TrainState) -> Iterator[None]:
    """Lose nothing of what was done when another process of the run fails.

    A state changes between exchanges only, so that it is whole whenever one of them fails.
    """
    try:
        yield
    except OtherRankError as error:
        if not safe.saves or not_finite(state.meta) is not None:
            raise
        safe.save()
        raise type(error)(
            f"{error}; everything up to iteration {state.iteration} is saved in {job.home.path}, "
            "continue it with --resume auto"
        ) from error


def _stop_if(job: Job, state: TrainState, asked: int | None) -> None:
    if asked is not None:
        raise RunStoppedError(
            f"stopped after iteration {state.iteration} of {job.options.total}; everything so far "
            f"is saved in {job.home.path}",
            asked,
        )


def _tell(job: Job, state: TrainState, kind: Any, **more: Any) -> bool:
    """Call the callbacks, and return whether one of them wants to stop."""
    event = Event(kind, state.iteration, tuple(state.history), **more)
    answers = [callback(event) for callback in job.options.callbacks]  # each is told
    return True in answers


def _owes_validation(options: Options, state: TrainState) -> bool:
    """Whether an epoch is complete and not validated yet."""
    return state.iteration // options.iterations > len(state.history)


def _overflow(options: Options, state: TrainState) -> str | None:
    """What is wrong with a state's meta-parameters; None if they are finite."""
    name = not_finite(state.meta)
    if name is None:
        return None
    epoch = (state.iteration - 1) // options.iterations + 1
    return f"epoch {epoch}, iteration {state.iteration}: {name} is not finite"


def _iterate(job: Job, state: TrainState, batches: Batches) -> str | None:
    """One outer iteration, on the tasks that its number names.

    Returns:
        Where and why it was refused, with the state left as it was; None if it was not.
    """
    options, iteration = job.options, state.iteration
    if options.schedule is not None:
        for group in state.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * options.factor(iteration)
    indices = job.tasks(iteration)
    share = job.processes.share(indices)
    following = job.processes.share(job.tasks(iteration + 1)).tasks
    last = iteration + 1 == options.total
    batch = batches.get(share.tasks, None if last else following)
    seed_generators(indices.start)
    own = _prepared(job, batch)
    result = outer_iteration(
        job.learner,
        state.meta,
        state.carried,
        state.optimizer,
        own,
        iteration=iteration,
        clipping=options.clipping,
        metrics=job.metrics,
        share=share,
    )
    if result.refused is not None:

        def walk_again() -> str | None:
            batch = job.train.batch(indices)
            seed_generators(indices.start)
            whole = _prepared(job, batch)
            return diagnose(job.learner, *state.model, whole, iteration=iteration)

        # One process alone walks through the whole batch: where the others are does not matter.
        fault = job.processes.from_first(walk_again)
        epoch = iteration // options.iterations + 1
        return f"epoch {epoch}, iteration {iteration + 1}: {fault or result.refused}"
    state.carried = result.carried
    state.iteration += 1
    state.totals.add(result.metrics)
    state.skipped_in_a_row = 0
    if options.callbacks:
        job.processes.on_first(lambda: _tell(job, state, "iteration", metrics=result.metrics))
    return None


def _prepared(job: Job, batch: TaskBatch) -> TaskBatch:
    return prepared(job.train, batch.to(job.device))


def _test(job: Job, source: TaskSource, state: TrainState, advance: Callable[[int], None]) -> Test:
    """What the best epochs come to on the test tasks."""
    like = Checkpoint(
        on_device(state.meta, CPU), on_device(state.carried, CPU), {"run": job.identity}
    )
    saved = job.processes.from_first(lambda: job.home.models(job.kept(state), like))
    models = [(on_device(m.meta, job.device), on_device(m.carried, job.device)) for m in saved]
    measure = measuring(job.learner, models, job.metrics)
    rows = on_all_tasks(job.processes, source, job.options.test_tasks, job.device, measure, advance)
    labels = joined(rows, "labels")
    return Test(
        joined(rows, "ensemble"),
        joined(rows, "single"),
        len(models),
        labels.get("right", []),
        labels.get("predicted", [])[:SAMPLE_TASKS],
    )


def _validate(job: Job, state: TrainState, advance: Callable[[int], None]) -> EpochRecord:
    """The record of the epoch that ends at a state."""
    job.processes.require_identical({**state.meta, **state.carried})
    rows = on_all_tasks(
        job.processes,
        job.validation,
        job.options.val_tasks,
        job.device,
        measuring_fit(job.learner, state.model, job.metrics),
        advance,
    )
    report = getattr(job.learner, "report", None)
    return EpochRecord(
        epoch=len(state.history) + 1,
        iterations=state.iteration,
        metrics={
            TRAIN: state.totals.means(job.trained_metrics),
            **{split: intervals(joined(rows, split)) for split in (VALIDATION, *FITS)},
        },
        learned={} if report is None else numbers(report(state.meta)),
        # Not the optimiser's: that of a run continued just here has taken no step yet.
        outer_lr=_base_lr(state) * job.options.factor(state.iteration - 1),
        seconds=0.0,
        skipped=state.totals.skipped,
        first_skipped=state.totals.first_skipped,
    )


def numbers(report: Mapping[str, Any]) -> dict[str, list[float]]:
    """What a rule reports as lists of numbers; it may be tensors or arrays."""
    return {n: torch.as_tensor(v).detach().double().flatten().tolist() for n, v in report.items()}


def _base_lr(state: TrainState) -> float:
    group = state.optimizer.param_groups[0]
    return float(group.get("initial_lr", group.get("lr", float("nan"))))


def _progress(job: Job, state: TrainState, phase: Phase, done: int, total: int) -> Progress:
    score = None
    if state.history:
        interval = state.history[-1].metrics[VALIDATION][job.score]
        shown = job.metrics[job.score].show(interval._replace(ci95=None))
        score = f"{job.score} {shown}"
    epoch = min(len(state.history) + 1, job.options.epochs)
    return Progress(phase, done, total, epoch, score)
