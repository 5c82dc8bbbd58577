"""A run on rows of numbers that learns any number of classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gradshare as gs

WIDTH = 6

Rows = tuple[Any, Any]


def rows(classes: int, each: int, seed: int = 0, noise: float = 0.5) -> Rows:
    """Clusters of rows (n, WIDTH), and their labels, "class 0" to "class N"."""
    random = np.random.default_rng(seed)
    y = np.repeat(np.arange(classes), each)
    x = random.normal(size=(classes, WIDTH))[y] + noise * random.normal(size=(len(y), WIDTH))
    return x, np.array([f"class {code}" for code in y])


def source(seed: int, **options: int) -> gs.ClassTasks:
    return gs.ClassTasks(*rows(30, 20, seed), **{"ways": 4, "shots": 3, "queries": 8, **options})


@pytest.fixture(scope="package")
def rows_run(tmp_path_factory: pytest.TempPathFactory) -> gs.Run:
    """A run of UNICORN-MAML on tasks of 4 classes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 4))
    return gs.fit(
        gs.unicorn_maml(model, inner_lr=0.5, steps=3),
        source(1),
        source(2),
        out=tmp_path_factory.mktemp("rows") / "run",
        epochs=2,
        iterations=20,
        val_tasks=20,
        ensemble=2,
        progress=False,
    )
