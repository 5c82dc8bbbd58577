"""How a run's work is laid out: what a configuration asks for, and what "auto" means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gradshare.config import RunConfig
from gradshare.training import layout as layouts
from gradshare.training.layout import Layout, choose_layout
from gradshare.training.memory import peak_of_graphs
from gradshare.training.run import train
from gradshare.training.setup import build_learner, set_up

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL, PAPER = (1, 28, 28), (3, 84, 84)
# Graphs of well over 4 GiB, and of under 16.
LARGE = {"shots": 5, "task_batch": 5, "inner_steps": 10}
HUGE = {"shots": 5, "task_batch": 50, "inner_steps": 10}


def chosen(
    shape: tuple[int, int, int], device: torch.device = CPU, **settings: Any
) -> tuple[str, str]:
    _, layout = build_learner(RunConfig(**settings), shape, device)
    return layout.tasks, layout.memory


@pytest.mark.parametrize(
    ("shape", "device", "settings", "expected"),
    [
        (SMALL, CPU, {}, ("vmap", "keep")),
        (PAPER, CPU, {"shots": 5, "task_batch": 1}, ("vmap", "keep")),
        (PAPER, CPU, LARGE, ("loop", "recompute")),
        (PAPER, CUDA, LARGE, ("vmap", "keep")),
        (PAPER, CUDA, HUGE, ("vmap", "recompute")),
    ],
)
def test_auto_goes_by_what_keeping_takes_and_by_the_device(
    shape: tuple[int, int, int],
    device: torch.device,
    settings: dict[str, Any],
    expected: tuple[str, str],
) -> None:
    assert chosen(shape, device, **settings) == expected


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("tasks", ["loop", "vmap"])
@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("shape", [SMALL, PAPER])
def test_what_is_asked_for_is_what_is_done(
    shape: tuple[int, int, int], memory: str, tasks: str, device: torch.device
) -> None:
    assert chosen(shape, device, **LARGE, tasks=tasks, memory=memory) == (tasks, memory)
    assert chosen(shape, device, **LARGE, memory=memory)[1] == memory
    assert chosen(shape, device, **LARGE, tasks=tasks)[0] == tasks


def test_graphs_are_kept_up_to_the_limit_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig()
    learner, _ = build_learner(config, SMALL, CPU)
    need = peak_of_graphs(config, learner.model, SMALL, vmap=True, recompute=False)
    for limit, memory in ((need, "keep"), (need - 1, "recompute")):
        monkeypatch.setattr(layouts, "KEPT_UP_TO", {"cpu": limit})
        assert choose_layout(config, learner.model, SMALL, CPU).memory == memory


def test_all_arms_of_a_comparison_have_one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    sharing = RunConfig(filters=256)
    learner, _ = build_learner(sharing, SMALL, CPU)
    need = peak_of_graphs(sharing, learner.model, SMALL, vmap=True, recompute=False)
    alone = RunConfig(filters=256, sharing=False)
    assert peak_of_graphs(alone, learner.model, SMALL, vmap=True, recompute=False) < need
    monkeypatch.setattr(layouts, "KEPT_UP_TO", {"cpu": need - 1})
    arms: tuple[dict[str, Any], ...] = (
        {},
        {"sharing": False},
        {"sharing_control": "rate-control"},
        {"sharing_control": "rate-control", "fixed_lambda": 0.0},
        {"sharing_control": "detached"},
        {"fixed_m": 1.0},
    )
    for arm in arms:
        assert chosen(SMALL, filters=256, **arm) == ("loop", "recompute")


@pytest.mark.parametrize(
    ("settings", "tasks_at_a_time", "recompute"),
    [
        ({}, None, False),
        ({"tasks": "loop"}, 1, False),
        ({"memory": "recompute"}, 1, True),
        ({"memory": "recompute", "tasks": "vmap"}, None, True),
    ],
)
@pytest.mark.parametrize("method", ["maml", "meta-sgd", "maml++"])
def test_the_layout_reaches_the_learner(
    method: str,
    settings: dict[str, Any],
    tasks_at_a_time: int | None,
    recompute: bool,
    tiny: dict[str, Any],
) -> None:
    setup = set_up(RunConfig(**{**tiny, "method": method, **settings}))
    assert setup.learner.tasks_at_a_time == setup.layout.tasks_at_a_time == tasks_at_a_time
    assert setup.learner.recompute == setup.layout.recompute == recompute


def test_a_layout_in_words() -> None:
    assert Layout("cpu", "vmap", "keep", compile=False).describe() == (
        "cpu: tasks all at once (vmap), graphs kept (keep), not compiled, channels last, freed "
        "memory kept where the C library is glibc"
    )
    assert Layout("cuda", "loop", "recompute", compile=True).describe() == (
        "cuda: tasks one at a time (loop), graphs built again in the backward pass (recompute), "
        "compiled, channels last, freed memory kept where the C library is glibc"
    )


@pytest.mark.parametrize("order", ["second", "first"])
def test_a_run_is_the_same_in_every_layout(
    order: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    losses = {}
    for memory in ("keep", "recompute"):
        for tasks in ("loop", "vmap"):
            config = RunConfig(**{**tiny, "order": order, "memory": memory, "tasks": tasks})
            result = train(config, tmp_path / f"{memory}-{tasks}")
            laid_out = result.environment["layout"]
            assert f"({memory})" in laid_out and f"({tasks})" in laid_out
            losses[memory, tasks] = [record.train_loss for record in result.history]
    for found in losses.values():
        assert found == pytest.approx(losses["keep", "loop"], rel=1e-5)
