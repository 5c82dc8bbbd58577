"""From a dataset's name to an opened store: preparing, downloading and opening.

Under the data root, a dataset called `name` at 84×84 pixels is the store `name/84`, or
`name/84-center-crop` if its images were cropped instead of stretched.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gradshare.errors import DataError
from gradshare.tasks import glyphs
from gradshare.tasks.download import OnProgress, download
from gradshare.tasks.features import features_path, is_feature_store
from gradshare.tasks.glyphs import GLYPHS
from gradshare.tasks.images import ImageFormat, Resize, read_image
from gradshare.tasks.preparation import Preparation
from gradshare.tasks.readers.class_splits import with_splits
from gradshare.tasks.readers.dataset import Dataset, FoundClass, Notes
from gradshare.tasks.readers.folder import ClassSplit, find_classes, is_grey
from gradshare.tasks.registry import (
    DATASETS,
    dataset_of,
    prepare_command,
    prepared,
    require_new_name,
)
from gradshare.tasks.store import NO_VALIDATION, SPLITS, ImageStore, is_store
from gradshare.tasks.writing import NEW, ClassImages, clear_leftovers, fill, writing

IMAGE_SIZE = 84  # of images of the user's own, as of most papers' photographs
IMAGE_SIZES = range(8, 1025)


class Prepared(NamedTuple):
    """What `prepare_dataset` returns: an opened store, and whether it was written now."""

    store: ImageStore
    written: bool


def store_path(data_root: Path, name: str, image_size: int, resize: Resize = "stretch") -> Path:
    """The folder of a dataset's store."""
    return data_root / name / (f"{image_size}" if resize == "stretch" else f"{image_size}-{resize}")


def is_prepared(
    name: str, data_root: Path, image_size: int | None = None, resize: Resize = "stretch"
) -> bool:
    """Whether the store is there that `prepare_dataset` would write with the same arguments."""
    return is_store(store_path(data_root, name, _size_to_prepare(name, image_size), resize))


def open_dataset(
    name: str,
    data_root: Path | str,
    image_size: int | None = None,
    resize: Resize = "stretch",
    progress: OnProgress | None = None,
) -> ImageStore:
    """Open a dataset by its name. Glyphs are drawn now if they were not before.

    Args:
        name: "glyphs", "omniglot", "mini-imagenet", "cub", or the name that a folder of images was
            prepared under.
        data_root: where datasets are prepared.
        image_size: in pixels; None for the size that is usual, or the one size that a dataset of
            the user's own was prepared at.
        resize: see `ImageFormat`.
        progress: called after each class of glyphs that is drawn.

    Raises:
        DataError: the name is unknown; or the dataset is not prepared in this form, and the message
            has the command that prepares it; or its store is damaged, or holds images of another
            size than its folder's name says.
    """
    data_root = Path(data_root).expanduser()
    there = prepared(data_root).get(name, [])
    if not there:
        dataset_of(name, data_root)
    if is_feature_store(features := features_path(data_root, name)):
        raise DataError(
            f"dataset {name!r} holds features, not images; open it with "
            f"gradshare.FeatureStore.open({str(features)!r})"
        )
    if image_size is None:
        image_size = _usual_size(name, data_root, there, resize)
    path = store_path(data_root, name, image_size, resize)
    if path.name in there:
        return _opened(path, image_size)
    if name == GLYPHS.name:
        return prepare_dataset(
            name, data_root, image_size=image_size, resize=resize, progress=progress
        ).store
    command = prepare_command(name, data_root, image_size, resize)
    if there:
        raise DataError(
            f"dataset {name!r} is prepared in {data_root} at {' and '.join(there)}, not at "
            f"{path.name}; use what there is, or run `{command}`"
        )
    raise DataError(f"dataset {name!r} is not prepared in {data_root}; run `{command}`")


