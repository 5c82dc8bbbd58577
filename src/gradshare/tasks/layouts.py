"""The layouts in which benchmarks circulate with their published splits.

Each layout is read by a small function, and all of them return the same description of a dataset:
one `FoundClass` for each class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from gradshare.errors import DataError
from gradshare.tasks import labelled
from gradshare.tasks.archives import find_archive, listing, unpacked
from gradshare.tasks.dataset import FoundClass
from gradshare.tasks.folder import class_folders, image_files
from gradshare.tasks.lists import NAMES, classes_in_lists, is_image, places_of, read_list
from gradshare.tasks.published import published_split
from gradshare.tasks.store import SPLITS

Files = Mapping[str, Path | None]
"""What a layout needs: the files by what an error calls them. They may not exist."""


class Layout(NamedTuple):
    """A layout of a benchmark.

    Attributes:
        name: for errors.
        content: what it consists of, for errors.
        files: what it needs in a folder.
        find: finds the classes in the folder, with another one to unpack archives into.
    """

    name: str
    content: str
    files: Callable[[Path], Files]
    find: Callable[[Path, Path], Iterable[FoundClass]]


def find(title: str, layouts: Iterable[Layout], path: Path, scratch: Path) -> list[FoundClass]:
    """Find the classes of a benchmark.

    Args:
        title: of the benchmark, for errors.
        layouts: in which it circulates.
        path: a folder in one of them.
        scratch: see `Reader`.

    Raises:
        DataError: the folder is in none of the layouts, or something is missing or damaged.
    """
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
        read: finds the classes of a split, given its name and files.
        files: their names, with {} in place of the split's name; that of a folder ends in /.
        train: what the training split is called in them.
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


def in_folder(split: str, folder: Path) -> list[FoundClass]:
    """The classes of a split that has one folder of images a class."""
    return [FoundClass(split, inner.name, image_files(inner)) for inner in class_folders(folder)]


def class_folders_of(dataset: str) -> Layout:
    """A layout with one folder for each class of the published split, in the folder or in data/ or
    images/. Others may be beside them, as in the whole of ImageNet.
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
        lambda path, _scratch: labelled.read_parquet(path, dataset),
    )


def csv_files(path: Path) -> Files:
    """A table of images for each split, and their images together or by split."""
    tables = {f"{split}.csv": path / f"{split}.csv" for split in SPLITS}
    together = find_archive(path, "images")
    apart = {f"images-{split}.tar": find_archive(path, f"images-{split}") for split in SPLITS}
    if together or not any(apart.values()):
        return {**tables, "images/ or images.tar": together}
    return {**tables, **apart}


def in_tables(path: Path, scratch: Path) -> Iterable[FoundClass]:
    """The classes that tables list, and their images by their names."""
    images: list[Path] = []
    for name, place in csv_files(path).items():
        if place is not None and not name.endswith(".csv"):
            files = sorted(unpacked(place, scratch).rglob("*"))
            images += [file for file in files if is_image(file.name)]
    listings = {split: read_list(path / f"{split}.csv") for split in SPLITS}
    return classes_in_lists(listings, places_of(images, lambda i: "/".join(i.parts[-2:])), path)


CSV = Layout(
    "csv",
    "{train,val,test}.csv and the images in images/, images.tar or images-{train,val,test}.tar",
    csv_files,
    in_tables,
)
