"""Decoding the images that a reader has found."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gradshare.errors import DataError, reason
from gradshare.tasks.dataset import FoundClass
from gradshare.tasks.images import ImageFormat, read_image
from gradshare.tasks.notes import Notes
from gradshare.tasks.writing import ClassImages


def decoded(
    found: Sequence[FoundClass], form: ImageFormat, notes: Notes, *, skip_bad: bool
) -> Iterator[ClassImages]:
    """The classes with their images decoded, one class at a time.

    Args:
        found: the classes.
        form: what to turn the images into.
        notes: take the images that are there twice, and those that cannot be read.
        skip_bad: leave out images that cannot be read.

    Raises:
        DataError: in the end, if images cannot be read; or a class has none that can.
    """
    first_of: dict[bytes, tuple[FoundClass, str]] = {}
    with blaming(notes):
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
                    notes.repeat(item, name, other, first)
            if not images and skip_bad:
                raise DataError(
                    f"class {item.name!r} of {notes.path} has no image that can be read; replace "
                    "them, or remove the class"
                )
            if skip_bad or not notes.unreadable:
                yield ClassImages(item.split, item.name, np.stack(images), groups or None)
        if not skip_bad:
            notes.refuse_unreadable()


@contextmanager
def blaming(notes: Notes) -> Iterator[None]:
    """Name what the user gave in errors, and not the folder that it is unpacked into."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"{error.filename or notes.path} cannot be read ({reason(error)}); mend its "
            "permissions, or give a copy that can be read"
        ) from error
    except DataError as error:
        archives = notes.path if notes.path.is_dir() else notes.path.parent
        raise DataError(str(error).replace(str(notes.scratch), str(archives))) from error
