"""A training run: epochs of outer iterations, validation after each, a test at the end.

The tasks of an iteration are named by its number, and everything else that an iteration depends on
is one value, `_Moment`. A run that is killed at any point and continued from any saved moment ends
where it would have ended.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from gradshare.config import RunConfig, option_name
from gradshare.errors import ConfigError, RunError
from gradshare.inner_loop import Tensors
from gradshare.tasks import TaskBatch
from gradshare.training.checkpoint import (
    Checkpoint,
    on_device,
    optimizer_tensors,
    restore_optimizer,
)
from gradshare.training.compilation import compile_if_right
from gradshare.training.distributed import OneProcess, OtherRankError
from gradshare.training.divergence import diagnose, not_finite
from gradshare.training.evaluation import TestAccuracies, measure_test, validate
from gradshare.training.folder import MACHINE_FIELDS, Inputs, RunFolder
from gradshare.training.interruption import RunStoppedError
from gradshare.training.launch import processes_of
from gradshare.training.machine import commit, environment
from gradshare.training.outer_loop import cosine_annealed, make_optimizer, outer_iteration
from gradshare.training.preflight import (
    less_memory,
    memory_errors,
    require_disk,
    require_memory,
)
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

CPU = torch.device("cpu")  # what goes between processes is there

# A refused iteration changes nothing, so that the next differs from it in its tasks alone: after so
# many in a row a run that skips them will not get any further.
MOST_SKIPPED_IN_A_ROW = 50

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
        environment: of the process that trained it, the last if there were several, with how its
            work was laid out; see `gradshare.training.machine.environment`.
        images: how many the dataset had, in all splits.
        images_sha256: of all of them.
    """

    config: RunConfig
    history: list[EpochRecord]
    diverged: str | None
    test: TestAccuracies | None
    seconds: float
    environment: dict[str, Any]
    images: int
    images_sha256: str


class _Progress(BaseModel):
    """What a checkpoint says besides its tensors: fields of `_Moment`, by the same names."""

    iteration: int
    loss_sum: float
    accuracy_sum: float
    skipped: int
    first_skipped: str | None
    skipped_in_a_row: int
    seconds: float
    diverged: str | None
    test: TestAccuracies | None
    history: list[EpochRecord]
    environment: dict[str, Any]

    @classmethod
    def read(cls, stored: object, iterations: int) -> _Progress:
        """Check what a checkpoint holds, of a run of so many iterations.

        Raises:
            RunError: names what is wrong.
        """
        try:
            progress = cls.model_validate(stored)
            cause = f"iteration: it is {progress.iteration}, this run has {iterations}"
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            cause = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        else:
            if 0 <= progress.iteration <= iterations:
                return progress
        raise RunError(
            f"the newest checkpoint cannot be continued from: {cause}; start again with another "
            "--out"
        )


@dataclass
class _Moment:
    """Everything that changes during a run."""

    learned: dict[str, Tensor]
    state: Tensors
    optimizer: torch.optim.Adam
    iteration: int = 0
    loss_sum: float = 0.0
    accuracy_sum: float = 0.0
    skipped: int = 0
    first_skipped: str | None = None
    skipped_in_a_row: int = 0
    seconds: float = 0.0
    diverged: str | None = None
    test: TestAccuracies | None = None
    history: list[EpochRecord] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)

    def checkpoint(self) -> Checkpoint:
        """As it is saved."""
        progress = {name: getattr(self, name) for name in _Progress.model_fields}
        progress["test"] = None if self.test is None else asdict(self.test)
        progress["history"] = [record.to_json() for record in self.history]
        return Checkpoint(
            self.learned,
            dict(self.state),
            optimizer_tensors(self.optimizer, self.learned),
            progress,
        )

    def restore(self, saved: Checkpoint, iterations: int) -> None:
        """Go back, or ahead, to a saved moment of the same run, which has so many iterations.

        Raises:
            RunError: what it says of the run's progress is not what a run says.
        """
        progress = _Progress.read(saved.progress, iterations)
        for name, tensor in self.learned.items():
            tensor.data.copy_(saved.learned[name])
        self.state = saved.state
        restore_optimizer(self.optimizer, self.learned, saved.optimizer)
        for name in _Progress.model_fields:
            setattr(self, name, getattr(progress, name))

    def pass_over(self, fault: str, *, skip: bool) -> None:
        """Leave a refused iteration behind, and end the run there unless it is to be skipped."""
        self.iteration += 1
        if not skip:
            self.diverged = fault
            return
        self.skipped += 1
        self.first_skipped = self.first_skipped or fault
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row == MOST_SKIPPED_IN_A_ROW:
            self.diverged = f"{fault} (the last of {MOST_SKIPPED_IN_A_ROW} in a row to be refused)"

    def end_epoch(self, record: EpochRecord) -> None:
        """Begin the next epoch."""
        self.history.append(record)
        self.loss_sum = self.accuracy_sum = 0.0
        self.skipped, self.first_skipped = 0, None


