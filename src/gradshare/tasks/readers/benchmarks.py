"""mini-ImageNet, tieredImageNet, CIFAR-FS and FC100, read in the layouts in which they circulate.

A layout is read by a small function, and each gives the classes in the same form. A copy may have
fewer images a class than the original: the store's index records how many. ImageNet's terms allow
non-commercial research only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from gradshare.errors import DataError
from gradshare.tasks.readers.archives import find_archive, listing, unpacked
from gradshare.tasks.readers.class_splits import published_split
from gradshare.tasks.readers.dataset import Archive, Dataset, FoundClass
from gradshare.tasks.readers.folder import class_folders, image_files, in_folder
from gradshare.tasks.readers.labelled import read_arrays, read_hdf5, read_parquet
from gradshare.tasks.readers.lists import NAMES, classes_in_lists, is_image, places_of, read_list
from gradshare.tasks.store import SPLITS

Files = Mapping[str, Path | None]
"""The files that a layout needs, by their names in errors. They need not exist."""


class Layout(NamedTuple):
    """A layout of a benchmark: its name and content, for errors; the files that it needs in a
    folder; and its `Reader`, which gets that folder.
    """

    name: str
    content: str
    files: Callable[[Path], Files]
    find: Callable[[Path, Path], Iterable[FoundClass]]


def find(title: str, layouts: Iterable[Layout], path: Path, scratch: Path) -> list[FoundClass]:
    """Find the classes of a benchmark in the first of some layouts whose files are all there."""
    accepted = "the layouts that can be read are" + "".join(
        f"\n  {layout.name}: {layout.content}" for layout in layouts
    )
    if not path.is_dir():
        raise DataError(f"{path} is a file, not a folder; unpack it; {accepted}")
    lacking = ""
    for layout in layouts:
        files = layout.files(path)
        missing = [name for name, file in files.items() if file is None or not file.exists()]
        if not missing:
            return list(layout.find(path, scratch))
        if len(missing) < len(files):
            lacking += f"for {layout.name} it lacks {', '.join(missing)}; "
    raise DataError(
        f"{path} is not a complete copy of {title}: found {listing(path)}; {lacking}{accepted}"
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
        files: their names, with {} for the split. The name of a folder ends in /.
        train: the name of the training split in them.
        inside: a folder that may hold them.
    """

    def files_of(path: Path) -> dict[str, Path | None]:
        folder = path / inside if (path / inside).is_dir() else path
        found: dict[str, Path | None] = {}
        for split in SPLITS:
            words = (train,) if split == "train" else NAMES[split]
            for file in files:
                paths = [folder / file.format(word) for word in words]
                found[file.format(words[0])] = next((p for p in paths if p.exists()), None)
        return found

    def find_all(path: Path, _scratch: Path) -> Iterable[FoundClass]:
        paths = iter(files_of(path).values())
        for split in SPLITS:
            yield from read(split, *(next(paths) for _ in files))

    content = ", ".join(file.format(f"{{{train},val,test}}") for file in files)
    return Layout(name, content, files_of, find_all)


def class_folders_of(dataset: str) -> Layout:
    """A layout with a folder for each class, in the given folder or in its data/ or images/; others
    may be beside them, as in the whole of ImageNet.
    """
    names = published_split(dataset)

    def place(path: Path) -> Path | None:
        folders = (path, path / "data", path / "images")
        return next((f for f in folders if any((f / name).is_dir() for name in names)), None)

    def find_all(path: Path, _scratch: Path) -> Iterable[FoundClass]:
        folders = [f for f in class_folders(place(path) or path) if f.name in names]
        return [FoundClass("", folder.name, image_files(folder)) for folder in folders]

    content = f"one folder of images for each class, such as {next(iter(names))}/"
    return Layout("classes", content, lambda path: {content: place(path)}, find_all)


def parquet_of(dataset: str) -> Layout:
    """A layout with the parquet files of a data set on Hugging Face."""
    return Layout(
        "parquet",
        "train-….parquet, validation-….parquet and test-….parquet, at any depth",
        lambda path: {"*.parquet": next(path.rglob("*.parquet"), None)},
        lambda path, _scratch: read_parquet(path, dataset),
    )


def csv_files(path: Path) -> Files:
    """The table of each split, and the images of all splits together or of each split."""
    tables = {f"{split}.csv": path / f"{split}.csv" for split in SPLITS}
    together = find_archive(path, "images")
    apart = {f"images-{split}.tar": find_archive(path, f"images-{split}") for split in SPLITS}
    if together or not any(apart.values()):
        return {**tables, "images/ or images.tar": together}
    return {**tables, **apart}


def in_tables(path: Path, scratch: Path) -> Iterable[FoundClass]:
    """The classes in the tables, with their images, which are found by their names."""
    places = [p for name, p in csv_files(path).items() if p and not name.endswith(".csv")]
    files = [file for place in places for file in sorted(unpacked(place, scratch).rglob("*"))]
    images = [file for file in files if is_image(file.name)]
    listings = {split: read_list(path / f"{split}.csv") for split in SPLITS}
    return classes_in_lists(listings, places_of(images, lambda i: "/".join(i.parts[-2:])), path)


CSV = Layout(
    "csv",
    "{train,val,test}.csv and the images in images/, images.tar or images-{train,val,test}.tar",
    csv_files,
    in_tables,
)


def _benchmark(name: str, title: str, *layouts: Layout, **attributes: Any) -> Dataset:
    folders = by_split("folders", in_folder, "{}/")  # as the MAML++ code has it
    return Dataset(
        name=name,
        channels=3,
        read=partial(find, title, (*layouts, folders, class_folders_of(name))),
        split=published_split(name),
        **attributes,
    )


_pickle = partial(by_split, "pickle", read_arrays)
_FEW_SHOT_NPZ = by_split("npz", read_arrays, "few-shot-{}.npz")  # TADAM

# Images: Vinyals et al., "Matching Networks for One Shot Learning" (2016). Split: Ravi and
# Larochelle, "Optimization as a Model for Few-Shot Learning" (2017).
MINI_IMAGENET = _benchmark(
    "mini-imagenet",
    "mini-ImageNet",
    CSV,
    _pickle("mini-imagenet-cache-{}.pkl"),
    _pickle("miniImageNet_category_split_{}.pickle", train="train_phase_train"),  # MetaOptNet
    _FEW_SHOT_NPZ,
    by_split("hdf5", read_hdf5, "{}_data.hdf5", "{}_labels.json", inside="miniimagenet"),
    parquet_of("mini-imagenet"),
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
TIERED_IMAGENET = _benchmark(
    "tiered-imagenet",
    "tieredImageNet",
    by_split("png", read_arrays, "{}_images_png.pkl", "{}_labels.pkl"),
    by_split("npz", read_arrays, "{}_images.npz", "{}_labels.pkl"),
    summary="608 classes of ImageNet, 779,165 photographs",
    image_size=84,
)

# Bertinetto et al., "Meta-learning with differentiable closed-form solvers" (2019).
CIFAR_FS = _benchmark(
    "cifar-fs",
    "CIFAR-FS",
    _pickle("CIFAR_FS_{}.pickle"),
    _FEW_SHOT_NPZ,
    summary="the 100 classes of CIFAR-100, 600 photographs of each",
    image_size=32,
)

# Oreshkin et al., "TADAM: Task dependent adaptive metric for improved few-shot learning" (2018).
FC100 = _benchmark(
    "fc100",
    "FC100",
    _pickle("FC100_{}.pickle"),
    _FEW_SHOT_NPZ,
    summary="the 100 classes of CIFAR-100, whole superclasses held out",
    image_size=32,
)
