"""Task batches: what they may hold, how they are cut, and on their way between devices."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from gradshare.errors import DataError
from gradshare.tasks import Normalization, TaskBatch


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


def batch_of(support: int, query: int) -> TaskBatch:
    """Tensors of so many tasks each, every entry the number of its task."""
    images = (
        torch.arange(count).reshape(-1, 1, 1, 1, 1).expand(-1, 2, 1, 4, 4)
        for count in (support, query)
    )
    support_x, query_x = images
    return TaskBatch(support_x, support_x[:, :, 0, 0, 0], query_x, query_x[:, :, 0, 0, 0])


def test_a_slice_of_a_batch_is_a_batch_of_those_tasks() -> None:
    part = batch_of(4, 4)[1:3]
    assert len(part) == 2
    for tensor in (part.support_x, part.support_y, part.query_x, part.query_y):
        assert tensor.flatten(1)[:, 0].tolist() == [1, 2]


@pytest.mark.parametrize("index", [0, torch.tensor([0, 1])])
def test_an_index_that_would_leave_the_tasks_out_is_refused(index: Any) -> None:
    with pytest.raises(TypeError) as caught:
        batch_of(3, 3)[index]
    assert str(caught.value) == (
        f"a task batch is cut by slices, not by {index!r}: batch[2:3] is a batch of the third task "
        "alone"
    )


def test_an_array_in_the_place_of_a_tensor_is_refused() -> None:
    batch = batch_of(2, 2)
    with pytest.raises(DataError) as caught:
        dataclasses.replace(batch, query_y=batch.query_y.numpy())  # type: ignore[arg-type]
    assert str(caught.value) == (
        "query_y of a task batch is a ndarray; give a tensor (torch.as_tensor)"
    )


def test_tensors_of_differing_numbers_of_tasks_and_of_none_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        batch_of(3, 2)
    assert str(caught.value) == (
        "the tensors of a task batch are support_x (3, 2, 1, 4, 4), support_y (3, 2), query_x "
        "(2, 2, 1, 4, 4), query_y (2, 2); the first dimension must be the tasks, the same number "
        "in each and at least one: give a single task as x[None]"
    )
    with pytest.raises(DataError, match=r"are support_x \(0, 2, 1, 4, 4\), .* at least one"):
        batch_of(3, 3)[3:]
    scalar = torch.zeros(())
    with pytest.raises(DataError, match=r"are support_x \(\), support_y \(\)"):
        TaskBatch(scalar, scalar, scalar, scalar)


def test_images_that_are_scaled_already_are_not_scaled_again() -> None:
    normalize = Normalization([0.5], [0.25])
    once = normalize(torch.full((1, 1, 2, 2), 255, dtype=torch.uint8))
    assert torch.equal(once, torch.full((1, 1, 2, 2), 2.0))
    with pytest.raises(DataError) as error:
        normalize(once)
    assert str(error.value) == (
        "the images are torch.float32; Normalization takes torch.uint8 from 0 to 255, and scales "
        "it itself"
    )


@pytest.mark.parametrize(("mean", "std"), [([0.5], [0.0]), ([0.5], [-1.0]), ([0.5, 0.5], [0.2])])
def test_what_cannot_standardise(mean: list[float], std: list[float]) -> None:
    with pytest.raises(DataError) as error:
        Normalization(mean, std)
    assert str(error.value) == (
        f"images cannot be standardised by mean {mean} and standard deviation {std}; give one of "
        "each for every channel, the latter above 0"
    )


def test_batches_can_be_compared_and_be_keys() -> None:
    one, other = batch_of(2, 2), batch_of(2, 2)
    assert one != other
    assert len({one, other, one}) == 2
