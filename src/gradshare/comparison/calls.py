"""A call on an executor of any kind, which may refuse it for a moment, not answer, or lose it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradshare.comparison.worker import Ending
from gradshare.errors import GradshareError, RunError
from gradshare.executors import LostWorkerError
from gradshare.training.lock import is_locked
from gradshare.training.options import Progress
from gradshare.training.progress import progress_of

log = logging.getLogger(__name__)

# A scheduler that refuses a job for a moment, as a busy sbatch does, is asked again after so long.
BACK_OFF_SECONDS = (1, 2, 4, 8, 16)
# What Slurm says of a job that it will refuse the next time too.
FOR_GOOD = ("invalid", "not available", "unrecognized")
BRIEF = 500  # characters of an error

WatchAll = Callable[[str, Progress | None], None]
"""Called with the name of a run and how far it is; None while it is queued."""


class Call:
    """A call on an executor, for one run. It may be submitted again when its worker is lost.

    Args:
        name: for messages.
        place: the run's folder.
        executor: has `submit(function, *args)` that returns a future.
        function, args: what is called, and with what.

    Attributes:
        lost: how often in a row its worker was lost without completing an epoch.
    """

    def __init__(
        self, name: str, place: Path, executor: Any, function: Callable[..., Any], *args: Any
    ) -> None:
        self.name = name
        self.lost = 0
        self._place = place
        self._submit: Callable[[], Any] = lambda: executor.submit(function, *args)
        self._future: Any = None
        self._waits = list(BACK_OFF_SECONDS)
        self._not_before = 0.0
        self._silent = False
        self._told: Progress | None = None
        self._epoch = 0

    def submitted(self) -> bool:
        """Submit the call, unless it was refused a moment ago.

        Returns:
            Whether the executor accepted it.

        Raises:
            GradshareError: the executor refuses it for good, or has refused it too often.
        """
        if time.monotonic() < self._not_before:
            return False
        try:
            self._future = self._submit()
        except GradshareError:
            raise
        except Exception as error:
            if not self._waits or any(sign in str(error).lower() for sign in FOR_GOOD):
                raise RunError(f"it could not be submitted: {_brief(error)}") from error
            wait = self._waits.pop(0)
            self._not_before = time.monotonic() + wait
            said = "%s could not be submitted (%s); it is submitted again in %d s"
            log.warning(said, self.name, _brief(error), wait)
            return False
        self._waits = list(BACK_OFF_SECONDS)
        return True

    def done(self) -> bool:
        """Whether there is a result; False if the executor does not answer, since it may later."""
        try:
            return bool(self._future.done())
        except Exception as error:
            if not self._silent:
                log.warning("the executor does not answer about %s: %s", self.name, _brief(error))
            self._silent = True
            return False

    def ending(self) -> Ending:
        """What became of it; "stopped" if its worker was lost."""
        try:
            kind, value = self._future.result()
        except LostWorkerError as error:
            kind, value = "stopped", str(error)
        except (Exception, SystemExit) as error:
            kind, value = "stopped", _brief(error)
        if kind == "stopped":
            value = f"its worker was lost: {value}"
            self.lost += 1
        return kind, value

    def cancel(self) -> bool:
        """Cancel the call; False if the executor says that it is too late."""
        try:
            return self._future.cancel() is not False
        except Exception:
            return True

    def trained(self) -> bool:
        """Whether a process trains its run, whatever the executor says."""
        return is_locked(self._place)

    def look(self, watch: WatchAll) -> None:
        """Read how far its run is, and tell it if that is new."""
        progress = progress_of(self._place)
        if progress is None or progress == self._told:
            return
        if progress.epoch > self._epoch:
            self._epoch, self.lost = progress.epoch, 0
        self._told = progress
        watch(self.name, progress)


def _brief(error: BaseException) -> str:
    """An error in one line. Of a long one the middle is left out: the end of a trace tells most."""
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return words if len(words) <= BRIEF else f"{words[: BRIEF // 3]} … {words[-BRIEF * 2 // 3 :]}"
