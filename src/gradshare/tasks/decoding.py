"""Decoding the images that a reader has found, and noting what a user should know about them."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gradshare.errors import DataError, reason
from gradshare.tasks.images import ImageFormat, read_image
from gradshare.tasks.readers.dataset import FoundClass
from gradshare.tasks.writing import ClassImages

LISTED = 20


@dataclass
class Notes:
    """What a reader notes about the images in a path that the user gave, and the folder that it
    unpacks archives into (`scratch`).
    """

    path: Path
    scratch: Path
    splits: str | None = None  # how they were given or drawn
    seed: int | None = None  # that they were drawn with
    skipped: dict[str, list[str]] = field(default_factory=dict)  # files, by reason
    unreadable: list[str] = field(default_factory=list)  # a sentence for each image
    duplicates: dict[str, list[str]] = field(default_factory=dict)  # pairs, by where they are

    def name(self, file: Path) -> str:
        """The path of a file below what is read, such as `crow/0012.png`."""
        for folder in (self.scratch / self.path.name, self.scratch, self.path, self.path.parent):
            if file != folder and file.is_relative_to(folder):
                return file.relative_to(folder).as_posix()
        return file.as_posix()

    def skip(self, reason: str, file: Path) -> None:
        """Note a file that is left out."""
        self.skipped.setdefault(reason, []).append(self.name(file))

    def unread(self, name: str, sentence: object) -> None:
        """Note an image that cannot be read."""
        self.unreadable.append(str(sentence))
        self.skipped.setdefault("unreadable", []).append(name)

    @contextmanager
    def blaming(self) -> Iterator[None]:
        """Name what the user gave in errors, and not the folder that it is unpacked into."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DataError(
                f"{error.filename or self.path} cannot be read ({reason(error)}); mend "
                "its permissions, or give a copy that can be read"
            ) from error
        except DataError as error:
            archives = self.path if self.path.is_dir() else self.path.parent
            raise DataError(str(error).replace(str(self.scratch), str(archives))) from error

    def refuse_unreadable(self) -> None:
        """Raise DataError if an image cannot be read."""
        if len(self.unreadable) == 1:
            raise DataError(f"{self.unreadable[0]}, or leave it out with --skip-bad")
        if self.unreadable:
            sentences = "\n".join(sorted(self.unreadable)[:LISTED])
            more = len(self.unreadable) - LISTED
            raise DataError(
                f"{len(self.unreadable)} images cannot be read; mend or remove them, or leave them "
                f"out with --skip-bad:\n{sentences}" + (f"\nand {more} more" if more > 0 else "")
            )


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
