"""Putting images that come in any order into classes, in the memory of one class."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Self

import numpy as np

from gradshare.errors import DataError
from gradshare.tasks.archives import Member
from gradshare.tasks.images import ImageFormat, read_image
from gradshare.tasks.store import SPLITS, ClassImages


class ImageSpool:
    """A temporary file of decoded images, and which class each of them belongs to.

    An archive can only be read from its beginning to its end, and need not hold a class's images
    side by side. The order of what comes out does not depend on the order of what went in:
    classes are sorted by split and name, a class's images by file name, so that an archive and
    the folder unpacked from it give the same store.

    Args:
        form: what every image is turned into.

    Raises:
        DataError: there is no temporary folder to write to.
    """

    def __init__(self, form: ImageFormat) -> None:
        self._form = form
        with _writing():
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self._rows: dict[str, dict[PurePosixPath, int]] = {}
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, class_name: str, member: Member) -> None:
        """Decode an image of a class and keep it.

        Raises:
            DataError: it is no image, or the temporary folder is full.
        """
        image = read_image(member.data, member.where, self._form)
        with _writing():
            self._file.write(image.tobytes())
        self._rows.setdefault(class_name, {})[member.name] = self._count
        self._count += 1

    def counts(self) -> dict[str, int]:
        """How many images there are of each class."""
        return {name: len(rows) for name, rows in self._rows.items()}

    def classes(self, split_of: Mapping[str, str]) -> Iterator[ClassImages]:
        """The classes with their images, one at a time.

        Args:
            split_of: the split of each class.

        Raises:
            DataError: the temporary folder is full.
        """
        if not self._count:
            return
        with _writing():
            self._file.flush()
        images = np.memmap(self._file, np.uint8, "r", shape=(self._count, *self._form.shape))
        for name in sorted(self._rows, key=lambda name: (SPLITS.index(split_of[name]), name)):
            rows = self._rows[name]
            yield ClassImages(split_of[name], name, images[[rows[file] for file in sorted(rows)]])


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # None where no folder can be written to; the error then lists those that were tried.
        folder = f" {tempfile.tempdir}" if tempfile.tempdir else ""
        raise DataError(
            f"cannot write to the temporary folder{folder} ({error.strerror}); make room there, or "
            "set TMPDIR to another folder"
        ) from error
