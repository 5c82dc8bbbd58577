"""From a configuration to the parts of a run: what that does to the process it happens in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gradshare.training.distributed import OneProcess
from gradshare.training.setup import _device_of_run

TF32 = (torch.backends.cudnn, torch.backends.cuda.matmul)


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
