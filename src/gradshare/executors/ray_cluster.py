"""Ray as an executor."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Self

from gradshare.errors import ConfigError, RunError

# Read when Ray is imported: its use is not reported, and tasks that ask for no GPU see them.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

OBJECT_STORE_BYTES = 2**27  # of a cluster of this machine: only names travel
CONNECT_SECONDS = 10


class RayExecutor:
    """Calls functions as Ray tasks, on a cluster of this machine or at an address.

    It connects at the first call, or uses Ray as it is if it is initialised already. Leaving its
    context ends a connection that it made.

    Args:
        address: of a cluster, as `ray.init` takes it: "auto", "HOST:PORT". None for one of this
            machine, which ends with the connection.
        cpus: CPUs of each task.
        gpus: GPUs of each task; a fraction shares one.
        memory: bytes of each task; None for no limit.

    Raises:
        ConfigError: Ray is not installed.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus: float = 1,
        gpus: float = 0,
        memory: int | None = None,
    ) -> None:
        try:
            import ray  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise ConfigError(
                "the executor ray needs the package ray: pip install 'gradshare[ray]'"
            ) from error
        self._ray: Any = ray
        self._address = address
        self._resources = {"num_cpus": cpus, "num_gpus": gpus, "memory": memory}
        self._left: threading.Event | None = None  # while it has a connection of its own

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._left is not None:
            self._ray.shutdown()
            self._left.set()
            self._left = None

    def submit(self, function: Callable[..., Any], *args: Any) -> _Future:
        """Call a function in a worker, which ends with the call.

        Raises:
            ConfigError: the cluster wants a token, or has too little for a task.
            RunError: there is no cluster at the address.
        """
        if not self._ray.is_initialized():
            self._connect()
        remote = self._ray.remote(max_retries=0, max_calls=1, **self._resources)(function)
        return _Future(self._ray, remote.remote(*args))

    def _connect(self) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is None:
            options |= {"num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}
            options["object_store_memory"] = OBJECT_STORE_BYTES
        logging.getLogger("ray").setLevel(logging.ERROR)
        connected: Future[None] = Future()
        left = threading.Event()

        def connection() -> None:
            try:
                self._ray.init(self._address or "local", **options)
            except BaseException as error:
                connected.set_exception(error)
            else:
                connected.set_result(None)
                left.wait()

        with _undisturbed() as said:
            try:
                _require_an_answer(self._address)
                # In the main thread Ray would replace Python's signal handlers, too. A cluster of
                # this machine ends with the thread that starts it.
                threading.Thread(target=connection, daemon=True).start()
                connected.result()
            except Exception as error:
                raise _explained(self._address, error, said()) from error
        self._left = left
        if self._address is None:
            self._require_room()

    def _require_room(self) -> None:
        """Raise ConfigError if this machine cannot run a task: Ray would wait forever."""
        has = self._ray.cluster_resources()
        for name, asked in zip(("CPU", "GPU", "memory"), self._resources.values(), strict=True):
            if asked and asked > has.get(name, 0):
                self.__exit__()
                raise ConfigError(
                    f"each run asks Ray for {asked} {name} and this machine has "
                    f"{has.get(name, 0):.0f}; ask for less, or give the address of a cluster"
                )


class _Future:
    """A Ray task as a future."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray = ray
        self._reference = reference

    def done(self) -> bool:
        try:
            ready, _ = self._ray.wait([self._reference], timeout=0)
        except self._ray.exceptions.RayError:  # Ray is gone, and so is the task
            return True
        return bool(ready)

    def result(self) -> Any:
        return self._ray.get(self._reference)

    def cancel(self) -> None:
        self._ray.cancel(self._reference, force=False)


def _require_an_answer(address: str | None) -> None:
    """Raise OSError at once if nothing listens at an address: Ray takes minutes to find out."""
    host, _, port = (address or "").rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()


@contextmanager
def _undisturbed() -> Iterator[Callable[[], str]]:
    """Keep the signal handlers, which Ray's C++ code replaces, and collect what it writes to
    standard error, for the function that this yields.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    in_main = threading.current_thread() is threading.main_thread()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            for number, handler in handlers.items():
                if in_main and callable(handler):
                    signal.signal(number, _without_alarm(handler))
            yield lambda: os.pread(file.fileno(), 2**20, 0).decode(errors="replace")
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            if in_main:
                for number, handler in handlers.items():
                    signal.signal(number, handler)


def _without_alarm(handler: Callable[[int, Any], Any]) -> Callable[[int, Any], Any]:
    """A signal handler that Ray's C++ handler may call: that one has also set an alarm, which would
    abort this process three seconds later (abseil's `alarm_on_failure_secs`).
    """

    def handle(number: int, frame: Any) -> None:
        signal.alarm(0)
        handler(number, frame)

    return handle


def _explained(address: str | None, error: Exception, said: str) -> ConfigError | RunError:
    words = " ".join(str(error).split())
    where = f"at {address}" if address else "of this machine"
    if "token" in f"{words} {said}".lower():
        return ConfigError(
            f"the Ray cluster {where} wants a token, and has got none or another one; set "
            "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's token or "
            "RAY_AUTH_TOKEN_PATH to a file that holds it"
        )
    return RunError(f"the Ray cluster {where} cannot be used: {type(error).__name__}: {words:.300}")
