"""Decoding the images that a reader has found."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from gradshare.errors import DataError
from gradshare.tasks.images import ImageFormat, read_image
from gradshare.tasks.readers.dataset import FoundClass, Notes
from gradshare.tasks.writing import ClassImages


def decoded(
    found: Sequence[FoundClass], form: ImageFormat, notes: Notes, *, skip_bad: bool
) -> Iterator[ClassImages]:
    """Decode the images of some classes, one class at a time. Those that are there twice or cannot
    be read are noted.

    Raises:
        DataError: in the end, if images cannot be read and are not to be left out (`skip_bad`); or
            a class has none that can.
    """
    first_of: dict[bytes, tuple[FoundClass, str]] = {}
    with notes.blaming():
        for item in found:
            images, groups = [], []
            for row, image in enumerate(item.images):
                name = f"image {row} of class {item.name!r}"
                where = f"{name} in {notes.path}"
                if isinstance(image, Path):
                    name = notes.name(image)
                try:
                    pixels = read_image(image, where, form)
                except DataError as error:
                    notes.unread(name, error)
                    continue
                images.append(pixels)
                groups += [item.groups[row]] if item.groups else []
                content = hashlib.sha256(pixels.tobytes()).digest()
                other, first = first_of.setdefault(content, (item, name))
                if first != name:
                    where = "in two splits" if item.split != other.split else "in two classes"
                    where = "within a class" if item is other else where
                    notes.duplicates.setdefault(where, []).append(f"{first} = {name}")
            if not images and skip_bad:
                raise DataError(
                    f"class {item.name!r} of {notes.path} has no image that can be read; replace "
                    "them, or remove the class"
                )
            if skip_bad or not notes.unreadable:
                yield ClassImages(item.split, item.name, np.stack(images), groups or None)
        if not skip_bad:
            notes.refuse_unreadable()
