"""`--compile` never leaves a run with other gradients than the uncompiled ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradshare.config import RunConfig
from gradshare.training.compilation import compile_if_right
from gradshare.training.run import train
from gradshare.training.setup import Setup, set_up

Forward = Callable[..., Tensor]


def parts(tiny: dict[str, Any], **settings: Any) -> tuple[RunConfig, Setup]:
    config = RunConfig(**{**tiny, "compile": True, **settings})
    return config, set_up(config)


def use(monkeypatch: pytest.MonkeyPatch, compiler: Callable[[Forward], Forward]) -> None:
    monkeypatch.setattr(torch, "compile", compiler)


def refusal(config: RunConfig, setup: Setup, caplog: pytest.LogCaptureFixture) -> str:
    """The warning of a setup that is left uncompiled."""
    with caplog.at_level(logging.WARNING):
        after = compile_if_right(config, setup)
    assert not after.layout.compile
    assert "forward" not in vars(setup.learner.model)
    (record,) = caplog.records
    return record.getMessage()


def test_a_compiler_that_changes_nothing_is_used(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def compiler(forward: Forward) -> Forward:
        def compiled(*arguments: Any) -> Tensor:
            calls.append(arguments)
            return forward(*arguments)

        return compiled

    use(monkeypatch, compiler)
    config, setup = parts(tiny)
    after = compile_if_right(config, setup)
    assert after.layout.compile
    calls.clear()
    setup.learner.model(torch.zeros(1, *setup.image_shape))
    assert len(calls) == 1


def test_nothing_is_compiled_unasked(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, lambda forward: pytest.fail("compiled"))
    config, setup = parts(tiny, compile=False)
    assert compile_if_right(config, setup) is setup


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no C++ compiler\nlong story"), "RuntimeError: no C++ compiler"),
        (NotImplementedError(), "NotImplementedError"),
    ],
)
@pytest.mark.parametrize("late", [False, True], ids=["at once", "in the forward pass"])
def test_a_compiler_that_fails_is_not_used(
    late: bool,
    error: Exception,
    reason: str,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    use(monkeypatch, (lambda forward: fail) if late else fail)
    assert refusal(*parts(tiny), caplog) == (
        f"the run goes on without --compile, which cannot be used here ({reason})"
    )


class _Doubled(torch.autograd.Function):
    """Forwards what it is given, and a wrong gradient back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


def _doubled(x: Tensor) -> Tensor:
    y: Tensor = _Doubled.apply(x)  # type: ignore[no-untyped-call]
    return y


def test_wrong_gradients_behind_right_losses_are_found(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # With the inner rate next to nothing the losses hardly show it.
    use(monkeypatch, lambda forward: lambda x: _doubled(forward(x)))
    settings = {"order": "first", "inner_lr": 1e-9, "tasks": "loop", "sharing": False}
    words = refusal(*parts(tiny, **settings), caplog)
    assert words.startswith(
        "the run goes on without --compile, which cannot be used here (the outer gradient of "
        "model.blocks.0.conv.weight in iteration 1 would be wrong by "
    )


def test_a_result_that_is_no_number_is_found(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use(monkeypatch, lambda forward: lambda x: forward(x) * torch.nan)
    assert "the outer losses of iteration 1 would be wrong by nan" in refusal(*parts(tiny), caplog)


def test_the_order_that_a_run_only_comes_to_later_is_checked_too(
    tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compiler(forward: Forward) -> Forward:
        def compiled(x: Tensor) -> Tensor:
            y: Tensor = _OnceDifferentiable.apply(forward(x))  # type: ignore[no-untyped-call]
            return y

        return compiled

    use(monkeypatch, compiler)
    annealed = {"method": "maml++", "tasks": "loop", "memory": "keep"}
    config, setup = parts(tiny, **annealed, first_order_for="9")
    assert compile_if_right(config, setup).layout.compile  # all nine iterations
    words = refusal(*parts(tiny, **annealed, first_order_for="4"), caplog)
    assert "(the outer gradient of model.blocks.0.conv.weight in iteration 5 would be" in words


class _OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()


def test_torch_itself_cannot_do_the_second_order_and_the_run_goes_on(
    tiny: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """When this fails because torch can, `docs/configuration.md` is out of date."""
    with caplog.at_level(logging.WARNING):
        asked = train(RunConfig(**{**tiny, "compile": True}), tmp_path / "asked")
    assert [record.getMessage() for record in caplog.records if record.name.startswith("grad")] == [
        "the run goes on without --compile, which cannot be used here (RuntimeError: torch.compile "
        "with aot_autograd does not currently support double backward)"
    ]
    assert ", not compiled, " in asked.environment["layout"]
    plain = train(RunConfig(**tiny), tmp_path / "plain")
    assert asked.test == plain.test
    assert [r.train_loss for r in asked.history] == [r.train_loss for r in plain.history]


@pytest.mark.filterwarnings("ignore")  # of torch's own compiler
def test_torch_itself_can_do_the_first_order(tiny: dict[str, Any], tmp_path: Path) -> None:
    settings = {**tiny, "order": "first", "inner_steps": 1, "tasks": "loop", "epochs": 1}
    compiled = train(RunConfig(**{**settings, "compile": True}), tmp_path / "compiled")
    assert ", compiled, " in compiled.environment["layout"]
    plain = train(RunConfig(**settings), tmp_path / "plain")
    assert compiled.history[0].train_loss == pytest.approx(plain.history[0].train_loss, rel=1e-4)
