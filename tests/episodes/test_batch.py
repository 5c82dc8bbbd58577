"""Task batches on their way between devices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gradshare.episodes import TaskBatch


@pytest.mark.parametrize(("device", "may_return_early"), [("cpu", False), ("cuda:1", True)])
def test_the_host_waits_for_what_it_may_read(
    monkeypatch: pytest.MonkeyPatch, device: str, may_return_early: bool
) -> None:
    calls = []

    def to(tensor: Tensor, place: Any, *, non_blocking: bool) -> Tensor:
        calls.append((torch.device(place), non_blocking))
        return tensor

    images, labels = torch.zeros(1, 2, 1, 4, 4), torch.zeros(1, 2)
    monkeypatch.setattr(Tensor, "to", to)
    for place in (device, torch.device(device)):
        TaskBatch(images, labels, images, labels).to(place)
    assert calls == 8 * [(torch.device(device), may_return_early)]
