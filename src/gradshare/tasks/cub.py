"""CUB-200-2011: 11,788 photographs of 200 species of birds.

Source: Wah, Branson, Welinder, Perona and Belongie, "The Caltech-UCSD Birds-200-2011 Dataset",
CNS-TR-2011-001 (2011); data.caltech.edu/records/65de6-vp158.

Layouts read:

- the authors' archive `CUB_200_2011.tgz`, or a folder that holds it;
- the folder `CUB_200_2011` unpacked from it, with `images/<NNN.Class_name>/*.jpg`, or a folder
  that holds that folder;
- torchmeta's cache, `{train,val,test}_data.hdf5` and `{train,val,test}_labels.json` in the folder
  or in its folder `cub`.

Split: of the class folders sorted by name and counted from 0, the even ones train (100), those
with i % 4 == 1 validate (50) and those with i % 4 == 3 test (50): the rule of the paper, of
torchmeta, and of Chen et al., "A Closer Look at Few-shot Classification". Other libraries split
140/30/30; accuracies on the two splits cannot be compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gradshare.errors import DataError
from gradshare.tasks import hdf5
from gradshare.tasks.archives import find_archive, listing, unpacked
from gradshare.tasks.dataset import Archive, Dataset, FoundClass
from gradshare.tasks.folder import class_folders, image_files
from gradshare.tasks.store import SPLITS


def find(path: Path, scratch: Path) -> list[FoundClass]:
    """Find the 200 classes, named as `001.Black_footed_Albatross`.

    Args:
        path: an archive or folder as described above.
        scratch: see `Reader`.

    Raises:
        DataError: there is none of the layouts, or it is damaged or incomplete.
    """
    for folder in (path, path / "cub"):
        if all(file.is_file() for part in SPLITS for file in hdf5.cache_files(folder, part)):
            return _find_cached(folder)
    folders = {folder.name: folder for folder in class_folders(_images(path, scratch))}
    return [
        FoundClass(part, name, image_files(folders[name])) for name, part in split(folders).items()
    ]


def split(class_names: Iterable[str]) -> dict[str, str]:
    """Which split each class is in, by the rule at the head of this module."""
    parts = ("train", "val", "train", "test")
    return {name: parts[i % 4] for i, name in enumerate(sorted(class_names))}


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


def _find_cached(folder: Path) -> list[FoundClass]:
    found = hdf5.find_cached(folder)
    split_of = split(item.name for item in found)
    for item in found:
        if split_of[item.name] != item.split:
            raise DataError(
                f"{folder} has class {item.name!r} in {item.split!r}, which the paper's rule puts "
                f"into {split_of[item.name]!r}; this is another split of CUB, prepare the dataset "
                "from CUB_200_2011.tgz"
            )
    return found


CUB = Dataset(
    name="cub",
    summary="CUB-200-2011: 11,788 photographs of 200 species of birds",
    channels=3,
    image_size=84,
    rotate_classes=False,
    read=find,
    classes={"train": 100, "val": 50, "test": 50},
    archives=(
        Archive(
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "CUB_200_2011.tgz",
            "97eceeb196236b17998738112f37df78",
        ),
    ),
)
