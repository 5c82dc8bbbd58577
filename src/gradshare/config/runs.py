"""Runs that are started from a configuration, and opened again by their folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gradshare.config.fields import MACHINE_FIELDS, option_name
from gradshare.config.names import is_import_path
from gradshare.config.parts import TASK_SIZES, build, resolved
from gradshare.config.settings import RunConfig
from gradshare.errors import ConfigError, GradshareError, RunError
from gradshare.methods import Learner
from gradshare.tasks import ImageTasks, Splits, TaskSource
from gradshare.tasks.absent import AbsentImages
from gradshare.tasks.glyphs import GLYPHS, drawn
from gradshare.tasks.registry import prepared
from gradshare.tasks.source import notes_of
from gradshare.training import run as runs
from gradshare.training.distributed import OneProcess
from gradshare.training.fit import fit_in
from gradshare.training.folder import SETTINGS, RunFolder, refuse_if_occupied
from gradshare.training.launch import (
    local_workers,
    threads,
    torchrun_processes,
    torchrun_size,
)
from gradshare.training.metrics import Metric
from gradshare.training.options import Watch, ignore
from gradshare.training.run import Run

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).parents[1] / "pretrained"
"""The folder of the runs that come with the package."""

# Settings that a run may be continued with other values of. `on_divergence` changes nothing before
# the first refused iteration.
CHANGEABLE = {*MACHINE_FIELDS, "on_divergence", "epochs"}


def train(
    config: RunConfig, folder: Path | str, *, resume: bool = False, watch: Watch = ignore
) -> Run:
    """Train, validate and test a run that is described by a configuration; see `gradshare.fit`.

    With `config.workers`, or under `torchrun`, several processes share the tasks; the first alone
    reads and writes the folder and reports progress.
    """
    if not isinstance(config, RunConfig):
        raise ConfigError(f"config is a {type(config).__name__}; give a RunConfig(…) of settings")
    folder = Path(folder).expanduser()
    size, workers = torchrun_size(), config.workers
    if size is not None and workers > 1:
        raise ConfigError(
            f"--workers {workers} starts processes, and torchrun has started {size}; leave one of "
            "them out"
        )
    count = config.threads or torch.get_num_threads()
    if workers > 1 and not config.threads and "OMP_NUM_THREADS" not in os.environ:
        count = max(1, count // workers)
    with threads(count):
        if workers == 1:
            processes = torchrun_processes(config.device)
        else:
            processes = local_workers(workers, config.device, train_in, config, folder)
        with processes as own:
            return train_in(own, config, folder, resume=resume, watch=watch)


def train_in(
    processes: OneProcess,
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    watch: Watch = ignore,
) -> Run:
    """Take part in a run as one of its processes; the others call this too. See `train`."""
    processes.from_first(lambda: refuse_if_occupied(folder, resume=resume))
    config = processes.agree(lambda: resolved(config))
    settings = config.model_dump(mode="json")
    own = {option_name(n): value for n, value in settings.items() if n not in MACHINE_FIELDS}
    processes.require_alike(own)
    processes.from_first(lambda: require_same(config, folder))
    parts = processes.agree(lambda: build(config))
    for note in notes_of(parts.train, parts.test) if processes.rank == 0 else ():
        log.warning("%s", note)
    return fit_in(
        processes,
        parts.learner,
        (parts.train, parts.validation, parts.test),
        parts.options,
        folder,
        resume=resume,
        watch=watch,
        settings=settings,
    )


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
        path: the folder, or "glyphs", the model that comes with the package, if no folder has
            this name.
        learner: as it was given to `fit`. A run that was started from names needs none: its
            configuration makes it again. Without a learner, the history, the metrics and the
            tensors can be read, and nothing else.
        source: a source such as the run's, for its `prepare` and for `FewShotClassifier`. A run
            that was started from names needs none.
        metrics: as they were given to `fit`; None for the defaults.
        device: as in `fit`.

    Raises:
        RunError: the folder holds no run, or one of another learner.
        ConfigError: the run's `config.yaml` cannot be read.
    """
    home = RunFolder(folder_of(path))
    missing: GradshareError | None = None
    validation: TaskSource | None = None
    if learner is None and home.started and home.contents().get("settings") is not None:
        config = stored(home.path)
        absent = _absent(config, home.contents().get("images"))
        try:
            config = config.model_copy(update={"test_dataset": None})  # it may be missing
            parts = build(config, None if absent is None else Splits(absent, absent))
        except GradshareError as error:  # such as a dataset that is not on this machine
            missing = error
        else:
            learner, source = parts.learner, source or parts.train
            validation = parts.validation if absent is None else _letters(config, absent)
            metrics = metrics or parts.options.metrics
    run = runs.open_run(home.path, learner, source, metrics=metrics, device=device)
    run.missing, run.validation = missing, validation
    return run


def stored(path: str | Path) -> RunConfig:
    """The configuration of a run's folder.

    Raises:
        RunError: the folder holds no run, or one started from objects or with other settings.
    """
    home = RunFolder(Path(path).expanduser())
    began = home.contents().get("settings")
    if began is None:
        raise RunError(
            f"the run in {home.path} was started from objects and has no {SETTINGS}; open it in "
            "Python: gradshare.open_run(path, learner)"
        )
    path = home.path / SETTINGS
    config = RunConfig.from_yaml(path) if path.is_file() else RunConfig(**began)
    began = RunConfig(**began).model_dump(mode="json")  # with the settings that are new since
    for name, value in config.model_dump(mode="json").items():
        if name not in CHANGEABLE and value != began[name]:
            raise RunError(
                f"{path} has {name} {value!r}, and the run was started with "
                f"{began[name]!r}; put the file back as it was, or correct this setting"
            )
    return config


def folder_of(path: str | Path) -> Path:
    """The folder of a run. A name that no folder has here may be that of a shipped model."""
    path = Path(path).expanduser()
    shipped = SHIPPED / path
    return shipped if not path.exists() and shipped.is_dir() else path


def _absent(config: RunConfig, record: Mapping[str, Any] | None) -> AbsentImages | None:
    """A source for a run without its dataset; None if that is here, or if nothing is recorded."""
    is_here = is_import_path(config.dataset) or config.dataset in prepared(config.data_root)
    return None if is_here or record is None else AbsentImages.model_validate(record)


def _letters(config: RunConfig, absent: AbsentImages) -> ImageTasks | None:
    """The validation tasks of a run on glyphs, which can be drawn anywhere; else None."""
    if config.dataset != GLYPHS.name:
        return None
    sizes = {name: getattr(config, name) for name in TASK_SIZES}
    images = drawn("val", absent.form.size)
    return ImageTasks(images, normalization=absent.used_normalization, **sizes)


def require_same(config: RunConfig, folder: Path) -> None:
    """Raise RunError if a folder holds a run that cannot be continued with some settings."""
    if not RunFolder(folder).started:
        return
    old = stored(folder)
    longer = config.epochs > old.epochs
    changeable = CHANGEABLE if longer else CHANGEABLE - {"epochs"}
    for name in RunConfig.model_fields:
        before, now = getattr(old, name), getattr(config, name)
        if before != now and name not in changeable:
            raise RunError(
                f"{folder} holds a run with {name} {before!r}, this one has {now!r}; continue it "
                "with its own settings, or choose another folder (--out)"
            )
    if longer and (setting := config.depends_on_length):
        raise RunError(
            f"{folder} holds a run of {old.epochs} epochs, which cannot be extended to "
            f"{config.epochs}: {option_name(setting)} {getattr(config, setting)} depends on the "
            "number of epochs; start another run (--out)"
        )