class _Safekeeping:
    """Saves the moments of a run that goes on, and knows how long ago it last did.

    Args:
        home: where to.
        moment: as it is now; it changes under way.
        processes: of the run.
    """

    def __init__(self, home: RunFolder, moment: _Moment, processes: OneProcess) -> None:
        self._home = home
        self._moment = moment
        self._processes = processes
        self._started = time.monotonic() - moment.seconds
        self._saved_at, self._saved_after = time.monotonic(), moment.iteration

    @property
    def saves(self) -> bool:
        """Whether this process is the one of the run that saves."""
        return self._processes.rank == 0

    def seconds(self) -> float:
        """How long the run has taken so far."""
        return time.monotonic() - self._started

    def overdue(self) -> bool:
        """Whether a kill would cost too much."""
        return time.monotonic() - self._saved_at > SAVE_EVERY_SECONDS

    def save(self) -> None:
        """Save the moment as it is."""
        self._saved_at, self._saved_after = time.monotonic(), self._moment.iteration
        self._moment.seconds = self._saved_at - self._started
        self._processes.on_first(
            lambda: self._home.save_latest(self._moment.iteration, self._moment.checkpoint())
        )

    def halt(self, fault: str, config: RunConfig) -> NoReturn:
        """End a run that is to stop at a refused iteration, with its last good moment saved."""
        if not_finite(self._moment.learned) is None:
            self.save()
        raise RunError(
            f"{fault}; {self._home.path} holds the run as it was after iteration "
            f"{self._saved_after}: continue it with --resume auto and --on-divergence skip or "
            "record, or start another with a lower --inner-lr than "
            f"{config.inner_rate:g} or --outer-lr than {config.outer_lr:g}"
        )


