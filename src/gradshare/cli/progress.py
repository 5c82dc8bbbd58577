"""Progress bars for training runs."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from gradshare.cli.printing import print_line
from gradshare.training.run import Progress

MOST_BARS = 8  # more would not fit on a screen

PHASES = {"validate": "validating", "test": "testing"}


class RunBars:
    """One bar for each run, with its epoch and the accuracy of its last validation.

    Of many runs those that are done make room for the others. Where the output is no terminal, one
    line for each epoch and run instead.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[phase]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._done: list[TaskID] = []
        self._hidden = 0
        self._epochs: dict[str, int] = {}

    def __enter__(self) -> RunBars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, name: str, progress: Progress) -> None:
        """Show where a run is."""
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, phase="")
        accuracy = progress.val_accuracy
        seen = "" if accuracy is None else f"validation {100 * accuracy:.1f} %"
        phase = PHASES.get(progress.phase, f"epoch {progress.epoch}")
        self._bars.update(
            self._tasks[name],
            completed=progress.done,
            total=progress.total,
            phase=f"{phase:<11} {seen}",
        )
        if progress.phase == "test" and progress.done == progress.total:
            self._done.append(self._tasks[name])
        if len(self._tasks) - self._hidden > MOST_BARS and self._hidden < len(self._done):
            self._bars.update(self._done[self._hidden], visible=False)
            self._hidden += 1
        if not self._console.is_terminal and progress.phase != "validate":
            epoch = 0 if progress.phase == "test" else progress.epoch
            if self._epochs.get(name) != epoch:
                self._epochs[name] = epoch
                print_line(self._console, f"{name}: {phase}  {seen}")
