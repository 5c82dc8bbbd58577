"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings of each.

Source: Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic
program induction", Science 350 (2015); github.com/brendenlake/omniglot, MIT licence.

Layouts read: a folder with the authors' two archives `images_background.zip` (964 characters) and
`images_evaluation.zip` (659), or with the two folders unpacked from them, or one of each. Within
them: `<archive>/<alphabet>/<character>/<number>_<drawer>.png`, 105×105 pixels, black on white.

Split: 1,150 characters to train, 50 to validate, 423 to test: the sizes of the reference MAML++
code and of most papers since. There, the characters are shuffled by a random number generator
from whatever order the file system lists them in, so no two copies agree. Here, characters are
put in the order of the SHA-256 digest of their names, as `Greek/character01`, and dealt out in that
order: a shuffle that needs no random number generator, is the same everywhere, and anybody can
repeat. As in the reference code, the alphabets are not kept apart: a test character's alphabet
has other characters in the training split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from gradshare.errors import DataError
from gradshare.tasks.archives import find_archive, is_image, listing, members
from gradshare.tasks.dataset import Archive, Dataset
from gradshare.tasks.images import ImageFormat
from gradshare.tasks.spool import ImageSpool
from gradshare.tasks.store import ClassImages

CHARACTERS = {"images_background": 964, "images_evaluation": 659}
DRAWINGS = 20
SPLIT_SIZES = {"train": 1150, "val": 50, "test": 423}

_URL = "https://github.com/brendenlake/omniglot/raw/master/python"


def read(path: Path, form: ImageFormat) -> Iterator[ClassImages]:
    """Read all characters.

    Args:
        path: a folder as described above.
        form: what every image is turned into.

    Yields:
        The 1,623 classes, named as `Greek/character01`.

    Raises:
        DataError: a part is missing, damaged or incomplete.
    """
    parts = {part: _find(path, part) for part in CHARACTERS}
    characters: list[str] = []
    with ImageSpool(form) as spool:
        for part, place in parts.items():
            for member in members(place, _is_drawing):
                spool.add("/".join(member.name.parts[-3:-1]), member)
            new = {name: spool.counts()[name] for name in spool.counts().keys() - set(characters)}
            _check_complete(part, place, new)
            characters += new
        yield from spool.classes(split(characters))


def split(characters: Iterable[str]) -> dict[str, str]:
    """Which split each of the 1,623 characters is in, by the rule at the head of this module."""
    dealt = sorted(characters, key=lambda name: hashlib.sha256(name.encode()).digest())
    splits = [name for name, size in SPLIT_SIZES.items() for _ in range(size)]
    return dict(zip(dealt, splits, strict=True))


def _find(folder: Path, part: str) -> Path:
    if not folder.is_dir():
        raise DataError(
            f"{folder} is {'a file' if folder.exists() else 'not there'}; Omniglot is read from "
            "the folder that holds images_background.zip and images_evaluation.zip, or what they "
            "unpack to"
        )
    place = find_archive(folder, part)
    if place is None:
        raise DataError(
            f"{folder} has no {part}.zip and no folder {part}; Omniglot is read from the folder "
            "that holds images_background.zip and images_evaluation.zip, or what they unpack to. "
            f"Found: {listing(folder)}"
        )
    return place


def _is_drawing(name: PurePosixPath) -> bool:
    return is_image(name) and len(name.parts) >= 3


def _check_complete(part: str, place: Path, drawings: Mapping[str, int]) -> None:
    if len(drawings) != CHARACTERS[part]:
        raise DataError(
            f"{place} has {len(drawings)} characters, Omniglot's {part} has {CHARACTERS[part]}; "
            f"download {part}.zip again"
        )
    for name, count in drawings.items():
        if count != DRAWINGS:
            raise DataError(
                f"character {name} in {place} has {count} drawings, Omniglot has {DRAWINGS} of "
                f"each; download {part}.zip again"
            )


OMNIGLOT = Dataset(
    name="omniglot",
    summary="1,623 handwritten characters of 50 alphabets, 20 drawings each",
    channels=1,
    image_size=28,
    rotate_classes=True,
    read=read,
    # The checksums are those that torchvision verifies the same two files with.
    archives=(
        Archive(
            f"{_URL}/images_background.zip",
            "images_background.zip",
            "68d2efa1b9178cc56df9314c21c6e718",
        ),
        Archive(
            f"{_URL}/images_evaluation.zip",
            "images_evaluation.zip",
            "6b91aef0f799c5bb55b94e3f2daec811",
        ),
    ),
)
