"""The program as a shell starts it: `gradshare`, or `python -m gradshare`."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType


def program() -> None:
    """Run the program. Ctrl-C ends it with one line; a run that is trained is saved first."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    from gradshare import cli  # noqa: PLC0415  # which takes a moment

    cli.program()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Exit. After a KeyboardInterrupt click would say "Aborted!", with status 1."""
    with contextlib.suppress(OSError):  # closed by `2>&-`
        os.write(2, b"stopped\n")
    while frame is not None:
        # Within `import torch` there is nothing to clear up, and its import of numpy drops what is
        # raised.
        if frame.f_code.co_name == "<module>" and frame.f_globals["__name__"] == "torch":
            os._exit(128 + number)
        frame = frame.f_back
    sys.exit(128 + number)


if __name__ == "__main__":
    program()
