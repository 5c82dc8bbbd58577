"""Normalisation of images."""

from __future__ import annotations

import pytest
import torch

from gradshare.errors import DataError
from gradshare.tasks import Normalization, TaskBatch


def test_images_are_scaled_and_standardised_by_channel_with_the_channels_last_in_memory() -> None:
    images = torch.randint(256, (2, 3, 2, 4, 4), dtype=torch.uint8)
    found = Normalization([0.5, 0.2], [0.25, 2.0])(images, torch.float64)
    expected = images / 255.0
    expected = torch.stack([(expected[:, :, 0] - 0.5) / 0.25, (expected[:, :, 1] - 0.2) / 2], 2)
    torch.testing.assert_close(found, expected, check_dtype=False, rtol=1e-6, atol=1e-6)
    assert found.dtype == torch.float64
    assert found[0].is_contiguous(memory_format=torch.channels_last)


def test_a_batch_keeps_its_labels_and_sizes() -> None:
    images, labels = torch.zeros(2, 3, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, 3).long()
    batch = TaskBatch(images, labels, images + 255, labels, query_n=[3, 1])
    found = Normalization([0.0], [1.0]).batch(batch)
    assert torch.equal(found.support_x, torch.zeros(2, 3, 1, 4, 4))
    assert torch.equal(found.query_x, torch.ones(2, 3, 1, 4, 4))
    assert found.support_y is found.query_y is labels
    assert found.query_n == [3, 1]


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
def test_means_and_standard_deviations_that_cannot_be_used_are_named(
    mean: list[float], std: list[float]
) -> None:
    with pytest.raises(DataError) as error:
        Normalization(mean, std)
    assert str(error.value) == (
        f"images cannot be normalised by mean {mean} and standard deviation {std}; give one of "
        "each for every channel, the latter above 0"
    )
