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
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from gradshare.errors import DataError
from gradshare.tasks.readers.archives import find_archive, unpacked
from gradshare.tasks.readers.benchmarks import Files, Layout, find
from gradshare.tasks.readers.class_splits import published_split
from gradshare.tasks.readers.dataset import Archive, Dataset, FoundClass, Notes
from gradshare.tasks.readers.folder import class_folders, classes_in

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


def _archives(path: Path) -> Files:
    return {f"{part}.zip": find_archive(path, part) for part in PARTS}


def _in_archives(paths: list[Path], notes: Notes) -> Iterable[FoundClass]:
    """The 1,623 characters, named as `Greek/character01`."""
    for part, place in zip(PARTS, paths, strict=True):
        folder = unpacked(place, notes.scratch)
        inner = folder / part
        for alphabet in class_folders(inner if inner.is_dir() else folder, notes):
            for item in classes_in(alphabet, "", notes):
                name = f"{alphabet.name}/{item.name}"
                if len(item.images) != DRAWINGS:
                    raise DataError(
                        f"character {name} in {place} has {len(item.images)} drawings, Omniglot "
                        f"has {DRAWINGS} of each; download {part}.zip again"
                    )
                yield replace(item, name=name)


_LAYOUT = Layout(
    "archives",
    f"{PARTS[0]}.zip and {PARTS[1]}.zip, or what they unpack to",
    _archives,
    _in_archives,
)

OMNIGLOT = Dataset(
    name="omniglot",
    summary="1,623 handwritten characters of 50 alphabets, 20 drawings each",
    channels=1,
    image_size=28,
    rotate_classes=True,
    read=partial(find, "Omniglot", [_LAYOUT]),
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
