"""A dataset that gradshare knows, and what its reader gets and finds."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradshare.errors import DataError, reason

LISTED = 20  # unreadable images, in an error


@dataclass(frozen=True)
class FoundClass:
    """A class that a reader has found. Its images are decoded while the store is written.

    Attributes:
        split: "train", "val" or "test"; "" for the published split of the class.
        name: of the class, unique within the dataset.
        images: for each image the path of a file, the bytes of a file as uint8 (n,), or pixels as
            uint8 (H, W, 3) or (H, W).
        groups: the group of each image, such as its recording; None if there are no groups.
    """

    split: str
    name: str
    images: Sequence[Any] = field(repr=False)
    groups: Sequence[str] | None = field(default=None, repr=False)


@dataclass
class Notes:
    """The path that a reader reads, and its notes about the images there.

    Attributes:
        path: of the file or folder to read.
        scratch: a folder to unpack archives into.
        splits: how they were given or drawn; None for published ones.
        seed: that they were drawn with.
        skipped: the files that are left out, by the reason.
        unreadable: a sentence for each image that cannot be read.
        duplicates: pairs of images with the same pixels, by where they are.
    """

    path: Path
    scratch: Path
    splits: str | None = None
    seed: int | None = None
    skipped: dict[str, list[str]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    duplicates: dict[str, list[str]] = field(default_factory=dict)

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


Reader = Callable[[Notes], list[FoundClass]]
"""Finds the classes of a published dataset, or raises DataError if the copy is not complete."""


@dataclass(frozen=True)
class Archive:
    """A file of a dataset as its authors publish it: its address, its name on disk, and its
    published MD5 checksum in hexadecimal, None if there is none.
    """

    url: str
    filename: str
    md5: str | None


@dataclass(frozen=True)
class Dataset:
    """A dataset that can be prepared.

    Attributes:
        name: as on the command line.
        summary: one line for `--help` and errors.
        channels: 1 (grey) or 3 (RGB); None for 1 if no image has colour.
        image_size: height and width that most papers use.
        rotate_classes: see `ImageStore`.
        read: finds the classes; None for glyphs, which are drawn, and for images of the user's own.
        split: the published split of each class; empty if there is none. Without a class in "val",
            validation tasks are of the training classes.
        archives: what `--download` fetches.
        characters: whether the images are of characters, which mean something else when mirrored.
    """

    name: str
    summary: str
    channels: int | None
    image_size: int
    rotate_classes: bool = False
    read: Reader | None = None
    split: Mapping[str, str] = field(default_factory=dict, repr=False)
    archives: tuple[Archive, ...] = ()
    characters: bool = False
