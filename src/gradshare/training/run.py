"""A training run: epochs of outer iterations, validation after each, a test at the end.

The tasks of an iteration are named by its number, and everything else that an iteration depends on
is one value, `_Moment`. A run that is killed at any point and continued from any saved moment ends
where it would have ended.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gradshare.errors import ConfigError, RunError
from gradshare.inner_loop import Tensors
from gradshare.training.checkpoint import (
    Checkpoint,
    on_device,
    optimizer_tensors,
    restore_optimizer,
)
from gradshare.training.config import RunConfig, option_name
from gradshare.training.distributed import OneProcess, OtherRankError
from gradshare.training.evaluation import TestAccuracies, evaluate, measure_test
from gradshare.training.folder import MACHINE_FIELDS, Inputs, RunFolder, refuse_if_occupied
from gradshare.training.interruption import RunStoppedError
from gradshare.training.launch import processes_of
from gradshare.training.outer_loop import cosine_annealed, make_optimizer, outer_iteration
from gradshare.training.records import (
    EpochRecord,
    MetricsWriter,
    kept_epochs,
    sharing_parameters,
)
from gradshare.training.setup import Setup, set_up
from gradshare.training.statistics import confidence95

# Besides at every epoch's end a moment is saved after so long, which is what a kill can cost.
SAVE_EVERY_SECONDS = 300

CPU = torch.device("cpu")

Phase = Literal["train", "validate", "test"]


@dataclass(frozen=True)
class Progress:
    """Where a run is, for whoever watches it.

    Attributes:
        phase: what it is doing.
        done: of `total`, in iterations or tasks.
        total: of this phase; training counts the whole run.
        epoch: the current one, from 1.
        val_accuracy: of the last epoch; None before the first.
    """

    phase: Phase
    done: int
    total: int
    epoch: int
    val_accuracy: float | None


Watch = Callable[[Progress], None]


def ignore(progress: Progress) -> None:
    """Watch nothing."""


@dataclass(frozen=True)
class RunResult:
    """What a finished run came to.

    Attributes:
        config: what was run.
        history: one record for each completed epoch.
        diverged: where and how it became non-finite; None if it did not.
        test: None for a run that diverged before its first validation.
        seconds: wall time of training, validation and test.
    """

    config: RunConfig
    history: list[EpochRecord]
    diverged: str | None
    test: TestAccuracies | None
    seconds: float


@dataclass
class _Moment:
    """Everything that changes during a run."""

    learned: dict[str, Tensor]
    state: Tensors
    optimizer: torch.optim.Adam
    iteration: int = 0
    loss_sum: float = 0.0
    accuracy_sum: float = 0.0
    seconds: float = 0.0
    diverged: str | None = None
    test: TestAccuracies | None = None
    history: list[EpochRecord] = field(default_factory=list)

    def checkpoint(self) -> Checkpoint:
        """As it is saved."""
        progress = {
            "iteration": self.iteration,
            "loss_sum": self.loss_sum,
            "accuracy_sum": self.accuracy_sum,
            "seconds": self.seconds,
            "diverged": self.diverged,
            "test": None if self.test is None else asdict(self.test),
            "history": [record.to_json() for record in self.history],
        }
        return Checkpoint(
            self.learned,
            dict(self.state),
            optimizer_tensors(self.optimizer, self.learned),
            progress,
        )

    def restore(self, saved: Checkpoint) -> None:
        """Go back, or ahead, to a saved moment of the same run."""
        for name, tensor in self.learned.items():
            tensor.data.copy_(saved.learned[name])
        self.state = saved.state
        restore_optimizer(self.optimizer, self.learned, saved.optimizer)
        progress = saved.progress
        self.iteration = progress["iteration"]
        self.loss_sum = progress["loss_sum"]
        self.accuracy_sum = progress["accuracy_sum"]
        self.seconds = progress["seconds"]
        self.diverged = progress["diverged"]
        self.test = None if progress["test"] is None else TestAccuracies(**progress["test"])
        self.history = [EpochRecord.from_json(record) for record in progress["history"]]


def train(
    config: RunConfig, folder: Path, watch: Watch = ignore, *, resume: bool = False
) -> RunResult:
    """Run a configuration in a folder of its own (see `gradshare.training.folder`).

    Over several processes, with `config.workers` or under `torchrun`, each does a share of the
    tasks, and the first alone reads and writes the folder and watches.

    Args:
        config: what to run.
        folder: a new one, for everything that comes out.
        watch: told of progress.
        resume: continue the run that the folder holds from where it was saved last, to where it
            would have been; start one where there is none; do nothing where it is complete.

    Raises:
        DataError, ConfigError: the configuration cannot be run; nothing was written.
        RunError: the folder cannot be used, or holds another run; or another process of the run
            failed.
        RunStoppedError: Ctrl-C or SIGTERM; everything so far is saved.
    """
    with processes_of(config) as processes:
        return train_in(processes, config, folder, watch, resume=resume)


def train_in(
    processes: OneProcess, config: RunConfig, folder: Path, watch: Watch, *, resume: bool
) -> RunResult:
    """Be one of the processes of a run; the others call this too. See `train`."""
    first = processes.from_first(lambda: config)
    processes.agree(lambda: _require_started_alike(config, first))
    setup = processes.agree(lambda: set_up(config, processes))
    home = RunFolder(folder)
    learned, state = setup.learner.init()
    moment = _Moment(learned, state, make_optimizer(learned, config.outer_lr))
    with ExitStack() as stack:

        def open_home() -> Checkpoint | None:
            if not (resume and home.started):
                refuse_if_occupied(folder, resume=resume)
            stack.enter_context(home.locked())
            if resume and home.started:
                home.require_same(config)
                return home.load_latest(CPU)
            normalization = setup.normalization
            home.start(config, Inputs(setup.image_shape, normalization.mean, normalization.std))
            return None

        stack.enter_context(_memory_errors(config))
        saved = processes.from_first(open_home)
        if saved is not None:
            moment.restore(saved.to(setup.device))
        if moment.test is None:
            _continue(config, setup, home, moment, watch if processes.rank == 0 else ignore)
    return RunResult(config, moment.history, moment.diverged, moment.test, moment.seconds)


def _require_started_alike(config: RunConfig, first: RunConfig) -> None:
    """Refuse to take part in another run than the first process's."""
    for name in RunConfig.model_fields:
        ours, theirs = getattr(config, name), getattr(first, name)
        if name not in MACHINE_FIELDS and ours != theirs:
            raise ConfigError(
                f"{option_name(name)} is {ours!r} here and {theirs!r} in the first process; start "
                "all processes of a run with the same settings"
            )


