"""The folder that a run lives in.

- `run.json`: what the run is made of, its identity and its layout;
- `config.yaml`: the settings of a run that was started by names, from which it can be rebuilt;
- `metrics.jsonl`, `tensorboard/`: one record for each epoch;
- `checkpoints/epoch-N.safetensors`: the best epochs by the score, for the ensemble;
- `checkpoints/latest-N.safetensors`: the last two moments from which the run can be continued;
- `.lock`: held while a process trains here.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    ConfigDict,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)
from typing_extensions import TypedDict

from gradshare.errors import RunError
from gradshare.training.checkpoint import (
    FIRST_VERSION,
    FORMAT_VERSION,
    Checkpoint,
    DamagedError,
    load_checkpoint,
    require_fit,
    save_checkpoint,
)
from gradshare.training.files import UNFINISHED, make_folder, write_atomically
from gradshare.training.lock import LOCK, is_locked, locked
from gradshare.training.records import EpochRecord, History, first_mistake

log = logging.getLogger(__name__)

KEPT_LATEST = 2
# `in_use` holds the lock for a moment to see whether it can, which must not fail another's start.
LOCK_SECONDS = 0.5
RUN, SETTINGS = "run.json", "config.yaml"
WRITTEN_FIRST = {"checkpoints", SETTINGS}


class _Layout(TypedDict):
    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    tasks: Literal["loop", "vmap"]
    memory: Literal["keep", "recompute"]
    bytes: NonNegativeInt


_Identity = TypedDict(
    "_Identity",
    {
        "epochs": PositiveInt,
        "ensemble": PositiveInt,
        "metrics": dict[str, Literal["high", "low"]],
        "score": str,
        "schedule": str,
        "meta-parameters": str,
    },
)


class _Contents(TypedDict):
    id: Annotated[str, StringConstraints(pattern="^[0-9a-f]{32}$")]
    identity: _Identity
    layout: _Layout
    prepares: bool
    files: dict[str, str]


_CONTENTS = TypeAdapter(_Contents)
"""What is read of `run.json`, which has more."""


class RunFolder:
    """A run's folder.

    Args:
        path: where it is, or will be.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._checkpoints = self.path / "checkpoints"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder if there is none, and let no other process train in it.

        Raises:
            RunError: another process trains here, or the folder cannot be written.
        """
        with locked(self.path, doing="training", seconds=LOCK_SECONDS):
            for leftover in self.path.rglob(f"*{UNFINISHED}"):  # of a process that was killed
                leftover.unlink(missing_ok=True)
            yield

    @property
    def in_use(self) -> bool:
        """Whether a process trains here."""
        return is_locked(self.path)

    def start(self, contents: Mapping[str, Any], settings: Mapping[str, Any] | None) -> None:
        """Make the folder that of a new run; from then on it is `started`.

        Args:
            contents: of `run.json`.
            settings: of `config.yaml`.

        Raises:
            RunError: it cannot be written.
        """
        make_folder(self._checkpoints)
        if settings is not None:
            self.store_settings(settings)
        self.store(contents)

    def store(self, contents: Mapping[str, Any]) -> None:
        """Write `run.json`.

        Raises:
            RunError: it cannot be written.
        """
        contents = {"format": FORMAT_VERSION, **contents}
        # Options can be numpy's numbers.
        text = json.dumps(contents, indent=1, ensure_ascii=False, default=lambda v: v.item())
        write_atomically(self.path / RUN, text.encode())

    def store_settings(self, settings: Mapping[str, Any]) -> None:
        """Write `config.yaml`.

        Raises:
            RunError: it cannot be written.
        """
        text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
        write_atomically(self.path / SETTINGS, text.encode())

    @property
    def started(self) -> bool:
        """Whether there is a run to continue."""
        return (self.path / RUN).is_file()

    def contents(self) -> dict[str, Any]:
        """What `run.json` says.

        Raises:
            RunError: there is no run, or one of another version.
        """
        path = self.path / RUN
        if not self.started:
            if (self.path / "inputs.json").is_file():
                raise RunError(
                    f"the run in {self.path} was written by gradshare {FIRST_VERSION}; use that "
                    "version to read or continue it, or train it again"
                )
            below = sorted(found.parent.name for found in self.path.glob(f"*/{RUN}"))
            which = f"one of those below it: {', '.join(below)}" if below else "the folder of a run"
            raise RunError(f"{self.path} holds no run (no {RUN}); give {which}")
        try:
            contents = json.loads(path.read_bytes())
            version = contents["format"]
            author = contents["gradshare"]
            if version == FORMAT_VERSION:
                identity = _CONTENTS.validate_python(contents, strict=True)["identity"]
                identity["metrics"][identity["score"]]  # raises KeyError if it is none of them
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            cause = first_mistake(error) if isinstance(error, ValidationError) else repr(error)
            raise RunError(f"{path} cannot be read: {cause:.200}; give another run") from error
        if version != FORMAT_VERSION:
            raise RunError(
                f"{path} has format {version!r:.20}, this gradshare reads {FORMAT_VERSION}; use "
                f"gradshare {author!s:.60}, which wrote it"
            )
        return dict(contents)

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
                "diverged in its first; wait for it, continue it (resume='auto', --resume auto), "
                "or give another"
            )
        return history

    def save_latest(self, iteration: int, checkpoint: Checkpoint) -> None:
        """Keep a moment to continue from, and the one before it."""
        save_checkpoint(self.latest(iteration), checkpoint)
        for path in self._latest()[:-KEPT_LATEST]:
            path.unlink()

    def load_latest(self, like: Checkpoint | None = None) -> Checkpoint | None:
        """The newest moment that can be read; None if there never was one, so that nothing is lost
        by beginning.

        Args:
            like: a checkpoint of the run, to compare names and shapes with.

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
                f"no checkpoint in {self._checkpoints} can be read; start again in another folder "
                "(--out)"
            )
        # A moment is saved before its epoch is validated.
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
        """Delete the models of all epochs but some."""
        paths = {self._epoch(epoch) for epoch in kept}
        for path in self._checkpoints.glob("epoch-*.safetensors"):
            if path not in paths:
                path.unlink()

    def models(self, epochs: Sequence[int], like: Checkpoint | None = None) -> list[Checkpoint]:
        """The models of some epochs; damaged ones and another run's are left out with a warning.

        Args:
            epochs: best first.
            like: see `load_latest`.

        Raises:
            RunError: none can be read.
        """
        models: list[Checkpoint] = []
        run = {"run": self.contents()["id"]}
        for epoch in epochs:
            path = self._epoch(epoch)
            try:
                model = _load(path, like)
                require_fit(path, model, replace(model, progress=run))
                models.append(model)
            except RunError as error:
                log.warning("%s; epoch %d is left out of the ensemble", error, epoch)
        if not models:
            raise RunError(f"no epoch's checkpoint in {self._checkpoints} can be read")
        return models

    def latest(self, iteration: int) -> Path:
        """The file of a moment."""
        return self._checkpoints / f"latest-{iteration:09d}.safetensors"

    def _latest(self) -> list[Path]:
        return sorted(self._checkpoints.glob("latest-*.safetensors"))

    def _epoch(self, epoch: int) -> Path:
        return self._checkpoints / f"epoch-{epoch:06d}.safetensors"


