"""CUB-200-2011: 11,788 photographs of 200 species of birds.

Source: Wah, Branson, Welinder, Perona and Belongie, "The Caltech-UCSD Birds-200-2011 Dataset",
CNS-TR-2011-001 (2011); data.caltech.edu/records/65de6-vp158.

Splits, on which accuracies cannot be compared:

- `cub`: of the species counted from 0, the even ones train, those with i % 4 == 1 validate, and
  those with i % 4 == 3 test: the rule of the paper, of torchmeta, and of Chen et al., "A Closer
  Look at Few-shot Classification".
- `cub-140`: 140 train, 30 validate and 30 test, as in Meta-Dataset, learn2learn and easyfsl.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gradshare.errors import DataError
from gradshare.tasks.readers.archives import find_archive, listing, unpacked
from gradshare.tasks.readers.benchmarks import by_split
from gradshare.tasks.readers.class_splits import published_split
from gradshare.tasks.readers.dataset import Archive, Dataset, FoundClass
from gradshare.tasks.readers.folder import in_folder
from gradshare.tasks.readers.labelled import read_hdf5

_URL = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
_CACHE = by_split("hdf5", read_hdf5, "{}_data.hdf5", "{}_labels.json", inside="cub")
_PARTS = ("train", "val", "train", "test")
_SPLIT_140 = published_split("cub-140")
_SPLIT = {name: _PARTS[number % 4] for number, name in enumerate(sorted(_SPLIT_140))}


def find(path: Path, scratch: Path) -> list[FoundClass]:
    """Find the 200 classes, named as `001.Black_footed_Albatross`; see `Reader`."""
    if path.is_dir() and all(_CACHE.files(path).values()):
        return list(_CACHE.find(path, scratch))
    return in_folder("", _images(path, scratch))


def _images(path: Path, scratch: Path) -> Path:
    """The folder of the class folders."""
    place = path if path.is_file() else find_archive(path, "CUB_200_2011")
    folder = unpacked(place, scratch) if place else path
    for images in (folder / "images", folder / "CUB_200_2011" / "images"):
        if images.is_dir():
            return images
    raise DataError(
        f"no CUB-200-2011 in {path}; it is read from the archive CUB_200_2011.tgz or the folder "
        "that holds it, from the folder CUB_200_2011 (with images/001.Black_footed_Albatross/… "
        "in it) or the one that holds it, or from torchmeta's {train,val,test}_data.hdf5 and "
        f"{{train,val,test}}_labels.json. Found: {listing(folder)}"
    )


CUB = Dataset(
    name="cub",
    summary="CUB-200-2011: 11,788 photographs of 200 species of birds",
    channels=3,
    image_size=84,
    read=find,
    split=_SPLIT,
    archives=(Archive(_URL, "CUB_200_2011.tgz", "97eceeb196236b17998738112f37df78"),),
)

CUB_140 = replace(
    CUB, name="cub-140", summary="the same photographs in the split 140/30/30", split=_SPLIT_140
)