@contextmanager
def _memory_errors(config: RunConfig) -> Iterator[None]:
    """Say what to do when memory runs out."""
    try:
        yield
    except RuntimeError as error:
        words = str(error)
        if isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in words:
            raise RunError(
                f"memory ran out ({words.splitlines()[0]}); lower --task-batch "
                f"{config.task_batch}, --queries {config.queries}, --filters {config.filters} or "
                "--image-size, or use --order first"
            ) from error
        raise


def _continue(
    config: RunConfig, setup: Setup, home: RunFolder, moment: _Moment, watch: Watch
) -> None:
    """Take a moment to the end of its run."""
    processes = setup.processes
    started = time.monotonic() - moment.seconds
    saved_at = time.monotonic()

    def save() -> None:
        nonlocal saved_at
        saved_at = time.monotonic()
        moment.seconds = saved_at - started
        processes.on_first(lambda: home.save_latest(moment.iteration, moment.checkpoint()))

    def prune() -> None:
        home.prune_epochs(kept_epochs(moment.history, config.ensemble))

    with processes.stop, _kept_if_others_fail(save, home, moment), ExitStack() as stack:
        metrics = processes.on_first(
            lambda: stack.enter_context(MetricsWriter(home.path, moment.history))
        )

        def stop_if(asked: int | None) -> None:
            if asked is not None:
                raise RunStoppedError(
                    f"stopped after iteration {moment.iteration} of {config.iterations}; "
                    f"everything so far is saved in {home.path}",
                    asked,
                )

        def told(phase: Phase, total: int) -> Callable[[int], None]:
            done = 0

            def advance(tasks: int) -> None:
                nonlocal done
                done += tasks
                watch(_progress(phase, done, total, config, moment))
                stop_if(processes.asked)

            return advance

        while True:
            # A moment is always saved before its epoch is validated, so that validating, however
            # long it takes, can be interrupted and is done first when the run is continued.
            if moment.diverged is None and _owes_validation(config, moment):
                record = _validate(config, setup, moment, told("validate", config.val_tasks))
                if record is not None:
                    record = dataclasses.replace(record, seconds=time.monotonic() - started)
                    moment.history.append(record)
                    moment.loss_sum = moment.accuracy_sum = 0.0
                    if metrics is not None:
                        home.save_epoch(record.epoch, (moment.learned, moment.state))
                        metrics.write(record)
                save()
                processes.on_first(prune)
            if moment.iteration == config.iterations or moment.diverged is not None:
                break
            _iterate(config, setup, moment)
            watch(_progress("train", moment.iteration, config.iterations, config, moment))
            overdue = time.monotonic() - saved_at > SAVE_EVERY_SECONDS
            ended = _owes_validation(config, moment) or moment.diverged is not None
            asked = processes.asked  # once: a request that comes while saving is for the next time
            if ended or overdue or asked is not None:
                save()
            stop_if(asked)
        if moment.history:
            moment.test = _test(config, setup, home, moment, told("test", config.test_tasks))
            save()