def prepare_dataset(
    name: str,
    data_root: Path | str,
    *,
    path: Path | str | None = None,
    folder: bool = False,
    image_size: int | None = None,
    resize: Resize = "stretch",
    seed: int | None = None,
    split: ClassSplit | None = None,
    group: str | None = None,
    skip_bad: bool = False,
    force: bool = False,
    progress: OnProgress | None = None,
) -> Prepared:
    """Read a dataset's images, or draw glyphs, and write them as a store.

    A store that exists, and that the same arguments would write, is opened and left as it is. Of
    two processes that prepare the same store at once, the second waits for the first and opens what
    it wrote. The store's `source` has what was left out (`skipped`) and which images have the
    same pixels (`duplicates`).

    Args:
        name: as for `open_dataset`, or a new name for a folder of images.
        data_root: where datasets are prepared.
        path: what to read: an archive or a folder, or a table of own images. None for glyphs.
        folder: read `path` as images of the user's own.
        image_size: in pixels; None for the size that is usual.
        resize: see `ImageFormat`.
        seed: draws glyphs, or the splits of own images; None for 0. Other datasets take no seed.
        split: the shares of the classes for train, val and test, or the path of a file that names
            them; for own images.
        group: a regular expression that finds an image's group in its path; for own images.
        skip_bad: leave out images that cannot be read.
        force: replace a store that exists.
        progress: called after each class that is read.

    Raises:
        DataError: a name, size or seed that does not fit, a store that other arguments wrote,
            images that cannot be used, or no room or permission to write.
        ConfigError: a split or group that is malformed.
    """
    data_root = Path(data_root).expanduser()
    path = None if path is None else Path(path).expanduser()
    check_name(name, data_root, folder)
    image_size = _size_to_prepare(name, image_size)
    target = store_path(data_root, name, image_size, resize)
    asked = Preparation(path, folder, resize, seed, split, group, skip_bad)
    if is_store(target) and not force:
        return _there(target, image_size, asked)
    dataset = Dataset(name, "images of your own", None, IMAGE_SIZE) if folder else DATASETS[name]
    asked.require_use(name, data_root)
    if target.is_dir() and not is_store(target) and any(target.iterdir()):
        raise DataError(
            f"{target} is in the way: it holds files but no prepared dataset; move it elsewhere"
        )
    clear_leftovers(data_root)
    try:
        with writing(target) as workspace:
            if is_store(target) and not force:  # another process has written it
                return _there(target, image_size, asked)
            if path is None:
                content = _drawn(image_size, seed or 0)
            else:
                notes = Notes(path, workspace / "unpacked")
                content = _read(dataset, asked, notes, image_size)
            _require_room(target, content.planes * image_size**2)
            fill(
                workspace / NEW,
                _reported(content, progress),
                name=name,
                rotate_classes=dataset.rotate_classes,
                source={"gradshare": version("gradshare"), **content.source},
            )
    except OSError as error:
        raise DataError(
            f"cannot prepare {name!r} in {target} ({error}); free space there, or choose a "
            "folder you may write to with --data-root"
        ) from error
    return Prepared(ImageStore.open(target), written=True)


def check_name(name: str, data_root: Path, folder: bool) -> None:
    """Raise DataError if no dataset has a name, or if it cannot be that of a folder of images."""
    if folder:
        require_new_name(name)
    else:
        dataset_of(name, data_root)


def download_dataset(name: str, data_root: Path, progress: OnProgress | None = None) -> Path:
    """Download those archives of a dataset that are not in `<data_root>/<name>/archives` yet.

    Returns:
        The path to give to `prepare_dataset`.

    Raises:
        DataError: the dataset is not published for download, or the download fails.
    """
    dataset = dataset_of(name, data_root)
    if not dataset.archives:
        raise DataError(f"dataset {name!r} is not published for download; leave out --download")
    folder = Path(data_root).expanduser() / name / "archives"
    paths = [download(archive, folder, progress) for archive in dataset.archives]
    return paths[0] if len(paths) == 1 else folder


class _Content(NamedTuple):
    """What is written to a store: its classes, which are read or drawn as they are taken; their
    number; the number of images times channels; and the `source`.
    """

    classes: Iterator[ClassImages]
    number: int
    planes: int
    source: dict[str, Any]


def _drawn(image_size: int, seed: int) -> _Content:
    number = len(glyphs.letters())
    classes = glyphs.generate(image_size, seed)
    return _Content(classes, number, number * glyphs.SAMPLES, glyphs.source(seed))


