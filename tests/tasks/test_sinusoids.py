"""The sinusoid regression of the MAML paper."""

from __future__ import annotations

import numpy as np
import torch

from gradshare.tasks import Sinusoids
from gradshare.tasks.source import require_pure


def test_every_task_is_one_sinusoid_within_the_papers_ranges() -> None:
    batch = Sinusoids(shots=5, queries=20).batch(range(200))
    assert batch.support_x.shape == batch.support_y.shape == (200, 5, 1)
    assert batch.query_x.shape == batch.query_y.shape == (200, 20, 1)
    assert batch.query_x.dtype == batch.query_y.dtype == torch.float32
    x = torch.cat([batch.support_x, batch.query_x], 1).double().numpy()
    y = torch.cat([batch.support_y, batch.query_y], 1).double().numpy()
    amplitudes, phases = [], []
    for task_x, task_y in zip(x, y, strict=True):
        # a·sin(x - p) = a·cos(p)·sin(x) - a·sin(p)·cos(x): linear in two unknowns.
        basis = np.concatenate([np.sin(task_x), np.cos(task_x)], axis=1)
        (sine, cosine), *_ = np.linalg.lstsq(basis, task_y[:, 0], rcond=None)
        np.testing.assert_allclose(basis @ [sine, cosine], task_y[:, 0], atol=1e-5)
        amplitudes.append(np.hypot(sine, cosine))
        phases.append(np.arctan2(-cosine, sine))
    for values, low, high in ((amplitudes, 0.1, 5), (phases, 0, np.pi), (x, -5, 5)):
        assert low - 1e-4 <= np.min(values) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < np.max(values) <= high + 1e-4


def test_a_sinusoid_depends_on_its_index_only_and_each_index_has_its_own() -> None:
    require_pure(Sinusoids(), 2**62)
    x = Sinusoids().batch([0, 1, 2**40]).query_x
    assert len({task.numpy().tobytes() for task in x}) == 3


def test_replace_changes_the_sizes_and_the_fingerprint() -> None:
    tasks = Sinusoids(shots=5)
    assert tasks.replace(queries=30) == Sinusoids(5, 30)
    assert tasks.replace(queries=30).fingerprint != tasks.fingerprint == Sinusoids(5).fingerprint


def test_another_seed_has_other_tasks() -> None:
    assert not torch.equal(Sinusoids().batch([0]).query_x, Sinusoids(seed=1).batch([0]).query_x)
