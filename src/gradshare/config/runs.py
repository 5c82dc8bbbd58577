"""Runs that are started from a configuration, and opened again by their folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradshare.config.fields import MACHINE_FIELDS
from gradshare.config.parts import build
from gradshare.config.settings import RunConfig, first_difference, option_name
from gradshare.errors import ConfigError, RunError
from gradshare.methods import Learner
from gradshare.tasks import TaskSource
from gradshare.training import run as runs
from gradshare.training.distributed import OneProcess
from gradshare.training.fit import fit_in
from gradshare.training.folder import SETTINGS, RunFolder, refuse_if_occupied
from gradshare.training.metrics import Metric
from gradshare.training.options import Watch, ignore
from gradshare.training.run import Run
from gradshare.workers import processes_of


def train(
    config: RunConfig, folder: Path | str, *, resume: bool = False, watch: Watch = ignore
) -> Run:
    """Train, validate and test what a configuration says.

    With `config.workers`, or under `torchrun`, several processes share the tasks; the first alone
    reads and writes the folder and watches.

    Args:
        config: of the run.
        folder: a new one, for everything that comes out.
        resume: continue the run that the folder holds, or start one if there is none; see
            `gradshare.fit`.
        watch: told of progress.

    Raises:
        GradshareError: see `gradshare.fit`.
    """
    if not isinstance(config, RunConfig):
        raise ConfigError(f"config is a {type(config).__name__}; give a RunConfig(…) of settings")
    with processes_of(config.model_dump(mode="json")) as processes:
        return train_in(processes, config, Path(folder).expanduser(), resume=resume, watch=watch)


def train_in(
    processes: OneProcess,
    config: RunConfig,
    folder: Path,
    *,
    resume: bool,
    watch: Watch = ignore,
) -> Run:
    """Be one of the processes of a run; the others call this too. See `train`."""
    settings = config.model_dump(mode="json")
    first = processes.from_first(lambda: settings)
    processes.agree(lambda: _require_alike(settings, first))
    processes.from_first(lambda: require_room(config, folder, resume=resume))
    parts = processes.agree(lambda: build(config))
    settings["data_root"] = str(config.data_root.absolute())  # it may be opened from elsewhere
    run = fit_in(
        processes,
        parts.learner,
        (parts.train, parts.validation, parts.test),
        parts.options,
        folder,
        resume=resume,
        watch=watch,
        settings=settings,
    )
    if resume:  # it may have been continued with other settings
        processes.on_first(lambda: RunFolder(folder).store_settings(settings))
    return run


def open_run(
    path: str | Path,
    learner: Learner | None = None,
    source: TaskSource | None = None,
    *,
    metrics: Mapping[str, Metric] | None = None,
    device: str = "auto",
) -> Run:
    """Open the folder of a run.

    Args:
        path: the folder.
        learner: as it was given to `fit`. A run that was started from names needs none: it is
            made again from the run's configuration. Without it, the history, the metrics and the
            tensors of other runs can be read, and nothing else.
        source: a source of tasks whose `prepare` is used; not needed if it has none, or if the run
            was started from names.
        metrics: as they were given to `fit`; None for the defaults.
        device: as in `fit`.

    Raises:
        RunError: there is no run, or one of another learner.
        DataError, ConfigError: what the configuration names is not here.
    """
    home = RunFolder(Path(path).expanduser())
    if learner is None and home.started and (home.path / SETTINGS).is_file():
        parts = build(stored(path))
        learner, source = parts.learner, source or parts.train
        metrics = metrics or parts.options.metrics
    return runs.open_run(path, learner, source, metrics=metrics, device=device)


def stored(path: str | Path) -> RunConfig:
    """The configuration of a run's folder.

    Raises:
        RunError: there is no run, or one that was started from objects.
        ConfigError: the configuration cannot be read.
    """
    home = RunFolder(Path(path).expanduser())
    home.contents()
    if not (home.path / SETTINGS).is_file():
        raise RunError(
            f"the run in {home.path} was started from objects and has no {SETTINGS}; open it in "
            "Python: gradshare.open_run(path, learner)"
        )
    return RunConfig.from_yaml(home.path / SETTINGS)


def require_room(config: RunConfig, folder: Path, *, resume: bool) -> None:
    """Raise if a run cannot be in a folder, before any work is done for it.

    Raises:
        RunError: the folder holds something else, a run with other settings, or one that cannot be
            made longer.
    """
    if not (resume and RunFolder(folder).started):
        refuse_if_occupied(folder, resume=resume)
        return
    old = stored(folder)
    longer = config.epochs > old.epochs
    as_long = old.model_copy(update={"epochs": config.epochs}) if longer else old
    difference = first_difference(as_long, config)
    if difference is not None:
        name, before, now = difference
        raise RunError(
            f"{folder} holds a run with {name} {before!r}, this one has {now!r}; continue it with "
            "its own settings, or choose another folder (--out)"
        )
    setting = config.depends_on_length if longer else None
    if setting is not None:
        raise RunError(
            f"{folder} holds a run of {old.epochs} epochs, which cannot be extended to "
            f"{config.epochs}: {option_name(setting)} {getattr(config, setting)} depends on the "
            "number of epochs; start another run (--out)"
        )


def _require_alike(own: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    """Raise ConfigError unless this process has the settings of the first."""
    for name, value in own.items():
        if name not in MACHINE_FIELDS and value != first[name]:
            raise ConfigError(
                f"{option_name(name)} is {value!r} here and {first[name]!r} in the first process; "
                "start all processes of a run with the same settings"
            )
