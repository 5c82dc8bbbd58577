"""Ray as an executor."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from gradshare.comparison.calls import Call
from gradshare.errors import ConfigError, RunError
from gradshare.executors import RayExecutor
from tests.executors import functions

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of this machine, with a GPU that is not there."""
    ray.init(
        "local",
        num_cpus=2,
        num_gpus=1,
        include_dashboard=False,
        object_store_memory=2**27,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_resources_reach_ray_and_a_cluster_of_the_users_stays() -> None:
    with RayExecutor(cpus=0.5, gpus=0.25, memory=100_000_000) as executor:
        assigned = executor.submit(functions.ray_resources).result()
    assert assigned == {"CPU": 0.5, "GPU": 0.25, "memory": 100_000_000}
    assert ray.is_initialized()


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_is_a_lost_one_and_another_error_too() -> None:
    with RayExecutor() as executor:
        for function, words in ((functions.die, "WorkerCrashedError"), (functions.fail, "unfore")):
            call = Call("a run", Path("run"), executor, function)
            assert call.submitted()
            kind, why = call.ending()
            assert kind == "stopped" and words in why
            assert call.done()


@pytest.mark.usefixtures("cluster")
def test_a_queued_call_can_be_cancelled() -> None:
    with RayExecutor(cpus=2, gpus=0.5) as executor:
        calls = [
            Call(name, Path(name), executor, functions.ending_after, 3)
            for name in ("first", "queued")
        ]
        assert all(call.submitted() for call in calls)
        assert not calls[1].done()
        assert calls[1].cancel()
        kind, why = calls[1].ending()
        assert kind == "stopped" and "TaskCancelledError" in why
        assert calls[0].ending()[0] == "done"


def fake_ray(monkeypatch: pytest.MonkeyPatch, error: Exception, said: str = "") -> None:
    """Let Ray fail to start, with lines that its C++ code writes."""

    def init(*_: object, **options: object) -> None:
        os.write(2, said.encode())
        raise error

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)


# As Ray 2.60 says it: where a client has no token, another one, or is to have one and has none.
REFUSED = (
    "[2026-11-30 04:26:14,377 W 29183 29183] gcs_client.cc:210: Failed to get cluster ID from GCS "
    "server: Unauthenticated: RPC error: InvalidAuthToken: Authentication token is missing or "
    "incorrect\n"
)
MISSING = "Token authentication is enabled but no authentication token was found."


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("Failed to connect to Ray cluster at 192.0.2.2:6399"), 20 * REFUSED),
        (ray.exceptions.AuthenticationError(MISSING), ""),
    ],
)
def test_a_cluster_that_wants_a_token_is_one_sentence_that_names_it(
    error: Exception,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    fake_ray(monkeypatch, error, said)
    with pytest.raises(ConfigError) as raised, RayExecutor("auto") as executor:
        executor.submit(pow, 2, 3)
    assert str(raised.value) == (
        "the Ray cluster at auto wants a token, and has got none or another one; set "
        "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's token or RAY_AUTH_TOKEN_PATH to "
        "a file that holds it"
    )
    assert capfd.readouterr().err == ""


def test_an_address_where_nothing_listens_is_one_sentence_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(RunError) as error, RayExecutor("127.0.0.1:9") as executor:
        executor.submit(pow, 2, 3)
    assert str(error.value) == (
        "the Ray cluster at 127.0.0.1:9 cannot be used: ConnectionRefusedError: [Errno 111] "
        "Connection refused"
    )


@pytest.mark.parametrize(
    ("resources", "words"), [({"cpus": 10_000}, "10000 CPU"), ({"gpus": 9}, "9 GPU")]
)
def test_a_machine_that_cannot_run_a_task_is_an_error_and_not_a_wait_forever(
    resources: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *_, **options: None)
    monkeypatch.setattr(ray, "shutdown", lambda: closed.append(True))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0, "GPU": 1.0})
    with pytest.raises(ConfigError, match=f"^each run asks Ray for {words} and this machine has "):
        RayExecutor(**resources).submit(pow, 2, 3)
    assert closed


def test_a_signal_while_ray_starts_reaches_its_handler_and_does_not_abort_the_program_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[int] = []

    def init(*_: object, **options: object) -> None:
        with pytest.raises(ValueError, match="main thread"):  # as Ray finds out itself
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # As the handler of Ray's C++ code does before it calls the one before it.
        signal.alarm(100)
        os.kill(os.getpid(), signal.SIGTERM)
        while not heard:
            time.sleep(0.01)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 0.0})
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    try:
        with pytest.raises(ConfigError):
            RayExecutor().submit(pow, 2, 3)
        assert signal.alarm(0) == 0
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM] * 2
