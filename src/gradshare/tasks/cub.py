"""CUB-200-2011: 11,788 photographs of 200 species of birds.

Source: Wah, Branson, Welinder, Perona and Belongie, "The Caltech-UCSD Birds-200-2011 Dataset",
CNS-TR-2011-001 (2011); data.caltech.edu/records/65de6-vp158.

Layouts read:

- the authors' archive `CUB_200_2011.tgz`, or a folder that holds it;
- the folder `CUB_200_2011` unpacked from it, or one that holds that folder. Within both:
  `images/<NNN.Class_name>/*.jpg`;
- torchmeta's cache, `{train,val,test}_data.hdf5` and `{train,val,test}_labels.json` in the folder
  or in its folder `cub`.

Split: of the class folders sorted by name and counted from 0, the even ones train (100), those
with i % 4 == 1 validate (50) and those with i % 4 == 3 test (50): the rule of the paper, of
torchmeta, and of Chen et al., "A Closer Look at Few-shot Classification". Other libraries split
140/30/30; accuracies on the two splits cannot be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from gradshare.errors import DataError
from gradshare.tasks import hdf5
from gradshare.tasks.archives import find_archive, is_image, listing, members
from gradshare.tasks.dataset import Archive, Dataset
from gradshare.tasks.images import ImageFormat
from gradshare.tasks.spool import ImageSpool
from gradshare.tasks.store import SPLITS, ClassImages

CLASSES = 200


def read(path: Path, form: ImageFormat) -> Iterator[ClassImages]:
    """Read all classes.

    Args:
        path: an archive or folder as described above.
        form: what every image is turned into.

    Yields:
        The 200 classes, named as `001.Black_footed_Albatross`.

    Raises:
        DataError: none of the layouts is there, or what is there is damaged or incomplete.
    """
    cache = _cache_folder(path)
    if cache:
        yield from _read_cache(cache, form)
        return
    place = _find(path)
    with ImageSpool(form) as spool:
        for member in members(place, _is_photograph):
            spool.add(member.name.parts[-2], member)
        yield from spool.classes(split(spool.counts(), place))


def split(class_names: Iterable[str], where: Path) -> dict[str, str]:
    """Which split each of the 200 classes is in, by the rule at the head of this module.

    Args:
        class_names: as the folders are called.
        where: for the error.

    Raises:
        DataError: there are not 200.
    """
    ordered = sorted(class_names)
    if len(ordered) != CLASSES:
        raise DataError(
            f"{where} has {len(ordered)} class folders with images, CUB-200-2011 has {CLASSES} "
            "and its split counts on all of them; unpack or download CUB_200_2011.tgz again"
        )
    return {name: ("train", "val", "train", "test")[i % 4] for i, name in enumerate(ordered)}


def _find(path: Path) -> Path:
    """The archive, or the unpacked folder."""
    if path.is_file() or (path / "images").is_dir():
        return path
    if path.is_dir():
        place = find_archive(path, "CUB_200_2011")
        if place:
            return place
    found = f"Found: {listing(path)}" if path.is_dir() else f"There is no {path}"
    raise DataError(
        f"no CUB-200-2011 in {path}; it is read from the archive CUB_200_2011.tgz or the folder "
        "that holds it, from the folder CUB_200_2011 (with images/001.Black_footed_Albatross/… "
        "in it) or the one that holds it, or from torchmeta's {train,val,test}_data.hdf5 and "
        f"{{train,val,test}}_labels.json. {found}"
    )


def _is_photograph(name: PurePosixPath) -> bool:
    return is_image(name) and len(name.parts) >= 3 and name.parts[-3] == "images"


def _cache_folder(path: Path) -> Path | None:
    """Where torchmeta's cache is, if all of it is there."""
    for folder in (path, path / "cub"):
        if all(file.is_file() for name in SPLITS for file in hdf5.cache_files(folder, name)):
            return folder
    return None


def _read_cache(folder: Path, form: ImageFormat) -> Iterator[ClassImages]:
    listed = {name: part for part in SPLITS for name in hdf5.class_names(folder, part)}
    split_of = split(listed, folder)
    for name, part in listed.items():
        if split_of[name] != part:
            raise DataError(
                f"{hdf5.cache_files(folder, part)[1]} lists {name!r}, which the paper's rule puts "
                f"into {split_of[name]!r}; this is another split of CUB, prepare the dataset from "
                "CUB_200_2011.tgz"
            )
    for part in SPLITS:
        yield from hdf5.read_classes(folder, part, form)


CUB = Dataset(
    name="cub",
    summary="CUB-200-2011: 11,788 photographs of 200 species of birds",
    channels=3,
    image_size=84,
    rotate_classes=False,
    read=read,
    archives=(
        Archive(
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "CUB_200_2011.tgz",
            "97eceeb196236b17998738112f37df78",
        ),
    ),
)
