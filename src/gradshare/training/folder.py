"""The folder that a run lives in.

- `config.yaml`: the configuration, which reproduces it;
- `inputs.json`: the shape and the pixel statistics of the images that it takes, and their digest;
- `metrics.jsonl`, `tensorboard/`: one record for each epoch;
- `checkpoints/epoch-N.safetensors`: the best epochs by validation accuracy, for the ensemble;
- `checkpoints/latest-N.safetensors`: the last two moments from which the run can be continued;
- `.lock`: held while a process trains here.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import ConfigDict, Field, TypeAdapter

from gradshare.config import RunConfig
from gradshare.errors import RunError
from gradshare.tasks.store import LONGEST, Sha256
from gradshare.training.checkpoint import (
    Checkpoint,
    DamagedError,
    load_checkpoint,
    require_fit,
    save_checkpoint,
)
from gradshare.training.evaluation import Model
from gradshare.training.files import UNFINISHED, make_folder, write_atomically
from gradshare.training.records import EpochRecord, kept_epochs

log = logging.getLogger(__name__)

KEPT_LATEST = 2
LOCK = ".lock"
# `in_use` holds the lock for a moment to see whether it can, which must fail nobody's start.
LOCK_SECONDS = 0.5
WRITTEN_FIRST = {LOCK, "checkpoints", "inputs.json"}

# Where and how fast a run goes, but not what it is: a run may be continued with others.
MACHINE_FIELDS = ("data_root", "device", "threads", "workers")
# What a run does at its first refused iteration changes nothing before that.
CHANGEABLE_FIELDS = (*MACHINE_FIELDS, "on_divergence")


_Length = Annotated[int, Field(ge=1, le=LONGEST)]


@dataclass(frozen=True)
class Inputs:
    """What a run's model takes, so that it can be used without the dataset.

    Attributes:
        image_shape: (C, H, W) of the images.
        mean: see `Normalization`.
        std: see `Normalization`.
        sha256: of all the dataset's images, by which a run knows them again; None in the folder of
            a run that an earlier version of gradshare has started.
    """

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    image_shape: tuple[_Length, _Length, _Length]
    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]
    sha256: Sha256 | None = None

    def __post_init__(self) -> None:
        channels, height, width = self.image_shape
        if height != width or not len(self.mean) == len(self.std) == channels:
            raise ValueError("the image's shape, mean and standard deviation do not agree")


_INPUTS = TypeAdapter(Inputs)


class RunFolder:
    """A run's folder.

    Args:
        path: where it is, or is to be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checkpoints = path / "checkpoints"

    def require_room(self, config: RunConfig, *, resume: bool) -> None:
        """Refuse a folder that this run cannot be in, before any work is done for it.

        Args:
            config: of the run.
            resume: whether it may be continued.

        Raises:
            RunError: the folder holds something else, or the run with other settings.
        """
        if resume and self.started:
            self.require_same(config)
        else:
            refuse_if_occupied(self.path, resume=resume)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder if there is none, and let no other process train in it.

        The lock goes with the process that holds it, however that ends.

        Raises:
            RunError: another process trains here, or the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK, timeout=LOCK_SECONDS)
            lock.acquire()
        except Timeout as error:
            raise RunError(
                f"another process is training in {self.path}; wait for it, or choose another "
                "folder with --out"
            ) from error
        except OSError as error:
            raise RunError(
                f"the output folder {self.path} cannot be written: {error.strerror or error}; "
                "choose another with --out"
            ) from error
        try:
            for leftover in self.path.rglob(f"*{UNFINISHED}"):  # of a process that was killed
                leftover.unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    @property
    def in_use(self) -> bool:
        """Whether a process trains here."""
        path = self.path / LOCK
        if not path.exists():
            return False
        try:
            with FileLock(path, timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # where nothing can be written, nobody trains
            return False

    def start(self, config: RunConfig, inputs: Inputs) -> None:
        """Make the folder that of a new run; from then on it is `started`.

        Raises:
            RunError: it cannot be written.
        """
        make_folder(self._checkpoints)
        write_atomically(self.path / "inputs.json", json.dumps(asdict(inputs)).encode())
        self.store(config)

    def store(self, config: RunConfig) -> None:
        """Keep a configuration as the run's.

        Raises:
            RunError: it cannot be written.
        """
        write_atomically(self.path / "config.yaml", config.to_yaml().encode())

    @property
    def started(self) -> bool:
        """Whether there is a run to continue."""
        return (self.path / "config.yaml").is_file()

    def config(self) -> RunConfig:
        """The run's configuration.

        Raises:
            RunError: there is no run.
        """
        if not self.started:
            below = sorted(path.parent.name for path in self.path.glob("*/config.yaml"))
            which = f"one of those below it: {', '.join(below)}" if below else "the folder of a run"
            raise RunError(f"{self.path} holds no run (no config.yaml); give {which}")
        return RunConfig.from_yaml(self.path / "config.yaml")

    def inputs(self) -> Inputs:
        """What the run's model takes.

        Raises:
            RunError: that cannot be read.
        """
        path = self.path / "inputs.json"
        try:
            return _INPUTS.validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read: {error}; give the folder of a run") from error

    def require_same(self, config: RunConfig) -> None:
        """Refuse to continue a run as another one.

        Raises:
            RunError: a setting differs from the stored one.
        """
        difference = first_difference(self.config(), config)
        if difference is not None:
            name, old, new = difference
            raise RunError(
                f"{self.path} holds a run with {name} {old!r}, this one has {new!r}; continue it "
                "with its own settings, or choose another folder with --out"
            )

    def require_same_images(self, sha256: str) -> None:
        """Refuse to go on with other images than those that the run was started with.

        Args:
            sha256: of all the dataset's images, as it is now.

        Raises:
            RunError: they are others, or the run's inputs cannot be read.
        """
        stored = self.inputs().sha256
        # Earlier versions stored no digest; then there is nothing to compare with.
        if stored is not None and stored != sha256:
            raise RunError(
                f"the run in {self.path} was started with images of SHA-256 {stored[:12]}…, the "
                f"prepared dataset now has {sha256[:12]}…; prepare the dataset as it was, name the "
                "folder that still holds it with --data-root, or start another run"
            )

    def history(self) -> list[EpochRecord]:
        """The records of the completed epochs.

        Raises:
            RunError: there are none, or they cannot be read.
        """
        path = self.path / "metrics.jsonl"
        try:
            *lines, _ = path.read_text(encoding="utf-8").split("\n")  # the last may be half written
            history = [EpochRecord.from_json(json.loads(line)) for line in lines]
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RunError(f"{path} cannot be read: {error}; give the folder of a run") from error
        if not history:
            raise RunError(
                f"the run in {self.path} has completed no epoch: it goes on, was stopped, or "
                "diverged in its first; wait for it, continue it (--resume auto), or give another"
            )
        return history

    def save_latest(self, iteration: int, checkpoint: Checkpoint) -> None:
        """Keep a moment to continue from, and the one before it."""
        save_checkpoint(self._checkpoints / f"latest-{iteration:09d}.safetensors", checkpoint)
        for path in self._latest()[:-KEPT_LATEST]:
            path.unlink()

    def load_latest(self, like: Model) -> Checkpoint | None:
        """The newest moment that can be read; None where there never was one, so that nothing is
        lost by beginning.

        Args:
            like: outer parameters and state like those of the run, on its device.

        Raises:
            RunError: there are some, and all are damaged, or there were some; or the newest is of
                another format version, or cannot be opened.
        """
        paths = self._latest()
        for path in reversed(paths):
            try:
                return _load(path, like)
            except DamagedError as error:
                log.warning("%s; falling back to the checkpoint before it", error)
                # Under its name it would be among the last two for long.
                with contextlib.suppress(OSError):
                    path.replace(path.with_name(f"damaged-{path.name}"))
        if paths or any(self._checkpoints.glob("damaged-latest-*")):
            raise RunError(
                f"no checkpoint in {self._checkpoints} can be read; start again with another --out"
            )
        # A moment is saved before its epoch is validated.
        if any(self._checkpoints.glob("epoch-*.safetensors")):
            raise RunError(
                f"{self._checkpoints} has models of completed epochs, but no latest-*.safetensors "
                "to continue from; put these back, or start again with another --out"
            )
        return None

    def save_epoch(self, epoch: int, model: Model) -> None:
        """Keep an epoch's model."""
        learned, state = model
        save_checkpoint(self._epoch(epoch), Checkpoint(dict(learned), dict(state), {}, {}))

    def prune_epochs(self, kept: Sequence[int]) -> None:
        """Drop the models of all epochs but some."""
        paths = {self._epoch(epoch) for epoch in kept}
        for path in self._checkpoints.glob("epoch-*.safetensors"):
            if path not in paths:
                path.unlink()

    def best_models(self, history: Sequence[EpochRecord], count: int, like: Model) -> list[Model]:
        """The models of the best epochs, best first; damaged ones are left out with a warning.

        Args:
            history: of the run.
            count: how many.
            like: see `load_latest`.

        Raises:
            RunError: none can be read.
        """
        models: list[Model] = []
        for epoch in kept_epochs(history, count):
            try:
                checkpoint = _load(self._epoch(epoch), like)
            except RunError as error:
                log.warning("%s; epoch %d is left out of the ensemble", error, epoch)
            else:
                models.append((checkpoint.learned, checkpoint.state))
        if not models:
            raise RunError(f"no epoch's checkpoint in {self._checkpoints} can be read")
        return models

    def _latest(self) -> list[Path]:
        return sorted(self._checkpoints.glob("latest-*.safetensors"))

    def _epoch(self, epoch: int) -> Path:
        return self._checkpoints / f"epoch-{epoch:06d}.safetensors"


def first_difference(stored: RunConfig, config: RunConfig) -> tuple[str, Any, Any] | None:
    """The name and both values of the first setting that makes two runs different ones."""
    for name in RunConfig.model_fields:
        old, new = getattr(stored, name), getattr(config, name)
        if name not in CHANGEABLE_FIELDS and old != new:
            return name, old, new
    return None


def _load(path: Path, like: Model) -> Checkpoint:
    learned, state = like
    checkpoint = load_checkpoint(path, next(iter(learned.values())).device)
    require_fit(path, checkpoint, learned, state)
    return checkpoint


def refuse_if_occupied(folder: Path, *, resume: bool) -> None:
    """Refuse an output folder that already holds something.

    Args:
        folder: may exist or not.
        resume: accept what a run leaves that is killed before its configuration is written.

    Raises:
        RunError: it does, or it is no folder.
    """
    try:
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
        if resume:
            names -= WRITTEN_FIRST | {name for name in names if name.endswith(UNFINISHED)}
    except OSError as error:
        raise RunError(
            f"the output folder {folder} cannot be used: {error.strerror or error}; choose "
            "another with --out"
        ) from error
    # What a user knows the folder by comes before its ".lock".
    if occupied := sorted(names, key=lambda name: (name.startswith("."), name)):
        raise RunError(
            f"the output folder {folder} already holds {occupied[0]!r}; choose another with "
            "--out, continue it with --resume auto, or delete it if you no longer need it"
        )
