"""A training run: epochs of outer iterations, validation after each, a test at the end.

A run lives in a folder:

- `config.yaml`: the configuration, which reproduces it;
- `metrics.jsonl`, `tensorboard/`: one record for each epoch;
- `checkpoints/epoch-N.safetensors`: the best epochs by validation accuracy, for the ensemble;
- `checkpoints/latest-N.safetensors`: the last two moments from which the run can be continued.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gradshare.errors import RunError
from gradshare.inner_loop import Tensors
from gradshare.training.checkpoint import (
    Checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from gradshare.training.config import RunConfig, load_yaml
from gradshare.training.evaluation import Model, TestAccuracies, evaluate, measure_test
from gradshare.training.files import write_atomically
from gradshare.training.interruption import RunStoppedError, StopRequests
from gradshare.training.outer_loop import cosine_annealed, make_optimizer, outer_iteration
from gradshare.training.records import EpochRecord, MetricsWriter, sharing_parameters
from gradshare.training.setup import Setup, set_up
from gradshare.training.statistics import confidence95

KEPT_LATEST = 2


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

    phase: Literal["train", "validate", "test"]
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
    history: list[EpochRecord] = field(default_factory=list)


def train(config: RunConfig, folder: Path, watch: Watch = ignore) -> RunResult:
    """Run a configuration from its start into a new folder.

    Args:
        config: what to run.
        folder: a new one, for everything that comes out; see the module's docstring.
        watch: told of progress.

    Raises:
        DataError, ConfigError: the configuration cannot be run; nothing was written.
        RunError: the folder cannot be used.
        RunStoppedError: Ctrl-C or SIGTERM; everything so far is saved.
    """
    setup = set_up(config)
    claim_folder(folder)
    write_atomically(folder / "config.yaml", config.to_yaml().encode())
    (folder / "checkpoints").mkdir()
    learned, state = setup.learner.init()
    moment = _Moment(learned, state, make_optimizer(learned, config.outer_lr))
    return _continue(config, setup, folder, moment, watch)


def resume(folder: Path, watch: Watch = ignore) -> RunResult:
    """Continue the run in a folder from its last checkpoint, to where it would have been.

    Raises:
        RunError: there is no run to continue, or its checkpoint cannot be read.
        RunStoppedError: see `train`.
    """
    config = load_config(folder)
    setup = set_up(config)
    latest = sorted((folder / "checkpoints").glob("latest-*.safetensors"))
    learned, state = setup.learner.init()
    moment = _Moment(learned, state, make_optimizer(learned, config.outer_lr))
    if latest:
        saved = load_checkpoint(latest[-1], setup.device)
        for name, tensor in learned.items():
            tensor.data.copy_(saved.learned[name])
        restore_optimizer(moment.optimizer, learned, saved.optimizer)
        progress = dict(saved.progress)
        history = [EpochRecord.from_json(record) for record in progress.pop("history")]
        moment = dataclasses.replace(moment, state=saved.state, history=history, **progress)
    return _continue(config, setup, folder, moment, watch)


def load_config(folder: Path) -> RunConfig:
    """The configuration of the run in a folder.

    Raises:
        RunError: there is no run.
    """
    if not (folder / "config.yaml").is_file():
        raise RunError(f"{folder} holds no run (no config.yaml); give the folder of a run")
    return RunConfig.create(load_yaml(folder / "config.yaml"))


def load_history(folder: Path) -> list[EpochRecord]:
    """The records of a run's completed epochs.

    Raises:
        RunError: there are none, or they cannot be read.
    """
    path = folder / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        history = [EpochRecord.from_json(json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path} cannot be read: {error}; give the folder of a run") from error
    if not history:
        raise RunError(f"the run in {folder} has completed no epoch yet; nothing can be tested")
    return history


def claim_folder(folder: Path) -> None:
    """Create an output folder; refuse one that already holds something.

    Raises:
        RunError: it is not empty, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = next(folder.iterdir(), None)
    except OSError as error:
        raise RunError(
            f"the output folder {folder} cannot be written: {error.strerror or error}; choose "
            "another with --out"
        ) from error
    if occupied is not None:
        raise RunError(
            f"the output folder {folder} already holds {occupied.name!r}; choose another with "
            "--out, or delete it if you no longer need it"
        )


def best_epochs(history: Sequence[EpochRecord], count: int) -> list[int]:
    """The epochs with the best validation accuracy, best first, ties to the earlier."""
    ranked = sorted(history, key=lambda record: (-record.val_accuracy, record.epoch))
    return [record.epoch for record in ranked[:count]]


def best_models(
    folder: Path, history: Sequence[EpochRecord], count: int, device: torch.device
) -> list[Model]:
    """The models of the best epochs, best first."""
    models: list[Model] = []
    for epoch in best_epochs(history, count):
        checkpoint = load_checkpoint(_epoch_path(folder, epoch), device)
        models.append((checkpoint.learned, checkpoint.state))
    return models


def measure_run(
    config: RunConfig, setup: Setup, models: Sequence[Model], advance: Callable[[int], None]
) -> TestAccuracies:
    """Test a run's best models, best first, on its test tasks."""
    return measure_test(
        setup.learner,
        models,
        setup.test,
        config.test_tasks,
        setup.normalization,
        setup.device,
        advance,
    )


