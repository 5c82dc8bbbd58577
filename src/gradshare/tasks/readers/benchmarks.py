"""mini-ImageNet, tieredImageNet, CIFAR-FS, FC100 and CUB, in the layouts in which they circulate.

A layout is read by a small function, and each gives the classes in the same form. A copy may have
fewer images a class than the original: the store's index records how many. ImageNet's terms allow
non-commercial research only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from gradshare.errors import DataError
from gradshare.tasks.readers.archives import find_archive, listing, unpacked
from gradshare.tasks.readers.class_splits import published_split
from gradshare.tasks.readers.dataset import Archive, Dataset, FoundClass, Notes
from gradshare.tasks.readers.folder import class_folders, class_in, classes_in
from gradshare.tasks.readers.labelled import read_arrays, read_hdf5, read_parquet
from gradshare.tasks.readers.lists import NAMES, classes_in_lists, is_image, read_list
from gradshare.tasks.store import SPLITS

Files = Mapping[str, Path | None]
"""The files that a layout needs, by their names in errors. They need not exist."""


class Layout(NamedTuple):
    """A layout of a benchmark: its name and content, for errors; the files that it needs at a path;
    and a function that finds the classes in these files.
    """

    name: str
    content: str
    files: Callable[[Path], Files]
    find: Callable[[list[Path], Notes], Iterable[FoundClass]]


def find(title: str, layouts: Iterable[Layout], notes: Notes) -> list[FoundClass]:
    """Find the classes of a benchmark in the first of some layouts whose files are all there."""
    path, lacking = notes.path, ""
    for layout in layouts:
        files = layout.files(path)
        there = [file for file in files.values() if file is not None and file.exists()]
        if len(there) == len(files):
            return list(layout.find(there, notes))
        if there:
            missing = (name for name, file in files.items() if file not in there)
            lacking += f"for {layout.name} it lacks {', '.join(missing)}; "
    known = "".join(f"\n  {layout.name}: {layout.content}" for layout in layouts)
    found = f"found {listing(path)}" if path.is_dir() else "it is a file"
    raise DataError(
        f"{path} is not a complete copy of {title}: {found}; {lacking}the layouts that can be read "
        f"are{known}"
    )


def by_split(
    name: str,
    read: Callable[..., Iterable[FoundClass]],
    *files: str,
    train: str = "train",
    inside: str = "",
) -> Layout:
    """A layout with files for each split.

    Args:
        name: of the layout.
        read: finds the classes of a split, given the split's name and the paths of its files.
        files: their names, with {} for the split.
        train: the name of the training split in them.
        inside: a folder that may hold them.
    """

    def find_all(paths: list[Path], _notes: Notes) -> Iterable[FoundClass]:
        for number, split in enumerate(SPLITS):
            yield from read(split, *paths[number * len(files) :][: len(files)])

    content = ", ".join(file.format(f"{{{train},val,test}}") for file in files)
    files_of = partial(_files_by_split, files=files, train=train, inside=inside)
    return Layout(name, content, files_of, find_all)


def _files_by_split(
    path: Path, files: Iterable[str], train: str = "train", inside: str = ""
) -> Files:
    folder = path / inside if (path / inside).is_dir() else path
    found: dict[str, Path | None] = {}
    for split in SPLITS:
        words = (train,) if split == "train" else NAMES[split]
        for file in files:
            paths = [folder / file.format(word) for word in words]
            found[file.format(words[0])] = next((p for p in paths if p.exists()), None)
    return found


def _in_split_folders(folders: list[Path], notes: Notes) -> Iterable[FoundClass]:
    for split, folder in zip(SPLITS, folders, strict=True):
        yield from classes_in(folder, split, notes)


# As the MAML++ code has it.
SPLIT_FOLDERS = Layout(
    "folders", "{train,val,test}/", partial(_files_by_split, files=["{}/"]), _in_split_folders
)


def class_folders_of(names: Collection[str]) -> Layout:
    """A layout with a folder for each class, in the given folder or in its data/ or images/; others
    may be beside them, as in the whole of ImageNet.
    """

    def place(path: Path) -> Path | None:
        folders = (path, path / "data", path / "images")
        return next((f for f in folders if any((f / name).is_dir() for name in names)), None)

    def find_all(paths: list[Path], notes: Notes) -> Iterable[FoundClass]:
        folders = class_folders(paths[0], notes)
        return [class_in(folder, "", notes) for folder in folders if folder.name in names]

    content = f"one folder of images for each class, such as {next(iter(names))}/"
    return Layout("classes", content, lambda path: {content: place(path)}, find_all)


def parquet_of(dataset: str) -> Layout:
    """A layout with the parquet files of a data set on Hugging Face."""
    return Layout(
        "parquet",
        "train-….parquet, validation-….parquet and test-….parquet, at any depth",
        lambda path: {"*.parquet": next(path.rglob("*.parquet"), None)},
        lambda _, notes: read_parquet(notes.path, dataset),
    )


def csv_files(path: Path) -> Files:
    """The table of each split, and the images of all splits together or of each split."""
    tables = {f"{split}.csv": path / f"{split}.csv" for split in SPLITS}
    together = find_archive(path, "images")
    apart = {f"images-{split}.tar": find_archive(path, f"images-{split}") for split in SPLITS}
    if together or not any(apart.values()):
        return {**tables, "images/ or images.tar": together}
    return {**tables, **apart}


def in_tables(paths: list[Path], notes: Notes) -> Iterable[FoundClass]:
    """The classes in the tables, with their images, which are found by their names."""
    tables, places = paths[: len(SPLITS)], paths[len(SPLITS) :]
    files = [file for place in places for file in unpacked(place, notes.scratch).rglob("*")]
    images = FoundClass("", "images", sorted(file for file in files if is_image(file.name)))
    listings = dict(zip(SPLITS, map(read_list, tables), strict=True))
    return classes_in_lists([images], listings, notes)


CSV = Layout(
    "csv",
    "{train,val,test}.csv and the images in images/, images.tar or images-{train,val,test}.tar",
    csv_files,
    in_tables,
)


def benchmark(
    name: str, title: str, *layouts: Layout, split: Mapping[str, str], **attributes: Any
) -> Dataset:
    """A dataset of photographs, in some layouts, in split folders or in class folders."""
    read = partial(find, title, (*layouts, SPLIT_FOLDERS, class_folders_of(split)))
    return Dataset(name=name, channels=3, read=read, split=split, **attributes)


_pickle = partial(by_split, "pickle", read_arrays)
_FEW_SHOT_NPZ = by_split("npz", read_arrays, "few-shot-{}.npz")  # TADAM

# Images: Vinyals et al., "Matching Networks for One Shot Learning" (2016). Split: Ravi and
# Larochelle, "Optimization as a Model for Few-Shot Learning" (2017).
MINI_IMAGENET = benchmark(
    "mini-imagenet",
    "mini-ImageNet",
    CSV,
    _pickle("mini-imagenet-cache-{}.pkl"),
    _pickle("miniImageNet_category_split_{}.pickle", train="train_phase_train"),  # MetaOptNet
    _FEW_SHOT_NPZ,
    by_split("hdf5", read_hdf5, "{}_data.hdf5", "{}_labels.json", inside="miniimagenet"),
    parquet_of("mini-imagenet"),
    split=published_split("mini-imagenet"),
    summary="100 classes of ImageNet, up to 600 photographs of each",
    image_size=84,
    # The record publishes checksums, but no copy of them could be compared with the files
    # themselves, and a wrong one would refuse the right file. A damaged pickle is noticed when
    # it is read.
    archives=tuple(
        Archive(f"https://zenodo.org/record/7978538/files/{name}", name, None)
        for split in ("train", "validation", "test")
        for name in [f"mini-imagenet-cache-{split}.pkl"]
    ),
)

# Ren et al., "Meta-Learning for Semi-Supervised Few-Shot Classification" (2018).
TIERED_IMAGENET = benchmark(
    "tiered-imagenet",
    "tieredImageNet",
    by_split("png", read_arrays, "{}_images_png.pkl", "{}_labels.pkl"),
    by_split("npz", read_arrays, "{}_images.npz", "{}_labels.pkl"),
    split=published_split("tiered-imagenet"),
    summary="608 classes of ImageNet, 779,165 photographs",
    image_size=84,
)

# Bertinetto et al., "Meta-learning with differentiable closed-form solvers" (2019).
CIFAR_FS = benchmark(
    "cifar-fs",
    "CIFAR-FS",
    _pickle("CIFAR_FS_{}.pickle"),
    _FEW_SHOT_NPZ,
    split=published_split("cifar-fs"),
    summary="the 100 classes of CIFAR-100, 600 photographs of each",
    image_size=32,
)

# Oreshkin et al., "TADAM: Task dependent adaptive metric for improved few-shot learning" (2018).
FC100 = benchmark(
    "fc100",
    "FC100",
    _pickle("FC100_{}.pickle"),
    _FEW_SHOT_NPZ,
    split=published_split("fc100"),
    summary="the 100 classes of CIFAR-100, whole superclasses held out",
    image_size=32,
)

# Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", CNS-TR-2011-001 (2011).
_CUB = "CUB_200_2011"
_CUB_URL = f"https://data.caltech.edu/records/65de6-vp158/files/{_CUB}.tgz"
_CUB_140 = published_split("cub-140")
# Of the species counted from 0, the even ones train, those with i % 4 == 1 validate, and those with
# i % 4 == 3 test: the rule of the paper, of torchmeta, and of Chen et al., "A Closer Look at
# Few-shot Classification".
_QUARTERS = ("train", "val", "train", "test")
_CUB_SPLIT = {name: _QUARTERS[number % 4] for number, name in enumerate(sorted(_CUB_140))}


def _cub_archive(path: Path) -> Files:
    return {f"{_CUB}.tgz": path if path.is_file() else find_archive(path, _CUB)}


def _in_cub_archive(paths: list[Path], notes: Notes) -> Iterable[FoundClass]:
    folder = unpacked(paths[0], notes.scratch)
    inner = folder / _CUB
    return classes_in((inner if inner.is_dir() else folder) / "images", "", notes)


CUB = benchmark(
    "cub",
    "CUB-200-2011",
    by_split("hdf5", read_hdf5, "{}_data.hdf5", "{}_labels.json", inside="cub"),
    Layout("archive", f"{_CUB}.tgz or what it unpacks to", _cub_archive, _in_cub_archive),
    split=_CUB_SPLIT,
    summary="CUB-200-2011: 11,788 photographs of 200 species of birds",
    image_size=84,
    archives=(Archive(_CUB_URL, f"{_CUB}.tgz", "97eceeb196236b17998738112f37df78"),),
)

# As in Meta-Dataset, learn2learn and easyfsl.
CUB_140 = replace(
    CUB, name="cub-140", summary="the same photographs in the split 140/30/30", split=_CUB_140
)
