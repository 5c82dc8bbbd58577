"""Calls on executors that refuse, do not answer, or lose them."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from gradshare.comparison import calls
from gradshare.comparison.calls import Call
from gradshare.errors import ConfigError, RunError


class Unreliable:
    """Refuses the first calls, and then returns one future."""

    def __init__(self, future: Any, *refusals: Exception) -> None:
        self.future = future
        self.refusals = list(refusals)
        self.asked = 0

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        self.asked += 1
        if self.refusals:
            raise self.refusals.pop(0)
        return self.future


def called(executor: Any) -> Call:
    return Call("a run", Path("runs/a/seed-0"), executor, pow, 2, 3)


def done_with(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    if isinstance(value, BaseException):
        future.set_exception(value)
    else:
        future.set_result(value)
    return future


def test_a_call_that_is_refused_for_a_moment_is_submitted_again_and_not_too_soon(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    executor = Unreliable(done_with(("done", 8)), OSError("busy"), OSError("busy"))
    call = called(executor)
    for now, accepted, asked in (
        *((0.0, False, 1), (0.9, False, 1), (1.0, False, 2)),
        *((2.9, False, 2), (3.0, True, 3)),
    ):
        clock[0] = now
        assert (call.submitted(), executor.asked) == (accepted, asked)
    assert call.done()
    assert call.ending() == ("done", 8)
    assert caplog.messages == [
        f"a run could not be submitted (OSError: busy); it is submitted again in {seconds} s"
        for seconds in (1, 2)
    ]


def test_a_call_that_is_refused_again_and_again_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(calls, "BACK_OFF_SECONDS", (0, 0))
    executor = Unreliable(None, *[OSError("no such partition")] * 3)
    call = called(executor)
    assert not call.submitted()
    assert not call.submitted()
    with pytest.raises(RunError, match=r"^it could not be submitted: OSError: no such"):
        call.submitted()


@pytest.mark.parametrize(
    "words",
    [
        "sbatch: error: invalid partition specified: gpu",
        "sbatch: error: Batch job submission failed: Invalid qos specification",
        "sbatch: error: Batch job submission failed: Requested node configuration is not available",
        "sbatch: unrecognized option '--gpu'",
    ],
)
def test_a_job_that_is_refused_for_good_is_given_up_at_once(words: str) -> None:
    executor = Unreliable(None, OSError(words))
    with pytest.raises(RunError, match=r"^it could not be submitted: OSError: sbatch: "):
        called(executor).submitted()
    assert executor.asked == 1


def test_what_a_user_can_correct_is_raised_at_once() -> None:
    executor = Unreliable(None, ConfigError("give another address"))
    with pytest.raises(ConfigError, match="give another address"):
        called(executor).submitted()
    assert executor.asked == 1


def test_an_executor_that_does_not_answer_is_said_once_and_asked_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Silent:
        def done(self) -> bool:
            raise OSError("slurm_load_jobs error: Unable to contact slurm controller")

        def cancel(self) -> None:
            raise OSError("no answer")

    call = called(Unreliable(Silent()))
    assert call.submitted()
    assert not call.done()
    assert not call.done()
    assert caplog.messages == [
        "the executor does not answer about a run: OSError: slurm_load_jobs error: Unable to "
        "contact slurm controller"
    ]
    assert call.cancel()


@pytest.mark.parametrize("error", [OSError("no result"), SystemExit(3)])
def test_any_error_instead_of_a_result_means_a_lost_worker(error: BaseException) -> None:
    call = called(Unreliable(done_with(error)))
    assert call.submitted()
    why = f"its worker was lost: {type(error).__name__}: {error}"
    assert (call.ending(), call.lost) == (("stopped", why), 1)


def test_a_long_error_keeps_its_beginning_and_its_end_in_one_line() -> None:
    last = "ModuleNotFoundError: No module named 'nets'"
    trace = "Job failed with trace:\n" + "line\n" * 1000 + last
    call = called(Unreliable(done_with(OSError(trace))))
    assert call.submitted()
    _, said = call.ending()
    assert said.startswith("its worker was lost: OSError: Job failed with trace: line line")
    assert said.endswith(f"line {last}")
    assert len(said) < 600
    assert "\n" not in said


def test_whether_it_is_too_late_to_cancel_is_what_the_future_says() -> None:
    waiting: Future[Any] = Future()
    for future, cancelled in ((waiting, True), (done_with(1), False)):
        call = called(Unreliable(future))
        assert call.submitted()
        assert call.cancel() is cancelled
