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
from collections.abc import Iterable
from pathlib import Path

from gradshare.errors import DataError
from gradshare.tasks.archives import find_archive, listing, unpacked
from gradshare.tasks.dataset import Archive, Dataset, FoundClass
from gradshare.tasks.folder import class_folders, image_files

PARTS = ("images_background", "images_evaluation")
DRAWINGS = 20
SPLIT_SIZES = {"train": 1150, "val": 50, "test": 423}

_URL = "https://github.com/brendenlake/omniglot/raw/master/python"


def find(path: Path, scratch: Path) -> list[FoundClass]:
    """Find the 1,623 characters, named as `Greek/character01`.

    Args:
        path: a folder as described above.
        scratch: see `Reader`.

    Raises:
        DataError: a part is missing, damaged or incomplete.
    """
    drawings: dict[str, list[Path]] = {}
    for part in PARTS:
        drawings |= _find_part(path, part, scratch)
    split_of = split(drawings)
    return [FoundClass(split_of[name], name, files) for name, files in drawings.items()]


def split(characters: Iterable[str]) -> dict[str, str]:
    """Which split each of the 1,623 characters is in, by the rule at the head of this module."""
    dealt = sorted(characters, key=lambda name: hashlib.sha256(name.encode()).digest())
    first_of_val = SPLIT_SIZES["train"]
    first_of_test = first_of_val + SPLIT_SIZES["val"]
    return {
        name: "train" if i < first_of_val else "val" if i < first_of_test else "test"
        for i, name in enumerate(dealt)
    }


def _find_part(path: Path, part: str, scratch: Path) -> dict[str, list[Path]]:
    """The drawings of each character of one of the two archives."""
    place = find_archive(path, part)
    if place is None:
        found = f"Found: {listing(path)}" if path.is_dir() else "It is no folder"
        raise DataError(
            f"{path} has no {part}.zip and no folder {part}; Omniglot is read from the folder "
            "that holds images_background.zip and images_evaluation.zip, or what they unpack to. "
            f"{found}"
        )
    folder = unpacked(place, scratch)
    inner = folder / part
    drawings = {
        f"{alphabet.name}/{character.name}": image_files(character)
        for alphabet in class_folders(inner if inner.is_dir() else folder)
        for character in class_folders(alphabet)
    }
    for name, files in drawings.items():
        if len(files) != DRAWINGS:
            raise DataError(
                f"character {name} in {place} has {len(files)} drawings, Omniglot has {DRAWINGS} "
                f"of each; download {part}.zip again"
            )
    return drawings


OMNIGLOT = Dataset(
    name="omniglot",
    summary="1,623 handwritten characters of 50 alphabets, 20 drawings each",
    channels=1,
    image_size=28,
    rotate_classes=True,
    read=find,
    classes=SPLIT_SIZES,
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