def _continue(
    config: RunConfig, setup: Setup, folder: Path, moment: _Moment, watch: Watch
) -> RunResult:
    started = time.monotonic() - moment.seconds
    with StopRequests() as stop, MetricsWriter(folder, moment.history) as metrics:
        while moment.iteration < config.iterations and moment.diverged is None:
            _iterate(config, setup, moment)
            watch(_progress("train", moment.iteration, config.iterations, config, moment))
            if moment.diverged is None and moment.iteration % config.iterations_per_epoch == 0:
                record = _finish_epoch(config, setup, moment, started, watch)
                metrics.write(record)
                _save_epoch(folder, config, moment)
            moment.seconds = time.monotonic() - started
            if stop.signal is not None:
                _save_latest(folder, moment)
                raise RunStoppedError(
                    f"stopped after iteration {moment.iteration} of {config.iterations}; "
                    f"everything so far is saved in {folder}",
                    stop.signal,
                )
        test = None
        if moment.history:
            models = best_models(folder, moment.history, config.ensemble, setup.device)
            done = 0

            def advance(tasks: int) -> None:
                nonlocal done
                done += tasks
                watch(_progress("test", done, config.test_tasks, config, moment))

            test = measure_run(config, setup, models, advance)
    return RunResult(
        config, moment.history, moment.diverged, test, seconds=time.monotonic() - started
    )


def _iterate(config: RunConfig, setup: Setup, moment: _Moment) -> None:
    """One outer iteration, on the tasks that its number names."""
    if config.cosine_annealing_to is not None:
        done = moment.iteration / config.iterations
        for group in moment.optimizer.param_groups:
            group["lr"] = cosine_annealed(config.outer_lr, config.cosine_annealing_to, done)
    first_task = moment.iteration * config.task_batch
    tasks = setup.train.batch(range(first_task, first_task + config.task_batch))
    result = outer_iteration(
        setup.learner,
        moment.learned,
        moment.state,
        moment.optimizer,
        setup.normalization.batch(tasks.to(setup.device)),
        iteration=moment.iteration,
        clamp_gradients=config.clamp_gradients,
    )
    moment.state = result.state
    moment.iteration += 1
    moment.loss_sum += result.loss
    moment.accuracy_sum += result.accuracy
    if result.refused is not None:
        epoch = (moment.iteration - 1) // config.iterations_per_epoch + 1
        moment.diverged = f"epoch {epoch}, iteration {moment.iteration}: {result.refused}"


def _finish_epoch(
    config: RunConfig, setup: Setup, moment: _Moment, started: float, watch: Watch
) -> EpochRecord:
    """Validate, and add the epoch to the history."""
    done = 0

    def advance(tasks: int) -> None:
        nonlocal done
        done += tasks
        watch(_progress("validate", done, config.val_tasks, config, moment))

    accuracies, fit = evaluate(
        setup.learner,
        (moment.learned, moment.state),
        setup.val,
        config.val_tasks,
        setup.normalization,
        setup.device,
        advance,
    )
    interval = confidence95(accuracies.tolist())
    record = EpochRecord(
        epoch=len(moment.history) + 1,
        iterations=moment.iteration,
        train_loss=moment.loss_sum / config.iterations_per_epoch,
        train_accuracy=moment.accuracy_sum / config.iterations_per_epoch,
        val_accuracy=interval.mean,
        val_ci95=interval.ci95,
        inner_loop=fit,
        **sharing_parameters(moment.learned),
        outer_lr=moment.optimizer.param_groups[0]["lr"],
        seconds=time.monotonic() - started,
    )
    moment.history.append(record)
    moment.loss_sum = moment.accuracy_sum = 0.0
    watch(_progress("train", moment.iteration, config.iterations, config, moment))
    return record


def _save_epoch(folder: Path, config: RunConfig, moment: _Moment) -> None:
    """Keep the best epochs' models, and the last two moments."""
    best = best_epochs(moment.history, config.ensemble)
    epoch = moment.history[-1].epoch
    if epoch in best:
        save_checkpoint(
            _epoch_path(folder, epoch), Checkpoint(moment.learned, dict(moment.state), {}, {})
        )
    kept = {_epoch_path(folder, epoch) for epoch in best}
    for path in (folder / "checkpoints").glob("epoch-*.safetensors"):
        if path not in kept:
            path.unlink()
    _save_latest(folder, moment)


def _save_latest(folder: Path, moment: _Moment) -> None:
    progress = {
        "iteration": moment.iteration,
        "loss_sum": moment.loss_sum,
        "accuracy_sum": moment.accuracy_sum,
        "seconds": moment.seconds,
        "diverged": moment.diverged,
        "history": [record.to_json() for record in moment.history],
    }
    save_checkpoint(
        folder / "checkpoints" / f"latest-{moment.iteration:09d}.safetensors",
        Checkpoint(
            moment.learned,
            dict(moment.state),
            optimizer_tensors(moment.optimizer, moment.learned),
            progress,
        ),
    )
    for path in sorted((folder / "checkpoints").glob("latest-*.safetensors"))[:-KEPT_LATEST]:
        path.unlink()


def _epoch_path(folder: Path, epoch: int) -> Path:
    return folder / "checkpoints" / f"epoch-{epoch:06d}.safetensors"


def _progress(
    phase: Literal["train", "validate", "test"],
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
