"""What a user should know about the images that were read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradshare.errors import DataError
from gradshare.tasks.dataset import FoundClass

LISTED = 20


@dataclass
class Notes:
    """What a reader notes about images.

    Attributes:
        path: what is read, as the user gave it.
        scratch: the folder that archives are unpacked into.
        splits: how the splits were given or drawn.
        seed: that the splits were drawn with; None if they were given.
        skipped: the files that were left out, by reason.
        unreadable: one sentence for each image that cannot be read.
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

    def repeat(self, item: FoundClass, name: str, other: FoundClass, first: str) -> None:
        """Note that an image of a class has the pixels of another one, which came first."""
        where = "in two splits" if item.split != other.split else "in two classes"
        where = "within a class" if item is other else where
        self.duplicates.setdefault(where, []).append(f"{first} = {name}")

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


def some(items: Sequence[Any], most: int = LISTED) -> str:
    """The first items of a list, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more
