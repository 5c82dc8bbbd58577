"""Progress of runs: in a terminal, as lines, or in a file that another process reads."""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from gradshare.training.options import Progress, Watch

MOST_BARS = 8  # more would not fit on a screen
WRITE_SECONDS = 0.5

PHASES = {"try": "trying", "validate": "validating", "test": "testing"}


class RunBars:
    """One bar for each run, with its epoch and the score of its last validation.

    Of many runs those that are done make room for the others. If the output is not a terminal,
    there is one line for each epoch and run instead.

    Args:
        console: where to.
        shown: whether anything is shown.
    """

    def __init__(self, console: Console | None = None, *, shown: bool = True) -> None:
        self._console = console or Console(quiet=not shown)
        self._bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[phase]}", markup=False),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._done: list[TaskID] = []
        self._hidden = 0
        self._epochs: dict[str, int] = {}
        self._began: dict[str, tuple[float, int]] = {}

    def __enter__(self) -> RunBars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def watch(self, name: str) -> Watch:
        """What shows the progress of one run."""
        return lambda progress: self(name, progress)

    def __call__(self, name: str, progress: Progress | None) -> None:
        """Show where a run is; None while it is queued."""
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, phase="queued", total=None)
        if progress is None:
            return
        seen = "" if progress.score is None else f"validation {progress.score}"
        phase = PHASES.get(progress.phase, f"epoch {progress.epoch}")
        self._bars.update(
            self._tasks[name],
            completed=progress.done,
            total=progress.total,
            phase=f"{phase:<11} {seen}",
        )
        if progress.phase in ("try", "test") and progress.done == progress.total:
            self._done.append(self._tasks[name])
        if len(self._tasks) - self._hidden > MOST_BARS and self._hidden < len(self._done):
            self._bars.update(self._done[self._hidden], visible=False)
            self._hidden += 1
        if not self._console.is_terminal and progress.phase != "validate":
            self._line(name, progress, f"{phase}  {seen}")

    def _line(self, name: str, progress: Progress, text: str) -> None:
        """One line when a run begins an epoch or its test, with the time left of training."""
        epoch = 0 if progress.phase == "test" else progress.epoch
        began, first = self._began.setdefault(name, (time.monotonic(), progress.done))
        if self._epochs.get(name) == epoch:
            return
        self._epochs[name] = epoch
        left = ""
        if epoch and progress.done > first:
            each = (time.monotonic() - began) / (progress.done - first)
            left = f"  {_duration(each * (progress.total - progress.done))} left"
        self._console.print(f"{name}: {text}{left}", soft_wrap=True, highlight=False, markup=False)


class ProgressFile:
    """Writes how far a run is into a file beside its folder, at most twice a second."""

    def __init__(self, place: Path) -> None:
        self._path = _progress_path(place)
        self._written = 0.0

    def __call__(self, progress: Progress) -> None:
        """Write it."""
        if progress.done == progress.total or time.monotonic() - self._written > WRITE_SECONDS:
            self._written = time.monotonic()
            temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
            with contextlib.suppress(OSError):  # a full disk: what matters will say so
                temporary.write_text(json.dumps(asdict(progress)), encoding="utf-8")
                temporary.replace(self._path)


def progress_of(place: Path) -> Progress | None:
    """How far the run of a folder is, as its `ProgressFile` says; None before it began."""
    try:
        return Progress(**json.loads(_progress_path(place).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _progress_path(place: Path) -> Path:
    return place.with_name(f".{place.name}.json")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