@contextmanager
def _kept_if_others_fail(
    save: Callable[[], None], home: RunFolder, moment: _Moment
) -> Iterator[None]:
    """Lose nothing of what was done when another process of the run fails.

    A moment changes between exchanges only, so that it is whole whenever one of them fails.
    """
    try:
        yield
    except OtherRankError as error:
        save()
        raise OtherRankError(
            f"{error}; everything up to iteration {moment.iteration} is saved in {home.path}, "
            "continue it with --resume auto"
        ) from error


def _owes_validation(config: RunConfig, moment: _Moment) -> bool:
    """Whether an epoch is complete and not validated yet."""
    return moment.iteration // config.iterations_per_epoch > len(moment.history)


def _iterate(config: RunConfig, setup: Setup, moment: _Moment) -> None:
    """One outer iteration, on the tasks that its number names."""
    if config.cosine_annealing_to is not None:
        done = moment.iteration / config.iterations
        for group in moment.optimizer.param_groups:
            group["lr"] = cosine_annealed(config.outer_lr, config.cosine_annealing_to, done)
    first_task = moment.iteration * config.task_batch
    share = setup.processes.share(range(first_task, first_task + config.task_batch))
    tasks = setup.train.batch(share.tasks)
    result = outer_iteration(
        setup.learner,
        moment.learned,
        moment.state,
        moment.optimizer,
        setup.normalization.batch(tasks.to(setup.device)),
        iteration=moment.iteration,
        clamp_gradients=config.clamp_gradients,
        share=share,
    )
    moment.state = result.state
    moment.iteration += 1
    moment.loss_sum += result.loss
    moment.accuracy_sum += result.accuracy
    if result.refused is not None:
        epoch = (moment.iteration - 1) // config.iterations_per_epoch + 1
        moment.diverged = f"epoch {epoch}, iteration {moment.iteration}: {result.refused}"


def _test(
    config: RunConfig,
    setup: Setup,
    home: RunFolder,
    moment: _Moment,
    advance: Callable[[int], None],
) -> TestAccuracies:
    """What the best epochs come to on the test tasks."""
    history = moment.history
    saved = setup.processes.from_first(lambda: home.best_models(history, config.ensemble, CPU))
    models = [
        (on_device(learned, setup.device), on_device(state, setup.device))
        for learned, state in saved
    ]
    return measure_test(setup, models, config.test_tasks, advance)


def _validate(
    config: RunConfig, setup: Setup, moment: _Moment, advance: Callable[[int], None]
) -> EpochRecord | None:
    """The record of the epoch that ends at a moment; None if its parameters are not finite."""
    epoch = len(moment.history) + 1
    setup.processes.require_identical({**moment.learned, **moment.state})
    for name, tensor in moment.learned.items():
        if not bool(tensor.isfinite().all()):
            moment.diverged = f"epoch {epoch}, iteration {moment.iteration}: {name} is not finite"
            return None
    accuracies, fit = evaluate(setup, (moment.learned, moment.state), config.val_tasks, advance)
    interval = confidence95(accuracies.tolist())
    return EpochRecord(
        epoch=epoch,
        iterations=moment.iteration,
        train_loss=moment.loss_sum / config.iterations_per_epoch,
        train_accuracy=moment.accuracy_sum / config.iterations_per_epoch,
        val_accuracy=interval.mean,
        val_ci95=interval.ci95,
        inner_loop=fit,
        **sharing_parameters(moment.learned),
        outer_lr=moment.optimizer.param_groups[0]["lr"],
        seconds=0.0,
    )


def _progress(
    phase: Phase,
    done: int,
    total: int,
    config: RunConfig,
    moment: _Moment,
) -> Progress:
    history = moment.history
    return Progress(
        phase,
        done,
        total,
        epoch=min(len(history) + 1, config.epochs),
        val_accuracy=history[-1].val_accuracy if history else None,
    )
