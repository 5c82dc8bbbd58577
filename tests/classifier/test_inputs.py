"""Images of every kind that users have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gradshare.classifier.inputs import as_images
from gradshare.errors import DataError
from gradshare.tasks.images import ImageFormat, Resize, read_image

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (20, 30, 3), dtype=np.uint8)


@pytest.mark.parametrize("resize", ["stretch", "center-crop"])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_is_the_same_in_every_form(channels: int, resize: Resize, tmp_path: Path) -> None:
    form = ImageFormat(16, channels, resize)
    path = tmp_path / "image.png"
    Image.fromarray(COLOUR).save(path)
    expected = read_image(path, str(path), form)
    turned = np.ascontiguousarray(COLOUR.transpose(2, 0, 1))
    kinds: list[Any] = [
        path,
        str(path),
        Image.open(path),
        COLOUR,
        turned,
        COLOUR / 255,
        (turned / 255).astype(np.float32),
        torch.from_numpy(turned),
        torch.from_numpy(turned) / 255,
        torch.from_numpy(COLOUR),
    ]
    for image in kinds:
        assert np.array_equal(as_images([image], form)[0], expected)
    assert np.array_equal(as_images(kinds, form), np.stack([expected] * len(kinds)))
    for batch in (COLOUR[None], torch.from_numpy(turned)[None] / 255):
        assert np.array_equal(as_images(batch, form)[0], expected)


def test_sizes_and_colour_modes_may_differ() -> None:
    form = ImageFormat(16, 3)
    grey = COLOUR[:, :, 0]
    same = [grey, grey[:, :, None], grey[None], np.stack([grey] * 3, 2), Image.fromarray(grey)]
    found = as_images(same, form)
    assert all(np.array_equal(image, found[0]) for image in found)
    see_through = np.concatenate([COLOUR, np.zeros((20, 30, 1), np.uint8)], 2)
    assert np.unique(as_images([see_through], form)).tolist() == [255]
    assert as_images([np.ones((40, 9), bool), Image.new("CMYK", (5, 7))], form).shape[0] == 2
    deep = Image.fromarray(np.full((4, 4), 2**15, np.uint16))
    assert np.unique(as_images([deep], form)).tolist() == [128]
    turned = Image.fromarray(COLOUR)
    turned.getexif()[0x0112] = 6  # the camera was held upright
    assert np.array_equal(as_images([turned], form), as_images([np.rot90(COLOUR, -1)], form))
    assert as_images(np.zeros((2, 5, 9), np.uint8), form).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_the_runs_own_size_are_neither_resized_nor_cropped(channels: int) -> None:
    form = ImageFormat(16, channels, "center-crop")
    stored = RANDOM.integers(0, 256, (4, *form.shape), dtype=np.uint8)
    for images in (stored, torch.from_numpy(stored), stored / 255, list(stored)):
        assert np.array_equal(as_images(images, form), stored)
    last = np.ascontiguousarray(stored.transpose(0, 2, 3, 1))
    assert np.array_equal(as_images(last, form), stored)


def test_one_image_is_told_from_several() -> None:
    for one in (COLOUR, COLOUR.transpose(2, 0, 1), torch.zeros(3, 16, 16)):
        with pytest.raises(DataError, match=r"is that of one image; give X\[None\]"):
            as_images(one, ImageFormat(16, 3))
    assert as_images(np.zeros((3, 28, 28)), ImageFormat(16, 1)).shape == (3, 1, 16, 16)
