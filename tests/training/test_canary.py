"""A run that is continued with other code or other data is refused by the loss of a fixed batch."""

from __future__ import annotations

import copy
import importlib.util
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gradshare as gs
from gradshare.errors import RunError
from gradshare.training.folder import RunFolder
from gradshare.training.identity import Canary
from gradshare.training.run import Run
from gradshare.training.state import TrainState
from tests.training.killing import latest, require_same_end, timeless
from tests.training.small import ROWS, Poisoned, Wrapped, mlp, rows

# A user's code: a model, a loss, a rule and a source.
CODE = """
import torch
from torch import nn
from torch.nn import functional as F
import gradshare as gs


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(self.a(x).tanh())


def loss(outputs, targets):
    return F.cross_entropy(outputs, targets)


class Rule(gs.UpdateRule):
    def update(self, gradients, meta, carried, task, step):
        return {n: 1.0 * g for n, g in gradients.items()}, carried, task


class Source:
    def __init__(self, tasks):
        self.tasks = tasks

    def batch(self, indices):
        batch = self.tasks.batch(indices)
        return batch.map(lambda x: x + 0.0 if x.is_floating_point() else x)
"""

CHANGES = {
    "the model": ("self.a(x).tanh()", "self.a(x).relu()"),
    "the rule": ("1.0 * g", "0.5 * g"),
    "the loss": ("F.cross_entropy(outputs, targets)", "2 * F.cross_entropy(outputs, targets)"),
    "the data": ("x + 0.0", "x + 0.5"),
}


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # Python would take a file that changes within a second, to one of the same size, as unchanged.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    path = tmp_path / "mine.py"
    path.write_text(CODE, encoding="utf-8")
    yield path
    sys.modules.pop("mine", None)


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("mine", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["mine"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def fit(path: Path, code: Path, **changes: Any) -> Run:
    mine = imported(code)
    torch.manual_seed(0)
    learner = gs.maml(mine.Net(), steps=2, sharing=True, rule=mine.Rule(), loss=mine.loss)
    given = rows(learner=learner, train=mine.Source(ROWS[0]), **changes)
    return gs.fit(**given, out=path, resume="auto")


@pytest.mark.parametrize("what", CHANGES)
def test_changed_code_is_refused_with_one_sentence_that_names_its_file(
    what: str, user: Path, tmp_path: Path
) -> None:
    run = fit(tmp_path / "run", user)
    before = {path: path.read_bytes() for path in run.path.rglob("*.safetensors")}
    old, new = CHANGES[what]
    assert old in CODE
    user.write_text(CODE.replace(old, new), encoding="utf-8")
    for epochs in (3, 5):  # of a run that is complete and of one that is extended
        with pytest.raises(RunError) as error:
            fit(tmp_path / "run", user, epochs=epochs)
        message = str(error.value)
        assert message.startswith("the learner computes a loss of ")
        assert message.endswith(
            " when the run was saved: its model, rule, loss or data have changed since "
            f"({user} has changed); continue with the code and the data that the run was started "
            "with, or start another run"
        )
        assert "\n" not in message
    assert {path: path.read_bytes() for path in run.path.rglob("*.safetensors")} == before
    user.write_text(CODE, encoding="utf-8")
    require_same_end(run, fit(tmp_path / "run", user))


def test_code_that_changes_no_number_may_change(user: Path, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", user, epochs=5)
    fit(tmp_path / "run", user)
    user.write_text("# Formatted.\n" + CODE, encoding="utf-8")
    assert timeless(fit(tmp_path / "run", user, epochs=5)) == timeless(whole)


def test_data_that_change_without_a_file_are_refused_too(tmp_path: Path) -> None:
    class Shifted(Wrapped):
        shift = 0.0
        fingerprint = None

        def batch(self, indices: Any) -> Any:
            batch = super().batch(indices)
            return batch.map(lambda t: t + self.shift if t.is_floating_point() else t)

    gs.fit(**rows(train=Shifted(ROWS[0])), out=tmp_path / "run")
    Shifted.shift = 0.5
    with pytest.raises(RunError, match="its model, rule, loss or data have changed since; contin"):
        gs.fit(**rows(train=Shifted(ROWS[0])), out=tmp_path / "run", resume="auto")


def state_of(learner: gs.MetaLearner, dtype: torch.dtype) -> TrainState:
    meta, carried = learner.init()
    meta = {name: t.detach().to(dtype).requires_grad_() for name, t in meta.items()}
    return TrainState(meta, carried, torch.optim.SGD(meta.values(), lr=0.1))


@pytest.mark.parametrize(
    ("dtype", "rounding", "too_much"),
    [(torch.float32, 3e-4, 3e-3), (torch.float64, 3e-10, 3e-9)],
)
@pytest.mark.parametrize("size", [1.0, 1e-2])
def test_rounding_is_not_a_change(
    dtype: torch.dtype, rounding: float, too_much: float, size: float
) -> None:
    def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
        return size * F.cross_entropy(outputs, targets)

    learner = gs.maml(mlp().to(dtype), steps=2, loss=loss_of)
    tasks = ROWS[0].batch([0, 1]).map(lambda t: t.to(dtype) if t.is_floating_point() else t)
    state, canary = state_of(learner, dtype), Canary(learner, ROWS[0], tasks)
    found = canary.values(state)
    assert found is not None
    assert found == canary.values(state)
    loss, norm = found
    state.status.canary = loss * (1 + rounding), norm * (1 + rounding)
    canary.require_same(state, {}, {})
    for changed in ((loss * (1 + too_much), norm), (loss, norm * (1 + too_much))):
        state.status.canary = changed
        with pytest.raises(RunError, match="computes a loss of"):
            canary.require_same(state, {}, {})


def test_a_loss_that_is_not_finite_is_the_same_only_if_it_still_is_not() -> None:
    learner = gs.maml(mlp(), steps=2)
    state = state_of(learner, torch.float32)
    infinite = Poisoned(ROWS[0], {1}).batch([0, 1])
    bad = Canary(learner, ROWS[0], infinite)
    assert bad.values(state) is None
    bad.require_same(state, {}, {})
    good = ROWS[0].batch([0, 1])
    with pytest.raises(RunError, match="where it computed a loss that is not finite when"):
        Canary(learner, ROWS[0], good).require_same(state, {}, {})
    state.status.canary = 0.5, 1.0
    with pytest.raises(RunError, match=r"computes a loss that is not finite on .* loss of 0.5"):
        bad.require_same(state, {}, {})
    state.meta["model.0.weight"].data.fill_(math.nan)
    assert Canary(learner, ROWS[0], good).values(state) is None


def test_a_change_of_the_backward_pass_alone_is_noticed(tmp_path: Path) -> None:
    gs.fit(**rows(), out=tmp_path / "run")
    first_order = rows()["learner"]
    first_order.second_order = False
    with pytest.raises(RunError, match="a run with second_order 'True', this one has 'False'"):
        gs.fit(**rows(learner=first_order, epochs=3), out=tmp_path / "run", resume="auto")


def test_a_prepare_that_draws_random_numbers_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    class Noisy(type(ROWS[0])):  # type: ignore[misc]
        fingerprint = None

        def prepare(self, batch: Any) -> Any:
            return batch.map(
                lambda t: t + 0.1 * torch.randn_like(t) if t.is_floating_point() else t
            )

    noisy = copy.copy(ROWS[0])
    noisy.__class__ = Noisy
    whole = gs.fit(**rows(train=noisy, epochs=2), out=tmp_path / "whole")
    gs.fit(**rows(train=noisy, epochs=1), out=tmp_path / "parts")
    parts = gs.fit(**rows(train=noisy, epochs=2), out=tmp_path / "parts", resume="auto")
    ends = [latest(run.path) for run in (whole, parts)]
    for name, tensor in ends[0].meta.items():
        assert torch.equal(tensor, ends[1].meta[name])


def test_each_checkpoint_holds_its_canary_and_the_folder_the_digests(tmp_path: Path) -> None:
    run = gs.fit(**rows(), out=tmp_path / "run")
    loss, norm = latest(run.path).progress["canary"]
    assert 0 < loss < 10
    assert 0 < norm < 100
    files = RunFolder(run.path).contents()["files"]
    assert any(path.endswith("methods/meta_learner.py") for path in files)
    assert all(len(digest) == 64 for digest in files.values())
