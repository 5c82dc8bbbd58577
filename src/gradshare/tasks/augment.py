"""Augmentation of training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Augmentation = Literal["flip", "crop", "colour"]

SHIFT = 0.1
"""A crop moves an image by up to this share of its width: 8 pixels of 84."""

JITTER = 0.4
"""Brightness, contrast and saturation are multiplied by a factor from 1 - this to 1 + this."""

LUMINANCE = (0.299, 0.587, 0.114)


def augmented(images: Tensor, kinds: Sequence[Augmentation], random: np.random.Generator) -> Tensor:
    """Augment images, uint8 (n, C, H, W), each in its own way, with the settings of MetaOptNet's
    code.

    "flip" mirrors half of them left to right; "crop" moves an image by up to a tenth of its width,
    with a black border; "colour" changes brightness, contrast and saturation, which a grey image
    does not have.
    """
    if "flip" in kinds:
        mirrored = torch.from_numpy(random.random(len(images)) < 0.5)
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if "crop" in kinds:
        images = _cropped(images, random)
    if "colour" in kinds:
        images = _jittered(images, random)
    return images


def _cropped(images: Tensor, random: np.random.Generator) -> Tensor:
    n, _, height, width = images.shape
    padding = round(SHIFT * width)
    padded = F.pad(images, (padding,) * 4)
    corner = torch.from_numpy(random.integers(2 * padding + 1, size=(2, n, 1)))
    rows, columns = corner[0] + torch.arange(height), corner[1] + torch.arange(width)
    image = torch.arange(n)[:, None, None]
    # The channels come last: they are between the indexed dimensions.
    return padded[image, :, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def _jittered(images: Tensor, random: np.random.Generator) -> Tensor:
    factors = random.uniform(1 - JITTER, 1 + JITTER, size=(3, len(images), 1, 1, 1))
    brightness, contrast, saturation = torch.from_numpy(factors.astype(np.float32))
    pixels = (images * brightness).clamp(0, 255)
    mean = _grey(pixels).mean((-1, -2), keepdim=True)
    pixels = torch.lerp(mean, pixels, contrast).clamp(0, 255)
    pixels = torch.lerp(_grey(pixels), pixels, saturation).clamp(0, 255)
    return pixels.round().to(torch.uint8)


def _grey(pixels: Tensor) -> Tensor:
    """The luminance (n, 1, H, W) of images; of grey images themselves."""
    if pixels.shape[1] != len(LUMINANCE):
        return pixels
    return (pixels * pixels.new_tensor(LUMINANCE)[:, None, None]).sum(1, keepdim=True)
