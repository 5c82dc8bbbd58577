"""Stopping a run and going on with it; asking again for one that is complete; extending one."""

from __future__ import annotations

import functools
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gradshare as gs
from gradshare.errors import RunError
from gradshare.training import fit as fit_module
from gradshare.training.folder import RunFolder
from gradshare.training.interruption import RunStoppedError
from gradshare.training.options import Progress, Watch
from gradshare.training.run import Run
from tests.training.killing import latest, require_same_end, timeless
from tests.training.small import mlp, poisoned, rows


def fit(path: Path, **changes: Any) -> Run:
    return gs.fit(**rows(**changes), out=path, resume="auto")


def at(phase: str, done: int, number: int = signal.SIGTERM) -> Watch:
    """Ask for a stop at a point of the run."""

    def watch(progress: Progress) -> None:
        if (progress.phase, progress.done) == (phase, done):
            os.kill(os.getpid(), number)

    return watch


def maml_plus_plus() -> gs.MetaLearner:
    return gs.maml_plus_plus(mlp(), multi_step_iterations=6, steps=2, sharing=True)


def halving(iteration: int) -> float:
    return float(0.5 ** (iteration / 3))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_goes_on_to_where_it_would_have_been(number: int, tmp_path: Path) -> None:
    changes = {"learner": maml_plus_plus(), "schedule": halving}
    whole = fit(tmp_path / "whole", **changes)
    stopped = tmp_path / "stopped"
    with pytest.raises(RunStoppedError) as error:
        fit(stopped, progress=at("train", 5, number), **changes)
    assert str(error.value) == (
        f"stopped after iteration 5 of 9; everything so far is saved in {stopped}"
    )
    assert error.value.signal == number
    assert latest(stopped).progress["iteration"] == 5
    require_same_end(whole, fit(stopped, **changes))


def test_a_hangup_that_is_ignored_as_under_nohup_stays_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = fit(tmp_path / "run", progress=at("train", 5, signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert len(run.history) == 3


@pytest.mark.parametrize(("phase", "done"), [("validate", 10), ("test", 10)])
def test_a_run_stopped_while_it_validates_or_tests_goes_on_likewise(
    phase: str, done: int, tmp_path: Path
) -> None:
    changes = {"schedule": halving, "val_tasks": 12, "test_tasks": 12}
    whole = fit(tmp_path / "whole", **changes)
    with pytest.raises(RunStoppedError):
        fit(tmp_path / "run", progress=at(phase, done), **changes)
    require_same_end(whole, fit(tmp_path / "run", **changes))


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD with momentum": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "AdamW": functools.partial(torch.optim.AdamW, lr=1e-2),
    "RMSprop": functools.partial(torch.optim.RMSprop, lr=1e-3),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_any_optimiser_with_groups_goes_on_where_it_was(optimizer: str, tmp_path: Path) -> None:
    changes = {
        "optimizer": OPTIMIZERS[optimizer],
        "groups": lambda name: {} if name.startswith("model.") else {"lr": 0.5},
        "schedule": halving,
    }
    whole = fit(tmp_path / "whole", **changes)
    with pytest.raises(RunStoppedError):
        fit(tmp_path / "run", progress=at("train", 4), **changes)
    require_same_end(whole, fit(tmp_path / "run", **changes))


def test_a_complete_run_is_returned_as_it_is(tmp_path: Path) -> None:
    for name, changes in (
        ("tested", rows()),
        ("without a test", rows(test=None)),
        ("diverged", poisoned(rows(), 5)),
    ):
        folder = tmp_path / name
        first = gs.fit(**changes, out=folder, resume="auto")
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        seen: list[Progress] = []
        again = gs.fit(**{**changes, "progress": seen.append}, out=folder, resume="auto")
        assert seen == []
        require_same_end(first, again)
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_complete_run_keeps_the_environment_that_it_was_trained_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To ask for it again, on another machine or of another commit, trains nothing."""

    def somewhere(device: torch.device, layout: str) -> dict[str, Any]:
        return {"processor": where, "layout": layout}

    monkeypatch.setattr(fit_module, "environment", somewhere)
    where = "here"
    first = fit(tmp_path / "run")
    where = "there"
    again = fit(tmp_path / "run")
    assert again.environment == first.environment
    assert first.environment["processor"] == "here"
    assert "graphs kept (keep)" in first.environment["layout"]


def test_a_continued_run_has_the_environment_of_its_last_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = "here"
    monkeypatch.setattr(fit_module, "environment", lambda *_: {"processor": where})
    with pytest.raises(RunStoppedError):
        fit(tmp_path / "run", progress=at("train", 4))
    where = "there"
    assert fit(tmp_path / "run").environment == {"processor": "there"}
    assert gs.open_run(tmp_path / "run").environment == {"processor": "there"}


# Extending


def test_a_finished_run_is_extended_to_the_run_that_it_would_have_been(tmp_path: Path) -> None:
    changes = {"learner": maml_plus_plus(), "schedule": halving}
    whole = fit(tmp_path / "whole", epochs=5, **changes)
    short = fit(tmp_path / "run", epochs=2, **changes)
    assert len(short.history) == 2
    require_same_end(whole, fit(tmp_path / "run", epochs=5, **changes))
    assert RunFolder(tmp_path / "run").contents()["identity"]["epochs"] == 5


def test_a_stopped_run_may_be_extended_too(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", epochs=4)
    with pytest.raises(RunStoppedError):
        fit(tmp_path / "run", epochs=2, progress=at("train", 5))
    assert timeless(fit(tmp_path / "run", epochs=4)) == timeless(whole)


def test_a_run_is_not_extended_if_its_schedule_depends_on_its_length(tmp_path: Path) -> None:
    def cosine(total: int, iteration: int) -> float:
        return (1 + math.cos(math.pi * iteration / total)) / 2

    short = fit(tmp_path / "run", schedule=functools.partial(cosine, 9))
    with pytest.raises(RunError) as error:
        fit(tmp_path / "run", epochs=4, schedule=functools.partial(cosine, 12))
    assert str(error.value) == (
        "the schedule gives other learning rates than those that the run in "
        f"{tmp_path / 'run'} was trained with; a run is extended only if its schedule does not "
        "depend on its length"
    )
    require_same_end(short, fit(tmp_path / "run", schedule=functools.partial(cosine, 9)))


def test_a_run_is_not_shortened(tmp_path: Path) -> None:
    fit(tmp_path / "run")
    with pytest.raises(RunError) as error:
        fit(tmp_path / "run", epochs=2)
    assert str(error.value) == (
        f"{tmp_path / 'run'} holds a run of 3 epochs, and 2 were asked for; ask for as many or more"
    )
