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


class RayExecutor:
    """Calls functions as Ray tasks, on a cluster of this machine or at an address.

    It connects at the first call, or uses Ray as it is if it is initialised already. Leaving its
    context ends a connection that it made.

    Args:
        address: of a cluster, as `ray.init` takes it: "auto", "HOST:PORT". None for one of this
            machine, which ends with the connection.
        cpus: CPUs of each task.
        gpus: GPUs of each task; a fraction shares one.
        memory: bytes of each task; 0 for no limit.

    Raises:
        ConfigError: Ray is not installed.
    """

    def __init__(
        self, address: str | None = None, *, cpus: float = 1, gpus: float = 0, memory: int = 0
    ) -> None:
        try:
            import ray  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise ConfigError(
                "the executor ray needs the package ray; run `pip install ray`"
            ) from error
        self._ray: Any = ray
        self._address = address
        self._resources = {"num_cpus": cpus, "num_gpus": gpus, "memory": memory or None}
        self._connected = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connected:
            self._ray.shutdown()
            self._connected = False

    def submit(self, function: Callable[..., Any], *args: Any) -> _Future:
        """Call a function in a worker, which ends with the call.

        Raises:
            ConfigError: the cluster wants a token, or has too little for a task.
            RunError: the cluster cannot be reached.
        """
        if not self._ray.is_initialized():
            self._connect()
        remote = self._ray.remote(max_retries=0, max_calls=1, **self._resources)(function)
        return _Future(self._ray, remote.remote(*args))

    def _connect(self) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address is None:
            options |= {"num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}
            options["object_store_memory"] = 2**27  # only names travel
        logging.getLogger("ray").setLevel(logging.ERROR)
        connection: Future[None] = Future()

        def connect() -> None:
            try:
                connection.set_result(self._ray.init(self._address or "local", **options))
            except BaseException as error:
                connection.set_exception(error)
            threading.Event().wait()  # a cluster of this machine ends with the thread it starts in

        with _undisturbed() as said:
            try:
                host, _, port = (self._address or "").rpartition(":")
                if port.isdecimal() and "/" not in host:
                    # Where nothing listens this fails at once, and Ray after minutes.
                    socket.create_connection((host, int(port)), timeout=10).close()
                # In the main thread Ray would replace the signal handlers of Python, too.
                threading.Thread(target=connect, daemon=True).start()
                connection.result()
            except Exception as error:
                raise _explained(self._address, error, said()) from error
        self._connected = True
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


@contextmanager
def _undisturbed() -> Iterator[Callable[[], str]]:
    """Keep the signal handlers, which Ray replaces, and collect its standard error to be read."""
    in_main = threading.current_thread() is threading.main_thread()  # others have no handlers
    handled = (signal.SIGINT, signal.SIGTERM)
    handlers: dict[int, Any] = {n: signal.getsignal(n) for n in handled if in_main}

    def handle(number: int, frame: Any) -> None:
        # Ray's handler, which calls this one, has set an alarm that aborts the process after 3 s.
        signal.alarm(0)
        handlers[number](number, frame)

    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            for number, handler in handlers.items():
                signal.signal(number, handle if callable(handler) else handler)
            yield lambda: os.pread(file.fileno(), 2**20, 0).decode(errors="replace")
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            for number, handler in handlers.items():
                signal.signal(number, handler)


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
