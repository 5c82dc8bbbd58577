"""Stopping between two iterations when asked to, instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from gradshare.errors import RunError

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""The signals that ask a run to save its state and stop."""


class RunStoppedError(RunError):
    """A run was asked to stop and did, with everything so far saved.

    Attributes:
        signal: the signal that asked.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message, signal_number)  # both, or it could not travel between processes
        self.signal = signal_number

    def __str__(self) -> str:
        return str(self.args[0])


class StopRequests:
    """While active, `SIGNALS` are noted instead of acted on.

    A second Ctrl-C (SIGINT) interrupts at once, as it does outside. An ignored SIGHUP, as under
    `nohup`, stays ignored.
    Outside the main thread, where Python allows no signal handlers, nothing is noted.

    Args:
        patient: take a second Ctrl-C like the first. `torchrun` passes on the one that its
            processes have from the terminal already.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self.signal: int | None = None
        self._patient = patient
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                ignored = signal.getsignal(number) is signal.SIG_IGN
                if not (ignored and number == getattr(signal, "SIGHUP", None)):
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        previous = self._previous[number]
        again = self.signal is not None and number == signal.SIGINT and not self._patient
        if again and callable(previous):
            previous(number, frame)
        self.signal = number
