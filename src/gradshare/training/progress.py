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

    Beyond `MOST_BARS` runs the bars of finished ones are hidden. If the output is not a terminal,
    there is one line for each validated epoch of each run instead.
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
        self._epochs: dict[str, int] = {}
        self._first: dict[str, tuple[float, int]] = {}
        self._left: dict[str, str] = {}

    def __enter__(self) -> RunBars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def watch(self, name: str) -> Watch:
        """A function that shows the progress of one run."""
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
            phase=f"{phase:<11} {'last ' if seen else ''}{seen}",
        )
        if progress.phase in ("try", "test") and progress.done == progress.total:
            self._done.append(self._tasks[name])
        for task in self._done[: max(0, len(self._tasks) - MOST_BARS)]:
            self._bars.update(task, visible=False)
        if not self._console.is_terminal:
            self._line(name, progress, seen)

    def _line(self, name: str, progress: Progress, seen: str) -> None:
        """Print one line when another epoch is validated, with the time left of training."""
        if progress.phase == "train":
            began, first = self._first.setdefault(name, (time.monotonic(), progress.done))
            if progress.done > first:
                each = (time.monotonic() - began) / (progress.done - first)
                left = duration(each * (progress.total - progress.done))
                self._left[name] = f"  {left} of training left"
        ended = progress.phase != "train" and progress.done == progress.total
        validated = progress.epoch if ended or progress.phase == "test" else progress.epoch - 1
        if seen and validated > self._epochs.get(name, 0):
            self._epochs[name] = validated
            self.say(f"{name}: epoch {validated}  {seen}{self._left.get(name, '')}")

    def say(self, text: str) -> None:
        """Print a line, above the bars if there are any."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)


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


def duration(seconds: float) -> str:
    """A time in words."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
