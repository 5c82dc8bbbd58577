"""Comparisons of seconds, and what two of them that are one must have in common."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import gradshare as gs
from gradshare.comparison.compare import Comparison, compare
from gradshare.comparison.plan import RUNS
from gradshare.training.checkpoint import load_checkpoint
from tests.training.small import SIGNALS, WAYS

Arms = dict[str, Callable[[], Any]]
RELU = nn.ReLU()


def net(activation: nn.Module = RELU) -> nn.Module:
    """With batch norm, and dropout that draws random numbers."""
    return nn.Sequential(
        nn.Conv1d(2, 6, 5),
        nn.BatchNorm1d(6, track_running_stats=False),
        activation,
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(6 * 12, WAYS),
    )


def arms() -> Arms:
    return {
        "original": lambda: gs.maml(net(), steps=2),
        "sharing": lambda: gs.maml(net(), steps=2, sharing=True),
    }


OPTIONS: dict[str, Any] = {
    **{"epochs": 3, "iterations": 3, "task_batch": 2, "val_tasks": 6, "test_tasks": 8},
    **{"ensemble": 2, "device": "cpu", "seeds": 2, "progress": False},
}


def small(
    out: Path, made: Arms | None = None, sources: Sequence[Any] = SIGNALS, **changes: Any
) -> Comparison:
    """A comparison of two arms with two seeds, or with something changed."""
    return compare(arms() if made is None else made, *sources, out=out, **{**OPTIONS, **changes})


def run_folders(out: Path) -> list[Path]:
    return sorted((out / RUNS).glob("*/seed-*[0-9]"))


def assert_same(left: Path, right: Path) -> None:
    """Two comparisons have the same numbers, bit for bit: tensors, histories and test values."""
    names = [folder.relative_to(left) for folder in run_folders(left)]
    assert names
    assert names == [folder.relative_to(right) for folder in run_folders(right)]
    for name in names:
        last = max(path.name for path in (left / name).glob("checkpoints/latest-*"))
        ours, theirs = (load_checkpoint(out / name / "checkpoints" / last) for out in (left, right))
        for part in ("meta", "carried"):
            mine, yours = getattr(ours, part), getattr(theirs, part)
            assert mine.keys() == yours.keys()
            for tensor, value in mine.items():
                assert torch.equal(value, yours[tensor]), f"{name}: {tensor}"
        torch.testing.assert_close(ours.optimizer, theirs.optimizer, rtol=0, atol=0)
    assert timeless(left) == timeless(right)


def timeless(out: Path) -> Any:
    """What `results.json` says, without times and what depends on the process."""
    stored = json.loads((out / "results.json").read_text(encoding="utf-8"))
    del stored["commands"], stored["sha256"]
    for run in stored["runs"]:
        del run["training_seconds"], run["environment"]
        for record in run["history"]:
            del record["seconds"]
    return stored


def leftovers(out: Path) -> list[str]:
    """Files that a comparison needs only while it runs."""
    kept = {".lock"}
    return [str(path) for path in out.rglob(".*") if path.name not in kept]
