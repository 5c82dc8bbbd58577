"""Reading what a user calls images, or rows, into the tensors that a run takes."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gradshare.errors import DataError
from gradshare.tasks.arrays import Array, labels
from gradshare.tasks.batch import Tree, leaves, tree_map
from gradshare.tasks.images import ImageFormat, read_image
from gradshare.tasks.store import Images
from gradshare.training.adapted import as_inputs, as_tensor

CHANNELS = (1, 3, 4)
"""Of grey, RGB and RGBA images."""


def as_images(x: Any, form: ImageFormat) -> Tensor:
    """Images of any kind as a run takes them: uint8 (n, C, H, W).

    Args:
        x: n images, as a sequence or an array with the images as first dimension. Each is a path,
            a PIL image, or an array or tensor (H, W), (H, W, C) or (C, H, W) of uint8, bool, or
            floats in [0, 1]. Sizes and colour modes may differ. An array of the run's own height
            and width is neither resized nor cropped.
        form: what the run takes.

    Raises:
        DataError: there is no image, or one cannot be read.
    """
    if isinstance(x, str | Path | Image.Image):
        what = f"one path, {str(x)!r}" if isinstance(x, str | Path) else "one image"
        raise DataError(f"X is {what}; give a list: [X]")
    if isinstance(x, Tensor):
        x = x.detach().cpu()
    if isinstance(x, np.ndarray | Tensor) and tuple(x.shape[1:]) == form.shape and len(x):
        whole = as_tensor(x)
        if whole.dtype == torch.uint8:
            return whole
    try:
        count = len(x)
    except TypeError as error:
        raise DataError(f"X is a {type(x).__name__}; give a list of images") from error
    if count == 0:
        raise DataError("X is empty; give at least one image")
    shape: tuple[int, ...] = tuple(getattr(x, "shape", ()))
    if len(shape) == 3 and (shape[2] in CHANNELS or shape[0] == form.channels == 3):
        raise DataError(f"X has the shape {shape}, which is that of one image; give X[None]")
    return torch.from_numpy(
        np.stack([_as_image(image, f"X[{i}]", form) for i, image in enumerate(x)])
    )


def _as_image(image: Any, where: str, form: ImageFormat) -> Images:
    if isinstance(image, str | Path):
        return read_image(Path(image), str(image), form)
    if isinstance(image, Image.Image):
        return read_image(image, where, form)
    pixels = _pixels(image, where, form)
    if pixels.shape[:2] == form.shape[1:]:
        form = replace(form, resize="stretch")  # which leaves this size as it is
    return read_image(pixels, where, form)


def _pixels(image: Any, where: str, form: ImageFormat) -> Images:
    """An array or tensor as uint8 (H, W), (H, W, 3) or (H, W, 4)."""
    try:
        array = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
    except (TypeError, ValueError) as error:  # a list of unequal images, or bfloat16
        raise DataError(
            f"{where} is not an image ({error!s:.100}); give a path, a PIL image or an array"
        ) from error
    shape, like = array.shape, "(H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels C"
    if array.dtype.kind not in "biuf" or len(shape) not in (2, 3) or 0 in shape:
        raise DataError(
            f"{where} is a {type(image).__name__} of {array.dtype} and shape {shape}; give a path, "
            f"a PIL image, or an array of the shape {like}"
        )
    if array.dtype.kind == "f" and bool(((array >= 0) & (array <= 1)).all()):
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype.kind == "b":
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        raise DataError(
            f"{where} holds {array.dtype} from {array.min()} to {array.max()}; give uint8 from 0 "
            "to 255, or floats from 0 to 1"
        )
    if len(shape) == 2:
        return array
    first, last = shape[0] in CHANNELS, shape[2] in CHANNELS
    if not first and not last:
        raise DataError(f"{where} has the shape {shape}; give {like}")
    if first and (not last or isinstance(image, Tensor) or shape == form.shape):
        array = np.moveaxis(array, 0, -1)
    return np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array)


def is_table(x: Any) -> bool:
    """Whether inputs are rows of numbers, and not images."""
    if isinstance(x, list | tuple):
        return bool(x) and isinstance(x[0], list | tuple)
    return getattr(x, "ndim", None) == 2


def as_rows(x: Any, like: Tree) -> Tree:
    """Convert inputs other than images to tensors of the types and shapes that a run takes.

    Args:
        x: an array, a tensor, a data frame, or a tuple or dictionary of them, with the examples as
            first dimension.
        like: the inputs (1, n, …) of one task of the run.

    Raises:
        DataError: there is no example, or it has another shape than the run's.
    """
    inputs = as_inputs(tree_map(_values, x), like)
    for (path, given), (_, ours) in zip(leaves(inputs, "X"), leaves(like), strict=True):
        rows_differ = given.ndim == 2 and given.shape[1:] != ours.shape[2:]
        if given.ndim != ours.ndim - 1 or rows_differ:
            one = tuple(ours.shape[2:])
            raise DataError(
                f"{path} has the shape {tuple(given.shape)}; this run takes (n, "
                f"{', '.join(map(str, one))}), with the n examples first"
            )
        if len(given) == 0:
            raise DataError(f"{path} is empty; give at least one example")
    return inputs


def _values(array: Any) -> Any:
    return array.to_numpy() if hasattr(array, "to_numpy") else array


def labels_of(examples: Sized, y: Any, name: str = "y") -> Array:
    """The labels (n,) of n examples.

    Raises:
        DataError: a label is missing, labels are of mixed types, or there is not one for each
            example.
    """
    given = labels(y, name)
    if len(given) != len(examples):
        raise DataError(
            f"{len(examples)} examples, but {name} has {len(given)} entries; give one for each"
        )
    return given
