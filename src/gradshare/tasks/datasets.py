"""From a dataset's name to an opened store: preparing, downloading and opening.

Under the data root, a dataset called `name` at 84×84 pixels is the store `name/84`, or
`name/84-center-crop` if its images were cropped instead of stretched.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gradshare.errors import DataError
from gradshare.tasks import glyphs
from gradshare.tasks.dataset import Dataset, FoundClass, require_classes
from gradshare.tasks.download import OnProgress, download
from gradshare.tasks.features import features_path, is_feature_store
from gradshare.tasks.folder import IMAGE_SIZE, given_splits, is_grey, own_dataset
from gradshare.tasks.glyphs import GLYPHS
from gradshare.tasks.images import ImageFormat, Resize, read_image
from gradshare.tasks.registry import (
    DATASETS,
    dataset_of,
    prepare_command,
    prepared,
    require_new_name,
)
from gradshare.tasks.store import SPLITS, ImageStore, is_store
from gradshare.tasks.writing import ClassImages, clear_leftovers, fill, writing

IMAGE_SIZES = range(8, 1025)


class Prepared(NamedTuple):
    """What `prepare_dataset` returns.

    Attributes:
        store: opened.
        written: whether it was written now; False if it was there already.
    """

    store: ImageStore
    written: bool


def store_path(data_root: Path, name: str, image_size: int, resize: Resize = "stretch") -> Path:
    """The folder of a dataset's store."""
    return data_root / name / f"{image_size}{_suffix(resize)}"


def is_prepared(
    name: str, data_root: Path, image_size: int | None = None, resize: Resize = "stretch"
) -> bool:
    """Whether the store is there that `prepare_dataset` would write with the same arguments.

    Raises:
        DataError: a size out of range.
    """
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
        image_size: in pixels; None is the size the field uses, or the one size that a dataset of
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
    force: bool = False,
    progress: OnProgress | None = None,
) -> Prepared:
    """Read a dataset's images, or draw glyphs, and write them as a store.

    A store that exists is opened and left as it is. Of two processes that prepare the same store
    at once, the second waits for the first and opens what it wrote.

    Args:
        name: as for `open_dataset`, or a new name for a folder of images.
        data_root: where datasets are prepared.
        path: what to read: an archive or a folder. None for glyphs.
        folder: read `path` as a folder of class folders.
        image_size: in pixels; None is the size the field uses.
        resize: see `ImageFormat`.
        seed: draws glyphs, or a folder's splits; None is 0. Other datasets take none.
        force: replace a store that exists.
        progress: called after each class that is read.

    Raises:
        DataError: a name, size or seed that does not fit, images that cannot be used, or no room
            or permission to write.
    """
    data_root = Path(data_root).expanduser()
    path = None if path is None else Path(path).expanduser()
    check_name(name, data_root, folder)
    image_size = _size_to_prepare(name, image_size)
    target = store_path(data_root, name, image_size, resize)
    if is_store(target) and not force:
        return Prepared(_opened(target, image_size), written=False)
    dataset = own_dataset(name, seed) if folder else DATASETS[name]
    _require_arguments(name, path, folder, resize, seed)
    if target.is_dir() and not is_store(target) and any(target.iterdir()):
        raise DataError(
            f"{target} is in the way: it holds files but no prepared dataset; move it elsewhere"
        )
    clear_leftovers(data_root)
    try:
        with writing(target) as workspace:
            if is_store(target) and not force:  # another process has written it
                return Prepared(_opened(target, image_size), written=False)
            if path is None:
                content = _drawn(image_size, seed or 0)
            else:
                content = _found(dataset, path, workspace / "unpacked", image_size, resize)
                if folder and (given := given_splits(path)):
                    content.source["splits"] = given
                elif folder:
                    number = seed or 0
                    content.source.update(splits=f"drawn with seed {number}", seed=number)
            _require_room(target, content.images, image_size)
            fill(
                workspace / "store",
                _reported(content, progress),
                name=name,
                rotate_classes=dataset.rotate_classes,
                source={"gradshare": version("gradshare"), **content.source},
            )
            if is_store(target):
                target.rename(workspace / "replaced")
            (workspace / "store").rename(target)
    except OSError as error:
        raise DataError(
            f"cannot prepare {name!r} in {target} ({error}); free space there, or choose a "
            "folder you may write to with --data-root"
        ) from error
    return Prepared(ImageStore.open(target), written=True)


def check_name(name: str, data_root: Path, folder: bool) -> None:
    """Check a name before anything is read or downloaded.

    Args:
        name: to prepare a dataset under.
        data_root: where datasets are prepared.
        folder: whether it is to name a folder of images.

    Raises:
        DataError: it names no dataset, or for a folder, a published one or none that it can have.
    """
    if folder:
        require_new_name(name)
    else:
        dataset_of(name, data_root)