def train(
    config: RunConfig, folder: Path | str, watch: Watch = ignore, *, resume: bool = False
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
        RunError: the folder cannot be used, or holds another run, or one on other images; or an
            iteration was refused that the configuration says to stop at, with everything before it
            saved; or another process of the run failed.
        RunStoppedError: Ctrl-C or SIGTERM; everything so far is saved.
    """
    if not isinstance(config, RunConfig):
        raise ConfigError(f"config is a {type(config).__name__}; give a RunConfig(…) of settings")
    commit()  # as it is now; see there
    with processes_of(config) as processes:
        return train_in(processes, config, Path(folder).expanduser(), watch, resume=resume)


def train_in(
    processes: OneProcess, config: RunConfig, folder: Path, watch: Watch, *, resume: bool
) -> RunResult:
    """Be one of the processes of a run; the others call this too. See `train`."""
    first = processes.from_first(lambda: config)
    processes.agree(lambda: _require_started_alike(config, first))
    if config.compile and processes.size > 1:
        raise ConfigError(
            f"--compile is checked for a run in one process, and this one has {processes.size}; "
            "leave it out"
        )
    home = RunFolder(folder)
    processes.from_first(lambda: home.require_room(config, resume=resume))
    with ExitStack() as stack:
        lighter = less_memory(config, recomputes=config.memory == "recompute")
        stack.enter_context(memory_errors(f"start a new run and {lighter}"))
        setup = processes.agree(lambda: set_up(config, processes))
        kind, images = processes.from_first(lambda: (setup.device.type, setup.images_sha256))
        processes.agree(lambda: _require_set_up_alike(setup, kind, images))
        learned, state = setup.learner.init()
        moment = _Moment(learned, state, make_optimizer(learned, config.outer_lr))
        processes.agree(lambda: require_memory(config, setup))

        def open_home() -> Checkpoint | None:
            require_disk(config, learned, state, folder)
            stack.enter_context(home.locked())
            if resume and home.started:
                home.require_same(config)  # another process may have begun it meanwhile
                home.require_same_images(setup.images_sha256)
                return home.load_latest((on_device(learned, CPU), on_device(state, CPU)))
            mean, std = list(setup.normalization.mean), list(setup.normalization.std)
            home.start(config, Inputs(setup.image_shape, mean, std, setup.images_sha256))
            return None

        def store_changes() -> None:
            home.store(config)  # what it is continued with

        saved = processes.from_first(open_home)
        if saved is not None:
            processes.agree(lambda: moment.restore(saved.to(setup.device), config.iterations))
            if moment.test is None and moment.diverged is None:
                processes.on_first(store_changes)
        if moment.test is None:
            setup = compile_if_right(config, setup)
            if moment.diverged is None:
                moment.environment = environment(setup.device, setup.layout.describe())
            _continue(config, setup, home, moment, watch if processes.rank == 0 else ignore)
    return RunResult(
        config,
        moment.history,
        moment.diverged,
        moment.test,
        moment.seconds,
        moment.environment,
        setup.images,
        setup.images_sha256,
    )


def _require_started_alike(config: RunConfig, first: RunConfig) -> None:
    """Refuse to take part in another run than the first process's."""
    for name in RunConfig.model_fields:
        ours, theirs = getattr(config, name), getattr(first, name)
        if name not in MACHINE_FIELDS and ours != theirs:
            raise ConfigError(
                f"{option_name(name)} is {ours!r} here and {theirs!r} in the first process; start "
                "all processes of a run with the same settings"
            )


def _require_set_up_alike(setup: Setup, kind: str, images: str) -> None:
    """Refuse to take part in a run whose first process has another kind of device, with which there
    is nothing to exchange tensors by, or other images.
    """
    if setup.device.type != kind:
        raise ConfigError(
            f"the device is {setup.device.type} here and {kind} in the first process; give every "
            "process of a run a GPU, or --device cpu"
        )
    if setup.images_sha256 != images:
        raise ConfigError(
            f"the prepared dataset has images of SHA-256 {setup.images_sha256[:12]}… here and of "
            f"{images[:12]}… in the first process; prepare it alike on all machines of a run, or "
            "copy it from one to the others"
        )


def _continue(
    config: RunConfig, setup: Setup, home: RunFolder, moment: _Moment, watch: Watch
) -> None:
    """Take a moment to the end of its run."""
    processes = setup.processes
    safe = _Safekeeping(home, moment, processes)

    def prune() -> None:
        home.prune_epochs(kept_epochs(moment.history, config.ensemble))

    with processes.stop, _kept_if_others_fail(safe, home, moment), ExitStack() as stack:
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
                record = dataclasses.replace(record, seconds=safe.seconds())
                moment.end_epoch(record)
                if metrics is not None:
                    home.save_epoch(record.epoch, (moment.learned, moment.state))
                    metrics.write(record)
                safe.save()
                processes.on_first(prune)
            if moment.iteration == config.iterations or moment.diverged is not None:
                break
            fault = _iterate(config, setup, moment)
            if fault is not None:
                if config.on_divergence == "stop":
                    safe.halt(fault, config)
                moment.pass_over(fault, skip=config.on_divergence == "skip")
            watch(_progress("train", moment.iteration, config.iterations, config, moment))
            ended = _owes_validation(config, moment) or moment.diverged is not None
            asked = processes.asked  # once: a request that comes while saving is for the next time
            # An outer step that overflows is noticed before what it leaves is saved. What comes of
            # it is decided where every process of the run is, so not by one's own clock.
            if ended or asked is not None:
                overflow = _overflow(config, moment)
                if overflow is not None and config.on_divergence == "stop":
                    safe.halt(overflow, config)
                moment.diverged = moment.diverged or overflow
                safe.save()
            elif safe.overdue() and not_finite(moment.learned) is None:
                safe.save()
            stop_if(asked)
        if moment.history:
            moment.test = _test(config, setup, home, moment, told("test", config.test_tasks))
            safe.save()


@contextmanager
def _kept_if_others_fail(safe: _Safekeeping, home: RunFolder, moment: _Moment) -> Iterator[None]:
    """Lose nothing of what was done when another process of the run fails.

    A moment changes between exchanges only, so that it is whole whenever one of them fails.
    """
    try:
        yield
    except OtherRankError as error:
        if not safe.saves or not_finite(moment.learned) is not None:
            raise
        safe.save()
        raise type(error)(
            f"{error}; everything up to iteration {moment.iteration} is saved in {home.path}, "
            "continue it with --resume auto"
        ) from error


def _owes_validation(config: RunConfig, moment: _Moment) -> bool:
    """Whether an epoch is complete and not validated yet."""
    return moment.iteration // config.iterations_per_epoch > len(moment.history)


def _overflow(config: RunConfig, moment: _Moment) -> str | None:
    """What is wrong with a moment's outer parameters; None if they are finite."""
    name = not_finite(moment.learned)
    if name is None:
        return None
    epoch = (moment.iteration - 1) // config.iterations_per_epoch + 1
    return f"epoch {epoch}, iteration {moment.iteration}: {name} is not finite"


def _outer_lr(config: RunConfig, iteration: int) -> float:
    """The outer learning rate of an iteration, from 0."""
    if config.cosine_annealing_to is None:
        return config.outer_lr
    done = iteration / config.iterations
    return cosine_annealed(config.outer_lr, config.cosine_annealing_to, done)


def _iterate(config: RunConfig, setup: Setup, moment: _Moment) -> str | None:
    """One outer iteration, on the tasks that its number names.

    Returns:
        Where and why it was refused, with the moment left as it was; None if it was not.
    """
    for group in moment.optimizer.param_groups:
        group["lr"] = _outer_lr(config, moment.iteration)
    first_task = moment.iteration * config.task_batch
    indices = range(first_task, first_task + config.task_batch)
    share = setup.processes.share(indices)

    def tasks(indices: range) -> TaskBatch:
        return setup.normalization.batch(setup.train.batch(indices).to(setup.device))

    own = tasks(share.tasks)
    result = outer_iteration(
        setup.learner,
        moment.learned,
        moment.state,
        moment.optimizer,
        own,
        iteration=moment.iteration,
        clamp_gradients=config.clamp_gradients,
        share=share,
    )
    if result.refused is not None:

        def walk_again() -> str | None:
            return diagnose(
                setup.learner,
                moment.learned,
                moment.state,
                own if share.tasks == indices else tasks(indices),
                iteration=moment.iteration,
            )

        # One process alone walks through the whole batch: where the others are does not matter.
        fault = setup.processes.from_first(walk_again)
        epoch = moment.iteration // config.iterations_per_epoch + 1
        return f"epoch {epoch}, iteration {moment.iteration + 1}: {fault or result.refused}"
    moment.state = result.state
    moment.iteration += 1
    moment.loss_sum += result.loss
    moment.accuracy_sum += result.accuracy
    moment.skipped_in_a_row = 0
    return None


def _test(
    config: RunConfig,
    setup: Setup,
    home: RunFolder,
    moment: _Moment,
    advance: Callable[[int], None],
) -> TestAccuracies:
    """What the best epochs come to on the test tasks."""
    history = moment.history
    like = (on_device(moment.learned, CPU), on_device(moment.state, CPU))
    saved = setup.processes.from_first(lambda: home.best_models(history, config.ensemble, like))
    models = [
        (on_device(learned, setup.device), on_device(state, setup.device))
        for learned, state in saved
    ]
    return measure_test(setup, models, config.test_tasks, advance)


def _validate(
    config: RunConfig, setup: Setup, moment: _Moment, advance: Callable[[int], None]
) -> EpochRecord:
    """The record of the epoch that ends at a moment."""
    setup.processes.require_identical({**moment.learned, **moment.state})
    accuracies, fit = validate(setup, (moment.learned, moment.state), config.val_tasks, advance)
    interval = confidence95(accuracies.tolist())
    taken = config.iterations_per_epoch - moment.skipped
    return EpochRecord(
        epoch=len(moment.history) + 1,
        iterations=moment.iteration,
        train_loss=moment.loss_sum / taken if taken else math.nan,
        train_accuracy=moment.accuracy_sum / taken if taken else math.nan,
        val_accuracy=interval.mean,
        val_ci95=interval.ci95,
        inner_loop=fit,
        **sharing_parameters(moment.learned),
        # Not the optimiser's: that of a run continued just here has taken no step yet.
        outer_lr=_outer_lr(config, moment.iteration - 1),
        seconds=0.0,
        skipped=moment.skipped,
        first_skipped=moment.first_skipped,
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
