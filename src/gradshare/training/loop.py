"""The training loop: epochs of outer iterations, a validation after each, a test at the end.

The number of an iteration determines its tasks and its random numbers, and everything else that it
depends on is one value, `TrainState`. A run that is killed at any point and continued from any
checkpoint ends where it would have ended.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch

from gradshare.errors import RunError, is_out_of_memory
from gradshare.methods import Learner
from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.source import notes_of, other_dataset, prepared, training_indices
from gradshare.training.distributed import OneProcess, OtherRankError
from gradshare.training.divergence import diagnose, not_finite
from gradshare.training.evaluation import (
    Measure,
    Values,
    ensemble_values,
    on_all_tasks,
    values_before_and_after,
)
from gradshare.training.folder import RunFolder
from gradshare.training.identity import Canary
from gradshare.training.interruption import RunStoppedError
from gradshare.training.metrics import LOSS, SAMPLE_TASKS, Metric, accuracy_by_class
from gradshare.training.options import Event, Options, Phase, Progress, Watch
from gradshare.training.outer_loop import outer_iteration
from gradshare.training.randomness import seed_generators, touches_generators
from gradshare.training.records import (
    FITS,
    TRAIN,
    VALIDATION,
    EpochRecord,
    EpochTotals,
    MetricsWriter,
    ranked,
)
from gradshare.training.state import RunStatus, Test, TrainState
from gradshare.training.statistics import confidence95

# A kill costs at most this much, and an epoch.
SAVE_EVERY_SECONDS = 300

# Refused iterations differ in their tasks only, since they change nothing. After this many in a row
# more would be refused too, and the run ends as diverged.
MOST_SKIPPED_IN_A_ROW = 50


@dataclass
class Trainer:
    """Trains a run from a state, in place, to its end."""

    learner: Learner
    train: TaskSource
    validation: TaskSource
    test: TaskSource | None
    options: Options
    metrics: dict[str, Metric]
    score: str
    device: torch.device
    folder: RunFolder
    processes: OneProcess
    canary: Canary
    watch: Watch
    state: TrainState

    def __post_init__(self) -> None:
        self._status = self.state.status
        self._began = time.monotonic() - self._status.seconds
        self._saved_at, self._saved_after = time.monotonic(), self._status.iteration

    def run_to_the_end(self) -> None:
        """Train, validate and test."""
        status, processes = self._status, self.processes
        with processes.stop, self._saved_if_others_fail(), ExitStack() as stack:
            writer = None
            if processes.rank == 0:
                writer = stack.enter_context(MetricsWriter(self.folder.path, status.history))
            own_tasks = (
                processes.share(self._indices(iteration)).tasks
                for iteration in range(status.iteration, self.options.total)
            )
            batches = stack.enter_context(closing(read_ahead(self.train, own_tasks)))
            while True:
                # Saved before it is validated, so that a validation can be interrupted and is
                # repeated when the run is continued.
                if owes_validation(self.options, status):
                    self._end_epoch(writer)
                if has_ended(self.options, status):
                    break
                self._train(batches)
            if status.history and self.test is not None:
                status.test = self._test(self.test)
                self._save()
                self._show("test", self.options.test_tasks, self.options.test_tasks)

    def _train(self, batches: Iterator[TaskBatch]) -> None:
        """Take an iteration, and save if it is time to."""
        status, options = self._status, self.options
        began = time.monotonic()
        fault = self._iterate(batches)
        status.training_seconds += time.monotonic() - began
        if fault is not None:
            if options.on_divergence == "stop":
                self._halt(fault)
            self._skip_or_end(fault)
        self._show("train", status.iteration, options.total)
        ended = owes_validation(options, status) or status.diverged is not None
        signal = self.processes.asked  # once: a signal that comes while saving waits
        # An overflow of the outer step is noticed before the state is saved. All processes decide
        # alike, because the decision depends on the iteration, not on a clock.
        if ended or signal is not None:
            if (name := not_finite(self.state.meta)) is not None:
                overflow = f"{self._place(status.iteration)}: {name} is not finite"
                if options.on_divergence == "stop":
                    self._halt(overflow)
                status.diverged = status.diverged or overflow
            self._save()
        elif (
            time.monotonic() - self._saved_at > SAVE_EVERY_SECONDS
            and not_finite(self.state.meta) is None
        ):
            self._save()
        self._stop_if(signal)

    def _iterate(self, batches: Iterator[TaskBatch]) -> str | None:
        """One outer iteration, on the tasks that its number determines. If it was refused, where
        and why; the state is then unchanged.
        """
        state, status, options = self.state, self._status, self.options
        iteration = status.iteration
        if options.schedule is not None:
            for group in state.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * options.factor(iteration)
        indices = self._indices(iteration)
        result = outer_iteration(
            self.learner,
            state.meta,
            state.carried,
            state.optimizer,
            self._prepared(next(batches), indices.start),
            iteration=iteration,
            metrics=self.metrics,
            clamp_gradients=options.clamp_gradients,
            clip_norm=options.clip_norm,
            share=self.processes.share(indices),
        )
        if result.refused is not None:

            def find_fault() -> str | None:
                # The whole batch, whichever process computed the task; it may not fit in this one.
                batch = self._prepared(self.train.batch(indices), indices.start)
                try:
                    return diagnose(self.learner, *state.model, batch, iteration=iteration)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    return None

            fault = self.processes.from_first(find_fault)
            return f"{self._place(iteration + 1)}: {fault or result.refused}"
        state.carried = result.carried
        status.iteration += 1
        status.totals.add(result.metrics)
        status.skipped_in_a_row = 0
        if self.processes.rank == 0:
            self._call_callbacks("iteration", metrics=result.metrics)
        return None

    def _indices(self, iteration: int) -> range:
        """The tasks of an iteration."""
        return training_indices(self.options.seed, iteration, self.options.task_batch)

    def _prepared(self, batch: TaskBatch, seed: int) -> TaskBatch:
        """A batch on the device; what `prepare` and the model draw depends on the seed only."""
        batch = batch.to(self.device)
        seed_generators(seed, self.device)
        return prepared(self.train, batch)

    def _place(self, iteration: int) -> str:
        return f"epoch {(iteration - 1) // self.options.iterations + 1}, iteration {iteration}"

    def _skip_or_end(self, fault: str) -> None:
        """Skip a refused iteration, or end the run there."""
        status = self._status
        status.iteration += 1
        if self.options.on_divergence != "skip":
            status.diverged = fault
            return
        status.totals.skipped += 1
        status.totals.first_skipped = status.totals.first_skipped or fault
        status.skipped_in_a_row += 1
        if status.skipped_in_a_row == MOST_SKIPPED_IN_A_ROW:
            most = MOST_SKIPPED_IN_A_ROW
            status.diverged = f"{fault} (the last of {most} in a row to be refused)"

    def _end_epoch(self, writer: MetricsWriter | None) -> None:
        """Validate, record the epoch and keep its model."""
        state, status, folder = self.state, self._status, self.folder
        record = self._validate()
        status.history.append(record)
        status.totals = EpochTotals()
        if writer is not None:  # the first process's
            folder.save_epoch(record.epoch, state.epoch_checkpoint(record.epoch))
            writer.write(record)
        stops = self.processes.from_first(lambda: self._call_callbacks("epoch"))
        stalled = len(status.history) - self._kept()[0]
        out_of_patience = self.options.patience is not None and stalled >= self.options.patience
        status.stopped = status.stopped or stops or out_of_patience
        self._save()
        if writer is not None:
            folder.prune_epochs(self._kept())
        self._show("validate", self.options.val_tasks, self.options.val_tasks)

    def _validate(self) -> EpochRecord:
        """The record of the epoch that ends here."""
        state, status, options = self.state, self._status, self.options
        self.processes.require_identical({**state.meta, **state.carried})
        measure = values_before_and_after(self.learner, state.model, self.metrics)
        found = self._measure("validate", self.validation, options.val_tasks, measure)
        trained = status.totals.means([LOSS, *(name for name in self.metrics if name != LOSS)])
        group = state.optimizer.param_groups[0]
        rate = group.get("initial_lr", group.get("lr", float("nan")))
        measured = {
            split: {name: confidence95(values) for name, values in found[split].items()}
            for split in (VALIDATION, *FITS)
        }
        report = getattr(self.learner, "report", None)
        return EpochRecord(
            epoch=len(status.history) + 1,
            iterations=status.iteration,
            metrics={TRAIN: trained, **measured},
            learned={} if report is None else numbers(report(state.meta)),
            # Computed, since the optimiser's own rate is stale right after a resume.
            outer_lr=float(rate) * options.factor(status.iteration - 1),
            seconds=time.monotonic() - self._began,
            skipped=status.totals.skipped,
            first_skipped=status.totals.first_skipped,
        )

    def _test(self, source: TaskSource) -> Test:
        """Test the best epochs."""
        saved = self.processes.from_first(lambda: self.folder.models(self._kept()))
        models = [checkpoint.model(self.device) for checkpoint in saved]
        measure = ensemble_values(self.learner, models, self.metrics)
        found = self._measure("test", source, self.options.test_tasks, measure)
        labels = found["labels"]
        return Test(
            found["ensemble"],
            found["single"],
            len(models),
            accuracy_by_class(labels.get("right", []), source),
            labels.get("predicted", [])[:SAMPLE_TASKS],
            other_dataset(self.train, source),
            " ".join(notes_of(source)),
        )

    def _kept(self) -> list[int]:
        """The epochs whose models are kept, best first."""
        best = ranked(self._status.history, self.metrics[self.score], self.score)
        return [record.epoch for record in best[: self.options.ensemble]]

    def _measure(
        self, phase: Phase, source: TaskSource, tasks: int, measure: Measure
    ) -> dict[str, Values]:
        """Evaluate, show the progress and stop when asked to."""

        def advance(done: int) -> None:
            if done < tasks:  # the end is shown together with the result
                self._show(phase, done, tasks)
            self._stop_if(self.processes.asked)

        return on_all_tasks(self.processes, source, tasks, self.device, measure, advance)

    def _show(self, phase: Phase, done: int, total: int) -> None:
        status, score = self._status, None
        if status.history:
            interval = status.history[-1].metrics[VALIDATION][self.score]
            shown = self.metrics[self.score].show(interval._replace(ci95=None))
            score = f"{self.score} {shown}"
        epoch = max(status.iteration - 1, 0) // self.options.iterations + 1
        self.watch(Progress(phase, done, total, epoch, score))

    def _call_callbacks(self, kind: Any, **more: Any) -> bool:
        """Call all callbacks, and return whether one of them wants to stop."""
        status = self._status
        event = Event(kind, status.iteration, tuple(status.history), **more)
        return True in [callback(event) for callback in self.options.all_callbacks]

    def _save(self) -> None:
        status = self._status
        self._saved_at, self._saved_after = time.monotonic(), status.iteration
        status.seconds = self._saved_at - self._began
        if self.processes.rank == 0:
            status.canary = self.canary.values(self.state)
            path = self.folder.save_latest(status.iteration, self.state.checkpoint())
            self._call_callbacks("checkpoint", path=path)

    def _stop_if(self, signal: int | None) -> None:
        if signal is not None:
            raise RunStoppedError(
                f"stopped after iteration {self._status.iteration} of {self.options.total}; "
                f"everything so far is saved in {self.folder.path}",
                signal,
            )

    def _halt(self, fault: str) -> NoReturn:
        """End a run that is to stop at a refused iteration, with its last good state saved."""
        if not_finite(self.state.meta) is None:
            self._save()
        raise RunError(
            f"{fault}; {self.folder.path} holds the run as it was after iteration "
            f"{self._saved_after}: continue it (resume='auto', --resume auto) with "
            "on_divergence='skip' or 'record', or start another with a lower inner or outer "
            "learning rate"
        )

    @contextmanager
    def _saved_if_others_fail(self) -> Iterator[None]:
        """Save the state when another process of the run fails.

        The state changes between exchanges only, so that it is whole whenever one of them fails.
        """
        try:
            yield
        except OtherRankError as error:
            if self.processes.rank != 0 or not_finite(self.state.meta) is not None:
                raise
            self._save()
            raise type(error)(
                f"{error}; everything up to iteration {self._status.iteration} is saved in "
                f"{self.folder.path}, continue it with --resume auto"
            ) from error


def read_ahead(source: TaskSource, indices: Iterable[range]) -> Generator[TaskBatch, None, None]:
    """Batches of a source; the next one is made in a thread while the current one is used.

    A source that seeds or draws from a global generator is asked in the caller's thread instead,
    since it would change the model's random numbers meanwhile.

    Args:
        source: the source.
        indices: of the tasks of each batch.
    """
    if touches_generators(lambda: source.batch([0])):
        yield from map(source.batch, indices)
        return
    begun: deque[Future[TaskBatch]] = deque()
    with ThreadPoolExecutor(1, "gradshare-batches") as pool:
        for tasks in indices:
            begun.append(pool.submit(source.batch, tasks))
            if len(begun) > 1:
                yield begun.popleft().result()
        yield from (last.result() for last in begun)


def owes_validation(options: Options, status: RunStatus) -> bool:
    """Whether an epoch is complete and not validated yet."""
    complete = status.iteration // options.iterations
    return status.diverged is None and complete > len(status.history)


def has_ended(options: Options, status: RunStatus) -> bool:
    """Whether a run takes no more iterations."""
    return status.iteration == options.total or status.stopped or status.diverged is not None


def is_complete(options: Options, status: RunStatus, test: TaskSource | None) -> bool:
    """Whether a run has nothing left to do."""
    owes_test = test is not None and bool(status.history) and status.test is None
    return has_ended(options, status) and not owes_validation(options, status) and not owes_test


def numbers(report: Mapping[str, Any]) -> dict[str, list[float]]:
    """A rule's report as lists of numbers; it may hold tensors or arrays."""
    return {n: torch.as_tensor(v).detach().double().flatten().tolist() for n, v in report.items()}