def _load(path: Path, like: Checkpoint | None) -> Checkpoint:
    checkpoint = load_checkpoint(path)
    if like is not None:
        require_fit(path, checkpoint, like)
    return checkpoint


def refuse_if_occupied(folder: Path, *, resume: bool) -> None:
    """Raise if an output folder already holds something.

    Args:
        folder: may exist or not.
        resume: accept what a run leaves that is killed before `run.json` is written.

    Raises:
        RunError: it does, or it is not a folder.
    """
    try:
        # The lock may be this process's own.
        names = {path.name for path in folder.iterdir()} - {LOCK} if folder.exists() else set()
    except OSError as error:
        raise RunError(
            f"the output folder {folder} cannot be used: {error.strerror or error}; choose "
            "another (--out)"
        ) from error
    if resume and "inputs.json" in names:
        RunFolder(folder).contents()  # raises: of the first version
    if resume:
        names -= WRITTEN_FIRST | {name for name in names if name.endswith(UNFINISHED)}
    # What a user knows the folder by comes before its ".lock".
    if occupied := sorted(names, key=lambda name: (name.startswith("."), name)):
        raise RunError(
            f"the output folder {folder} already holds {occupied[0]!r}; choose another (--out), "
            "continue it (resume='auto', --resume auto), or delete it if you no longer need it"
        )


def require_room(folder: Path, *, resume: bool) -> None:
    """Raise if a run cannot be in a folder, before any work is done for it.

    Raises:
        RunError: the folder holds something else.
    """
    if not (resume and RunFolder(folder).started):
        refuse_if_occupied(folder, resume=resume)


def kept_epochs(history: History, score: str, rank: Any, count: int) -> list[int]:
    """The epochs with the best scores, best first, ties to the earlier one.

    Args:
        history: of the run.
        score: the metric that selects.
        rank: `Metric.rank` of it.
        count: how many at most.
    """
    ranked = sorted((rank(record.mean(score)), record.epoch) for record in history)
    return [epoch for _, epoch in ranked[:count]]
