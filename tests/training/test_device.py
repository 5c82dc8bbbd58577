"""Which device a run computes on, and in what precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gradshare.errors import ConfigError
from gradshare.training.device import choose_device, device_of_process, keep_float32
from gradshare.training.distributed import OneProcess


def test_auto_is_cuda_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, kind in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda found=available: found)
        assert choose_device("auto").type == kind


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(ConfigError) as error:
        choose_device("tpu9")
    assert str(error.value) == "device 'tpu9' is unknown; use auto, cpu, cuda or cuda:N"


def test_a_device_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*size: int, device: torch.device) -> Tensor:
        raise RuntimeError(f"no {device} here\nand a trace of where that was noticed")

    monkeypatch.setattr(torch, "empty", missing)
    with pytest.raises(ConfigError) as error:
        choose_device("cuda:7")
    assert str(error.value) == ("device 'cuda:7' cannot be used here (no cuda:7 here); use another")


def test_each_process_of_a_machine_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    process = OneProcess()
    process.local_rank, process.local_size = 1, 2
    for count, words in ((2, None), (1, "2 processes on this machine need a GPU each, and dev")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda found=count: found)
        if words is None:
            assert device_of_process("auto", process) == torch.device("cuda", 1)
        else:
            with pytest.raises(ConfigError, match=words):
                device_of_process("auto", process)


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
def test_float32_on_a_gpu_is_not_tf32(kind: str) -> None:
    keep_float32(torch.device(kind))
    assert [place.allow_tf32 for place in TF32] == [kind == "cpu"] * 2
