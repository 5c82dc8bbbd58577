"""The folder that a run lives in.

- `run.json`: the run's identity and layout, and digests of source files;
- `config.yaml`: the settings of a run that was started by names, from which it can be rebuilt;
- `metrics.jsonl`, `tensorboard/`: one record for each epoch;
- `checkpoints/epoch-N.safetensors`: the best epochs by the score, for the ensemble;
- `checkpoints/latest-N.safetensors`: the last two checkpoints to continue from;
- `.lock`: held while a process trains here.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from gradshare.errors import RunError, some
from gradshare.training.checkpoint import (
    FORMAT_VERSION,
    Checkpoint,
    DamagedError,
    load_checkpoint,
    save_checkpoint,
)
from gradshare.training.files import (
    UNFINISHED,
    make_folder,
    read_signed,
    write_atomically,
    write_signed,
    writing,
)
from gradshare.training.lock import LOCK, locked
from gradshare.training.memory import amount

log = logging.getLogger(__name__)

KEPT_LATEST = 2
# `is_locked` takes the lock for an instant. A process that starts then must wait that long.
LOCK_SECONDS = 0.5
RUN, SETTINGS = "run.json", "config.yaml"


class RunFolder:
    """A run's folder. Its methods raise RunError if they cannot write to it."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._checkpoints = self.path / "checkpoints"
        self._keep_lock: Callable[[], None] | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder unless it exists, and let no other process train in it; see `lock`."""
        with locked(self.path, doing="training", seconds=LOCK_SECONDS) as self._keep_lock:
            for leftover in self.path.rglob(f"*{UNFINISHED}"):  # of a process that was killed
                leftover.unlink(missing_ok=True)
            yield

    @property
    def started(self) -> bool:
        """Whether there is a run to continue."""
        return (self.path / RUN).is_file()

    def start(self, contents: Mapping[str, Any]) -> None:
        """Begin a new run here."""
        make_folder(self._checkpoints)
        self.store(contents)

    def store(self, contents: Mapping[str, Any]) -> None:
        """Write `run.json`."""
        write_signed(self.path / RUN, {"format": FORMAT_VERSION, **contents})

    def store_settings(self, settings: Mapping[str, Any]) -> None:
        """Write `config.yaml`."""
        text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
        write_atomically(self.path / SETTINGS, text.encode())

    def contents(self) -> dict[str, Any]:
        """The contents of `run.json`; RunError if they are absent, edited or of another version."""
        if (self.path / "inputs.json").is_file():
            raise RunError(
                f"the run in {self.path} was written by gradshare 0.1.0; use that version to read "
                "or continue it, or train it again"
            )
        if not self.started:
            found = [*self.path.glob(f"*/{RUN}"), *self.path.glob(f"runs/*/*/{RUN}")]
            below = sorted(path.parent.relative_to(self.path).as_posix() for path in found)
            which = f"one of those below it: {some(below, 5)}" if below else "the folder of a run"
            what = f"holds no run (no {RUN})" if self.path.is_dir() else "is not a folder"
            raise RunError(f"{self.path} {what}; give {which}")
        return read_signed(
            self.path / RUN, FORMAT_VERSION, "put it back as it was, or give another run"
        )

    def save_latest(self, iteration: int, checkpoint: Checkpoint) -> Path:
        """Save a checkpoint to continue from, keep the one before it, and return its file."""
        if self._keep_lock is not None:
            self._keep_lock()
        path = self._checkpoints / f"latest-{iteration:09d}.safetensors"
        save_checkpoint(path, checkpoint)
        for older in self._latest()[:-KEPT_LATEST]:
            older.unlink()
        return path

    def load_latest(self) -> Checkpoint | None:
        """The newest readable checkpoint; None if the run has saved none and completed no epoch.

        Raises:
            RunError: the checkpoints cannot be read, or are gone; or the newest cannot be opened or
                is of another format version.
        """
        paths = self._latest()
        for path in reversed(paths):
            try:
                return self._load(path)
            except DamagedError as error:
                log.warning("%s; falling back to the checkpoint before it", error)
                # Under its name it would be among the last two for long.
                with contextlib.suppress(OSError):
                    path.replace(path.with_name(f"damaged-{path.name}"))
        if paths or any(self._checkpoints.glob("damaged-latest-*")):
            raise RunError(
                f"no checkpoint in {self._checkpoints} can be read; start again in another folder "
                "(--out)"
            )
        # A run is saved before its first epoch is validated.
        recorded = self.path / "metrics.jsonl"
        if any(self._checkpoints.glob("epoch-*.safetensors")) or (
            recorded.is_file() and recorded.stat().st_size
        ):
            raise RunError(
                f"{self.path} has completed epochs, but no checkpoints/latest-*.safetensors to "
                "continue from; put these back, or start again in another folder (--out)"
            )
        return None

    def save_epoch(self, epoch: int, checkpoint: Checkpoint) -> None:
        """Keep an epoch's model."""
        save_checkpoint(self._epoch(epoch), checkpoint)

    def prune_epochs(self, kept: Sequence[int]) -> None:
        """Delete the models of all other epochs."""
        paths = {self._epoch(epoch) for epoch in kept}
        for path in self._checkpoints.glob("epoch-*.safetensors"):
            if path not in paths:
                path.unlink()

    def models(self, epochs: Sequence[int]) -> list[Checkpoint]:
        """The models of some epochs. Damaged ones and those of another run are left out with a
        warning. Raise RunError if all are.
        """
        models: list[Checkpoint] = []
        for epoch in epochs:
            try:
                models.append(self._load(self._epoch(epoch), epoch))
            except RunError as error:
                log.warning("%s; epoch %d is left out of the ensemble", error, epoch)
        if not models:
            raise RunError(f"no epoch's checkpoint in {self._checkpoints} can be read")
        return models

    def require_disk(self, need: int) -> None:
        """Raise RunError if a whole run of `need` bytes does not fit on the disk."""
        held = sum(path.stat().st_size for path in self.path.rglob("*") if path.is_file())
        places = (self.path, *self.path.absolute().parents)
        free = shutil.disk_usage(next(place for place in places if place.is_dir())).free
        if need - held > free:
            raise RunError(
                f"the run needs {amount(need - held)} of disk space in {self.path} for its "
                f"checkpoints and records; {amount(free)} are free: free some, choose another "
                "output folder, keep fewer models (ensemble) or take a smaller model"
            )

    def _load(self, path: Path, epoch: int | None = None) -> Checkpoint:
        """A checkpoint of this run, and of this epoch if one is given."""
        checkpoint = load_checkpoint(path)
        theirs, ours = checkpoint.progress.get("run"), self.contents()["id"]
        if theirs != ours:
            raise DamagedError(
                f"{path} is of another run ({theirs}, not {ours}); use the run's own"
            )
        if epoch is not None and (found := checkpoint.progress.get("epoch")) != epoch:
            raise DamagedError(f"{path} is of epoch {found}, not {epoch}")
        return checkpoint

    def _latest(self) -> list[Path]:
        return sorted(self._checkpoints.glob("latest-*.safetensors"))

    def _epoch(self, epoch: int) -> Path:
        return self._checkpoints / f"epoch-{epoch:06d}.safetensors"


def refuse_if_occupied(folder: Path, *, resume: bool) -> None:
    """Raise RunError if an output folder already holds something.

    Args:
        resume: accept a run, and what a run leaves that is killed before `run.json` is written.
    """
    run = RunFolder(folder)
    if resume and run.started:
        return
    if resume and (folder / "inputs.json").is_file():
        run.contents()  # raises: of version 0.1.0
    with writing(folder):
        # The lock may be this process's own.
        names = {path.name for path in folder.iterdir()} - {LOCK} if folder.exists() else set()
    if resume:
        names -= {"checkpoints", *(name for name in names if name.endswith(UNFINISHED))}
    # The message names a visible file if there is one.
    if occupied := sorted(names, key=lambda name: (name.startswith("."), name)):
        raise RunError(
            f"the output folder {folder} already holds {occupied[0]!r}; choose another (--out), "
            "continue it (resume='auto', --resume auto), or delete it if you no longer need it"
        )