def _read(dataset: Dataset, asked: Preparation, notes: Notes, image_size: int) -> _Content:
    with notes.blaming():
        if dataset.read is None:
            found = find_classes(notes, seed=asked.seed, split=asked.split, group=asked.group)
        else:
            found = dataset.read(notes)
        found = with_splits(found, notes, dataset)
        channels = dataset.channels or (1 if is_grey(found) else 3)
    if dataset.split and "val" not in dataset.split.values():
        notes.splits = NO_VALIDATION
    found.sort(key=lambda item: (SPLITS.index(item.split), item.name))
    source = {"resize": asked.resize, **asked.record}
    if notes.splits is not None:
        source["splits"] = notes.splits
    if notes.seed is not None:
        source["seed"] = notes.seed
    # What is noted while the images are decoded is written too: the index comes last.
    source |= {"skipped": notes.skipped, "duplicates": notes.duplicates}
    form = ImageFormat(image_size, channels, asked.resize)
    classes = _decoded(found, form, notes, skip_bad=asked.skip_bad)
    return _Content(classes, len(found), channels * sum(len(c.images) for c in found), source)


def _decoded(
    found: Sequence[FoundClass], form: ImageFormat, notes: Notes, *, skip_bad: bool
) -> Iterator[ClassImages]:
    """Decode the images of some classes, one class at a time. Those that are there twice or cannot
    be read are noted.

    Raises:
        DataError: in the end, if images cannot be read and are not to be left out (`skip_bad`); or
            a class has none that can.
    """
    first_of: dict[bytes, tuple[FoundClass, str]] = {}
    with notes.blaming():
        for item in found:
            images, groups = [], []
            for row, image in enumerate(item.images):
                name = f"image {row} of class {item.name!r}"
                where = f"{name} in {notes.path}"
                if isinstance(image, Path):
                    name = notes.name(image)
                try:
                    pixels = read_image(image, where, form)
                except DataError as error:
                    notes.unread(name, error)
                    continue
                images.append(pixels)
                groups += [item.groups[row]] if item.groups else []
                content = hashlib.sha256(pixels.tobytes()).digest()
                other, first = first_of.setdefault(content, (item, name))
                if first != name:
                    where = "in two splits" if item.split != other.split else "in two classes"
                    where = "within a class" if item is other else where
                    notes.duplicates.setdefault(where, []).append(f"{first} = {name}")
            if not images and skip_bad:
                raise DataError(
                    f"class {item.name!r} of {notes.path} has no image that can be read; replace "
                    "them, or remove the class"
                )
            if skip_bad or not notes.unreadable:
                yield ClassImages(item.split, item.name, np.stack(images), groups or None)
        if not skip_bad:
            notes.refuse_unreadable()


def _there(target: Path, image_size: int, asked: Preparation) -> Prepared:
    """A store that is there already, if the same arguments would write it."""
    store = _opened(target, image_size)
    asked.require_same(store)
    return Prepared(store, written=False)


def _opened(path: Path, image_size: int) -> ImageStore:
    """The store in the folder of its size. Raise DataError if its images have another size."""
    store = ImageStore.open(path)
    size = store.image_shape[1]
    if size != image_size:
        raise DataError(
            f"the images in {path} are of {size} pixels, not {image_size}; name the folder by "
            "their size"
        )
    return store


def _reported(content: _Content, progress: OnProgress | None) -> Iterator[ClassImages]:
    for done, item in enumerate(content.classes, start=1):
        yield item
        if progress is not None:
            progress(done, content.number)


def _require_room(target: Path, size: int) -> None:
    """Raise DataError if some bytes do not fit on the disk, before anything is written."""
    free = shutil.disk_usage(target.parent).free
    if free < size:
        raise DataError(
            f"{target} needs {size / 1e9:.1f} GB, {target.parent} has {free / 1e9:.1f} GB free; "
            "free some, choose a smaller --image-size, or another --data-root"
        )


def _usual_size(name: str, data_root: Path, there: Sequence[str], resize: Resize) -> int:
    """The size to open a dataset at when the user does not say."""
    if name in DATASETS:
        return DATASETS[name].image_size
    forms = [form.partition("-") for form in there]
    sizes = [s for s, _, how in forms if s.isdecimal() and (how or "stretch") == resize]
    if len(sizes) != 1:
        raise DataError(
            f"dataset {name!r} is prepared in {data_root} at {' and '.join(there)}; say which "
            "with --image-size and --resize"
        )
    return int(sizes[0])


def _size_to_prepare(name: str, asked: int | None) -> int:
    """The size that a dataset is prepared at. Raise DataError if one out of range is asked for."""
    if asked is None:
        return DATASETS[name].image_size if name in DATASETS else IMAGE_SIZE
    if asked not in IMAGE_SIZES:
        raise DataError(
            f"image size {asked} is out of range; use {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]} pixels"
        )
    return asked
