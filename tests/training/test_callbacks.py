"""Callbacks: which events they get, and how they end a run, also one that was killed."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gradshare as gs
from gradshare.errors import RunError
from gradshare.training import loop
from gradshare.training.interruption import RunStoppedError
from gradshare.training.options import Callback, Event
from tests.training.killing import in_a_process, kill_self, require_same_end, timeless
from tests.training.small import poisoned, rows
from tests.training.test_resume import at


def test_they_get_each_iteration_epoch_and_checkpoint_in_order(tmp_path: Path) -> None:
    events: list[Event] = []

    def note(event: Event) -> None:
        events.append(event)
        if event.kind == "checkpoint":
            assert event.path is not None
            assert event.path.is_file()

    run = gs.fit(**rows(callbacks=[note], epochs=2), out=tmp_path / "run")
    epoch = ["iteration"] * 3 + ["checkpoint", "epoch", "checkpoint"]
    assert [event.kind for event in events] == [*epoch, *epoch, "checkpoint"]
    assert [event.iteration for event in events if event.kind == "iteration"] == [1, 2, 3, 4, 5, 6]
    for event in events:
        assert (event.path is None) == (event.kind != "checkpoint")
        assert (event.metrics is None) == (event.kind != "iteration")
        assert list(event.history) == run.history[: len(event.history)]
    assert [len(event.history) for event in events if event.kind == "epoch"] == [1, 2]
    each = [event.metrics for event in events if event.metrics is not None]
    for name in ("loss", "accuracy"):
        mean = sum(metrics[name] for metrics in each[:3]) / 3
        assert mean == pytest.approx(run.history[0].mean(name, "train"))


def test_they_do_not_get_an_iteration_that_was_skipped(tmp_path: Path) -> None:
    seen: list[int] = []

    def note(event: Event) -> None:
        if event.kind == "iteration":
            seen.append(event.iteration)

    given = poisoned(rows(callbacks=[note], on_divergence="skip"), 5)
    gs.fit(**given, out=tmp_path / "run")
    assert seen == [1, 2, 3, 4, 6, 7, 8, 9]


def early_stopping(patience: int, kill_after: int | None = None) -> Callback:
    """Stop once the validation loss has not fallen for some epochs; or be killed on the way."""

    def callback(event: Event) -> bool:
        if event.iteration == kill_after:
            kill_self()
        losses = [record.mean("loss") for record in event.history]
        return event.kind == "epoch" and len(losses) - losses.index(min(losses)) > patience

    return callback


def fit_with_early_stopping(folder: Path, kill_after: int | None = None) -> Any:
    given = rows(epochs=40, iterations=2, callbacks=[early_stopping(3, kill_after)])
    return gs.fit(**given, out=folder, resume="auto")


def test_early_stopping_is_exact_also_after_kills(tmp_path: Path) -> None:
    whole = fit_with_early_stopping(tmp_path / "whole")
    epochs = len(whole.history)
    assert 4 <= epochs < 40
    losses = [record.mean("loss") for record in whole.history]
    assert losses.index(min(losses)) == epochs - 4
    assert whole.test is not None
    # Killed at an iteration, and at the epoch's end at which it would stop.
    for kill_after in (3, 2 * epochs):
        status = in_a_process(fit_with_early_stopping, tmp_path / "killed", kill_after)
        assert status == -signal.SIGKILL
    survived = fit_with_early_stopping(tmp_path / "killed")
    require_same_end(whole, survived)
    require_same_end(whole, fit_with_early_stopping(tmp_path / "killed"))  # it is complete


def test_patience_ends_a_run_as_such_a_callback_does(tmp_path: Path) -> None:
    given: dict[str, Any] = {"epochs": 40, "iterations": 2, "score": "loss"}
    by_callback = gs.fit(**rows(**given, callbacks=early_stopping(3)), out=tmp_path / "one")
    by_patience = gs.fit(**rows(**given, patience=3), out=tmp_path / "two")
    assert timeless(by_patience) == timeless(by_callback)


@pytest.mark.parametrize(
    ("value", "epochs"), [(None, 3), (False, 3), ("stop", 3), (True, 1), (np.bool_(True), 1)]
)
def test_only_true_ends_a_run(value: object, epochs: int, tmp_path: Path) -> None:
    run = gs.fit(**rows(callbacks=[lambda event: value]), out=tmp_path / "run")
    assert len(run.history) == epochs


def test_all_callbacks_get_each_event_and_any_can_end_the_run(tmp_path: Path) -> None:
    told: list[str] = []

    def first(event: Event) -> bool:
        return event.kind == "epoch"

    def second(event: Event) -> None:
        told.append(event.kind)

    run = gs.fit(**rows(callbacks=[first, second]), out=tmp_path / "run")
    assert len(run.history) == 1
    assert "epoch" in told


def test_a_run_that_a_callback_has_ended_stays_ended_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = gs.fit(**rows(callbacks=lambda event: event.kind == "epoch"), out=tmp_path / "run")
    gs.fit(**rows(), out=tmp_path / "run", resume="auto")
    assert not caplog.messages
    again = gs.fit(**rows(epochs=5), out=tmp_path / "run", resume="auto")
    assert timeless(again) == timeless(run)
    assert again.test == run.test
    assert caplog.messages == [
        f"a callback or its patience has ended the run in {tmp_path / 'run'} after epoch 1, and it "
        "stays ended; to train longer, start another run"
    ]


def test_what_a_callback_raises_reaches_the_caller_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(event: Event) -> None:
        if event.iteration == 5:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        gs.fit(**rows(callbacks=[broken]), out=tmp_path / "run")
    whole = gs.fit(**rows(), out=tmp_path / "whole")
    require_same_end(whole, gs.fit(**rows(), out=tmp_path / "run", resume="auto"))


def test_they_get_a_checkpoint_within_an_epoch_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_SECONDS", -1)
    names: list[str] = []

    def note(event: Event) -> None:
        if event.kind == "checkpoint":
            assert event.path is not None
            names.append(event.path.name)

    gs.fit(**rows(callbacks=[note], epochs=1, test=None), out=tmp_path / "run")
    assert names == [f"latest-{number:09d}.safetensors" for number in (1, 2, 3, 3)]


def test_they_get_the_checkpoint_of_a_stopped_run(tmp_path: Path) -> None:
    last: list[Event] = []
    with pytest.raises(RunStoppedError):
        gs.fit(**rows(callbacks=[last.append], progress=at("train", 5)), out=tmp_path / "run")
    assert (last[-1].kind, last[-1].iteration) == ("checkpoint", 5)


def test_they_get_metrics_that_are_not_finite(tmp_path: Path) -> None:
    values: list[float] = []

    def note(event: Event) -> None:
        if event.metrics is not None:
            values.append(event.metrics["nothing"])

    metrics = {"nothing": gs.Metric(lambda outputs, targets: math.nan)}
    gs.fit(**rows(callbacks=[note], metrics=metrics), out=tmp_path / "run")
    assert len(values) == 9
    assert all(map(math.isnan, values))


def test_a_run_error_of_a_callback_is_shown_as_it_is(tmp_path: Path) -> None:
    def refuse(event: Event) -> None:
        raise RunError("no more of this")

    with pytest.raises(RunError, match=r"^no more of this$"):
        gs.fit(**rows(callbacks=[refuse]), out=tmp_path / "run")
