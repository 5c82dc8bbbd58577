"""Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings of each.

Source: Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic
program induction", Science 350 (2015); github.com/brendenlake/omniglot, MIT licence.

The authors' two archives have `<archive>/<alphabet>/<character>/<number>_<drawer>.png`.

Splits, each under its own name:

- `omniglot`: 1,150 / 50 / 423 characters, the sizes of the reference MAML++ code, whose own split
  depends on the order in which a file system lists the characters. Here they are sorted by the
  SHA-256 of their names, such as `Greek/character01`. Alphabets are not kept apart, as there.
- `omniglot-vinyals`: of Vinyals et al., "Matching Networks for One Shot Learning" (2016). The first
  1,200 characters train, those of images_background first, but for the five validation alphabets
  of Snell et al., "Prototypical Networks for Few-shot Learning" (2017). The other 423 test.
- `omniglot-vinyals-1200`: the same without validation classes.
- `omniglot-lake`: the two archives, as Lake et al. have it, without validation classes.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from gradshare.errors import DataError
from gradshare.tasks.readers.archives import find_archive, listing, unpacked
from gradshare.tasks.readers.class_splits import published_split
from gradshare.tasks.readers.dataset import Archive, Dataset, FoundClass
from gradshare.tasks.readers.folder import class_folders, in_folder

PARTS = ("images_background", "images_evaluation")
DRAWINGS = 20
VALIDATION_ALPHABETS = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")

_URL = "https://github.com/brendenlake/omniglot/raw/master/python"
# Those that torchvision verifies the same two files with.
_MD5 = ("68d2efa1b9178cc56df9314c21c6e718", "6b91aef0f799c5bb55b94e3f2daec811")

_LAKE = {
    f"{alphabet}/character{number:02}": split
    for word, split in published_split("omniglot-alphabets").items()
    for alphabet, count in [word.split("/")]
    for number in range(1, int(count) + 1)
}
_DEALT = sorted(_LAKE, key=lambda name: hashlib.sha256(name.encode()).digest())
_MAML_PLUS = dict(zip(_DEALT, ["train"] * 1150 + ["val"] * 50 + ["test"] * 423, strict=True))
_VINYALS_1200 = dict(zip(_LAKE, ["train"] * 1200 + ["test"] * 423, strict=True))
_VINYALS = _VINYALS_1200 | {
    name: "val" for name in _LAKE if name.split("/", maxsplit=1)[0] in VALIDATION_ALPHABETS
}


def find(path: Path, scratch: Path) -> list[FoundClass]:
    """Find the 1,623 characters, named as `Greek/character01`; see `Reader`."""
    return [item for part in PARTS for item in _find_part(path, part, scratch)]


def _find_part(path: Path, part: str, scratch: Path) -> list[FoundClass]:
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
    characters = [
        replace(item, name=f"{alphabet.name}/{item.name}")
        for alphabet in class_folders(inner if inner.is_dir() else folder)
        for item in in_folder("", alphabet)
    ]
    for item in characters:
        if len(item.images) != DRAWINGS:
            raise DataError(
                f"character {item.name} in {place} has {len(item.images)} drawings, Omniglot has "
                f"{DRAWINGS} of each; download {part}.zip again"
            )
    return characters


OMNIGLOT = Dataset(
    name="omniglot",
    summary="1,623 handwritten characters of 50 alphabets, 20 drawings each",
    channels=1,
    image_size=28,
    rotate_classes=True,
    read=find,
    split=_MAML_PLUS,
    archives=tuple(
        Archive(f"{_URL}/{part}.zip", f"{part}.zip", md5)
        for part, md5 in zip(PARTS, _MD5, strict=True)
    ),
    characters=True,
)

OTHER_SPLITS = tuple(
    replace(OMNIGLOT, name=name, summary=f"the same characters in the split {sizes}", split=split)
    for name, sizes, split in (
        ("omniglot-vinyals", "1,028/172/423", _VINYALS),
        ("omniglot-vinyals-1200", "1,200/423, without validation classes", _VINYALS_1200),
        ("omniglot-lake", "964/659, without validation classes", _LAKE),
    )
)