def download_dataset(name: str, data_root: Path, progress: OnProgress | None = None) -> Path:
    """Download those archives of a dataset that are not there yet.

    Args:
        name: one of `DATASETS`.
        data_root: the archives are kept in `<data_root>/<name>/archives`.
        progress: called with the bytes of the current archive.

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
    """What is written to a store.

    Attributes:
        classes: of all splits; their images are read or drawn as they are taken.
        number: of classes.
        images: how many there are, times their channels.
        source: for the store's record.
    """

    classes: Iterator[ClassImages]
    number: int
    images: int
    source: dict[str, Any]


def _drawn(image_size: int, seed: int) -> _Content:
    number = len(glyphs.letters())
    classes = glyphs.generate(image_size, seed)
    return _Content(classes, number, number * glyphs.SAMPLES, glyphs.source(seed))


def _found(
    dataset: Dataset, path: Path, scratch: Path, image_size: int, resize: Resize
) -> _Content:
    assert dataset.read is not None, "only glyphs are not read"
    with _blaming(path, scratch):
        found = dataset.read(path, scratch)
        require_classes(found, path, dataset.classes)
        found.sort(key=lambda item: (SPLITS.index(item.split), item.name))
        channels = dataset.channels or (1 if is_grey(found) else 3)
    classes = _decoded(found, ImageFormat(image_size, channels, resize), path, scratch)
    images = channels * sum(len(item.images) for item in found)
    return _Content(classes, len(found), images, {"from": str(path), "resize": resize})


def _decoded(
    found: Sequence[FoundClass], form: ImageFormat, path: Path, scratch: Path
) -> Iterator[ClassImages]:
    with _blaming(path, scratch):
        for item in found:
            images = [
                read_image(image, f"image {row} of class {item.name!r} in {path}", form)
                for row, image in enumerate(item.images)
            ]
            yield ClassImages(item.split, item.name, np.stack(images))


@contextmanager
def _blaming(path: Path, scratch: Path) -> Iterator[None]:
    """Name what the user gave in errors, and not the folder that it is unpacked into."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"{error.filename or path} cannot be read ({error.strerror or error}); mend its "
            "permissions, or give a copy that can be read"
        ) from error
    except DataError as error:
        archives = path if path.is_dir() else path.parent
        raise DataError(str(error).replace(str(scratch), str(archives))) from error


def _reported(content: _Content, progress: OnProgress | None) -> Iterator[ClassImages]:
    for done, item in enumerate(content.classes, start=1):
        yield item
        if progress is not None:
            progress(done, content.number)


def _require_arguments(
    name: str, path: Path | None, folder: bool, resize: Resize, seed: int | None
) -> None:
    """Refuse arguments that would change nothing, or a path that is not there."""
    if name == GLYPHS.name:
        if path is not None:
            raise DataError(f"glyphs are drawn, not read: leave out {path}")
        if resize != "stretch":
            raise DataError(
                f"glyphs are drawn at their final size: leave out the resize {resize!r}"
            )
    elif path is None:
        raise DataError(
            f"dataset {name!r} is read from a file or folder; give its path (--from PATH), or "
            "--download if it is published"
        )
    elif not folder:
        if seed is not None:
            raise DataError(
                f"the splits of {name!r} are fixed, so seed {seed} would change nothing; leave "
                "out --seed"
            )
        if not path.exists():
            raise DataError(f"there is no {path}; give the archive or folder of {name!r}")


def _require_room(target: Path, images: int, image_size: int) -> None:
    """Refuse a store that does not fit on the disk, before anything is written."""
    size = images * image_size**2
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
    suffix = _suffix(resize)
    sizes = [form.removesuffix(suffix) for form in there if form.endswith(suffix)]
    sizes = [size for size in sizes if size.isdecimal()]
    if len(sizes) != 1:
        raise DataError(
            f"dataset {name!r} is prepared in {data_root} at {' and '.join(there)}; say which "
            "with --image-size and --resize"
        )
    return int(sizes[0])


def _size_to_prepare(name: str, asked: int | None) -> int:
    """The size that a dataset is prepared at.

    Raises:
        DataError: the one asked for is out of range.
    """
    if asked is None:
        return DATASETS[name].image_size if name in DATASETS else IMAGE_SIZE
    if asked not in IMAGE_SIZES:
        raise DataError(
            f"image size {asked} is out of range; use {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]} pixels"
        )
    return asked


def _suffix(resize: Resize) -> str:
    return "" if resize == "stretch" else f"-{resize}"


def _opened(path: Path, image_size: int) -> ImageStore:
    """The store that is in the folder of its size.

    Raises:
        DataError: it is damaged, or holds images of another size.
    """
    store = ImageStore.open(path)
    size = store.image_shape[1]
    if size != image_size:
        raise DataError(
            f"the images in {path} are of {size} pixels, not {image_size}; name the folder by "
            "their size"
        )
    return store
