"""What gradshare knows of a dataset: its name, its shape, where it is published, how it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from gradshare.tasks.images import ImageFormat
from gradshare.tasks.store import ClassImages


@dataclass(frozen=True)
class Archive:
    """A file of a dataset as its authors publish it.

    Attributes:
        url: where it is published.
        filename: what it is called on disk.
        md5: its published checksum, in hexadecimal, where there is one.
    """

    url: str
    filename: str
    md5: str | None


@dataclass(frozen=True)
class Dataset:
    """A dataset that gradshare knows by name.

    Attributes:
        name: as on the command line.
        summary: one line for `--help` and errors.
        channels: 1 (grey) or 3 (RGB).
        image_size: the size the field uses.
        rotate_classes: see `ImageStore`.
        read: reads every class of every split from a local path: an archive, or a folder in one
            of the layouts that the dataset's module describes. None for a dataset that is
            generated.
        archives: what `--download` fetches.
    """

    name: str
    summary: str
    channels: int
    image_size: int
    rotate_classes: bool
    read: Callable[[Path, ImageFormat], Iterable[ClassImages]] | None
    archives: tuple[Archive, ...] = ()
