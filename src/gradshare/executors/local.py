"""Processes on this machine, one for each call."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self


class LostWorkerError(Exception):
    """A process that ended without returning anything."""


class LocalExecutor:
    """Calls functions in processes on this machine.

    Each call has its own process, so that one that is killed takes no other call with it, and the
    next one does not find its memory. A process does not import the caller's `__main__`, so a
    script needs no `if __name__ == "__main__"`.

    Args:
        at_a_time: how many processes run at the same time.
        environment: variables for the processes; those that are set already win.
    """

    def __init__(self, at_a_time: int, environment: Mapping[str, str] | None = None) -> None:
        self._pool = ThreadPoolExecutor(at_a_time, "gradshare-local")
        self._environment = dict(environment or {})
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Ask what runs to end, with SIGTERM, and wait for it."""
        self._closed = True
        for process in list(self._processes):
            process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Call a function, which its module's name must lead to, in a process."""
        return self._pool.submit(self._call, pickle.dumps((function, args)))

    def _call(self, call: bytes) -> Any:
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as result:
            try:
                process = self._start(writing)
            finally:
                os.close(writing)  # so that the pipe ends with the process
            self._processes.add(process)
            if self._closed:
                process.terminate()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it was killed
                process.stdin.write(call)
                process.stdin.flush()
            answer = result.read()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            status = process.wait()
            self._processes.discard(process)
        try:
            value = pickle.loads(answer)
        except (EOFError, pickle.UnpicklingError):
            raise LostWorkerError(
                f"its process ended without a result (exit status {status}); a negative status is "
                "a signal, and -9 often means that memory ran out"
            ) from None
        if isinstance(value, BaseException):
            raise value
        return value

    def _start(self, writing: int) -> subprocess.Popen[bytes]:
        program = f"from gradshare.executors.local import work; work({writing})"
        return subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            stdin=subprocess.PIPE,
            pass_fds=[writing],
            env={
                **self._environment,
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path),
            },
            # Its own session: a terminal's Ctrl-C reaches the caller alone, which decides.
            start_new_session=True,
        )


def work(writing: int) -> None:
    """The body of a process; `writing` is a pipe for what the call returns or raises."""
    function, args = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    try:
        value = function(*args)
    except BaseException as error:  # for the caller to raise
        value = error
    # From here on a signal could only cut the message in two.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "wb") as result:
        pickle.dump(value, result)


def _end_with_the_caller() -> None:
    """Ask this process to save and end when the caller is gone, and standard input with it."""
    os.read(0, 1)  # not sys.stdin, whose lock this thread would still hold at the end
    os.kill(os.getpid(), signal.SIGTERM)
