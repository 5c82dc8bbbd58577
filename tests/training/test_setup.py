"""From a configuration to the parts of a run: what that does to the process it happens in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gradshare.models import Conv4
from gradshare.training.config import RunConfig
from gradshare.training.distributed import OneProcess
from gradshare.training.setup import _device_of_run, build_learner

CPU = torch.device("cpu")


def test_building_a_learner_leaves_the_callers_generators_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(seed: int) -> None:
        raise AssertionError(seed)

    config, shape = RunConfig(seed=3, filters=4), (1, 16, 16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = dict(Conv4(ways=5, image_size=16, channels=1, filters=4).named_parameters())
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    before = torch.get_rng_state()
    learner, _ = build_learner(config, shape, CPU)
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in learner.model.named_parameters():
        assert torch.equal(tensor, expected[name])


TF32: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)


@pytest.fixture
def tf32() -> Iterator[None]:
    """TF32 is on, and afterwards as it was."""
    before = [place.allow_tf32 for place in TF32]
    for place in TF32:
        place.allow_tf32 = True
    yield
    for place, was in zip(TF32, before, strict=True):
        place.allow_tf32 = was


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_float32_on_a_gpu_is_no_tf32(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
    assert _device_of_run("auto", OneProcess()).type == kind
    assert [place.allow_tf32 for place in TF32] == [kind == "cpu"] * 2
