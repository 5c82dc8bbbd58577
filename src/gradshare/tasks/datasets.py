"""Which datasets there are, and how to get from a name to an opened store.

Under the data root, a dataset called `name` at 84×84 pixels is the store `name/84`, or
`name/84-center-crop` if its images were cropped instead of stretched.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import re
import shlex
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from gradshare.errors import SIGNAL_STATUS, DataError
from gradshare.tasks import glyphs
from gradshare.tasks.cub import CUB
from gradshare.tasks.dataset import Dataset
from gradshare.tasks.download import OnProgress, download
from gradshare.tasks.folder import find_classes, is_grey, read_classes
from gradshare.tasks.glyphs import GLYPHS
from gradshare.tasks.images import ImageFormat, Resize
from gradshare.tasks.mini_imagenet import MINI_IMAGENET
from gradshare.tasks.omniglot import OMNIGLOT
from gradshare.tasks.store import ClassImages, ImageStore, write_store

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset for dataset in (GLYPHS, OMNIGLOT, MINI_IMAGENET, CUB)
}

DEFAULT_DATA_ROOT = Path("data")
FOLDER_IMAGE_SIZE = 84  # of images of the user's own: the field's size for photographs
IMAGE_SIZES = range(8, 1025)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Prepared(NamedTuple):
    """What `prepare_dataset` hands back.

    Attributes:
        store: opened.
        written: whether it was written now; False if it was there already.
    """

    store: ImageStore
    written: bool


def store_path(data_root: Path, name: str, image_size: int, resize: Resize = "stretch") -> Path:
    """The folder of a dataset's store."""
    return data_root / name / f"{image_size}{_suffix(resize)}"


def prepared(data_root: Path) -> dict[str, list[str]]:
    """What there is under a data root: of each dataset, the names of its stores ("84")."""
    found: dict[str, list[str]] = {}
    for index in sorted(data_root.glob("[!.]*/[!.]*/index.json")):
        found.setdefault(index.parts[-3], []).append(index.parts[-2])
    return found


def is_prepared(
    name: str,
    data_root: Path,
    image_size: int | None = None,
    resize: Resize = "stretch",
) -> bool:
    """Whether the store is there that `prepare_dataset` would write with the same arguments.

    Raises:
        DataError: a size out of range.
    """
    size = _size_to_prepare(name, image_size)
    return _is_store(store_path(data_root, name, size, resize))


def open_dataset(
    name: str,
    data_root: Path | str,
    image_size: int | None = None,
    resize: Resize = "stretch",
    progress: OnProgress | None = None,
) -> ImageStore:
    """Open a dataset by its name. Glyphs are drawn now if they were not before.

    Args:
        name: one of `DATASETS`, or the name that a folder of images was prepared under.
        data_root: where datasets are prepared.
        image_size: in pixels; None is the size the field uses, or the one size that a dataset of
            the user's own was prepared at.
        resize: see `ImageFormat`.
        progress: called after each class of glyphs that is drawn.

    Raises:
        DataError: there is no dataset of the name, or it is not prepared in this form; the
            message has the command that prepares it. Or its store is damaged, or holds images of
            another size than its folder's name says.
    """
    data_root = Path(data_root).expanduser()
    there = prepared(data_root).get(name, [])
    if name not in DATASETS and not there:
        raise _unknown(name, data_root)
    if image_size is None:
        image_size = _usual_size(name, data_root, there, resize)
    path = store_path(data_root, name, image_size, resize)
    if path.name in there:
        return _opened(data_root, name, image_size, resize)
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

    A store that exists is opened and left as it is. Where two processes prepare the same store
    at once, the first to finish wins and the other opens what it wrote.

    Args:
        name: one of `DATASETS`, or a new name for a folder of images.
        data_root: where datasets are prepared.
        path: what to read: an archive or a folder. None for glyphs.
        folder: read `path` as a folder of class folders (see `gradshare.tasks.folder`).
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
    if _is_store(target) and not force:
        return Prepared(_opened(data_root, name, image_size, resize), written=False)
    if name == GLYPHS.name:
        images = _drawn(path, image_size, resize, seed)
    elif path is None:
        raise DataError(f"dataset {name!r} is read from a file or folder; say where it is")
    elif folder:
        images = _found(path, image_size, resize, seed)
    else:
        images = _read(DATASETS[name], path, image_size, resize, seed)
    if images.count is not None:
        _check_space(target, images.count * images.channels * image_size**2)
    return _write(target, name, images, force, progress)


def check_name(name: str, data_root: Path, folder: bool) -> None:
    """Check a name before anything is read or downloaded.

    Args:
        name: to prepare a dataset under.
        data_root: where datasets are prepared.
        folder: whether it is to name a folder of images.

    Raises:
        DataError: a name that is not one of `DATASETS`, or for a folder, one that is, or one
            that cannot be a folder's name.
    """
    if not folder:
        if name not in DATASETS:
            raise _unknown(name, data_root)
    elif name in DATASETS:
        raise DataError(
            f"{name!r} is the name of a dataset with a format of its own; leave out "
            "--format folder, or give your images another name"
        )
    elif not NAME.fullmatch(name):
        raise DataError(
            f"{name!r} cannot name a dataset, since it names its folder; use letters, digits, "
            "'.', '_' and '-', the first a letter or digit"
        )


def download_dataset(name: str, data_root: Path, progress: OnProgress | None = None) -> Path:
    """Download a dataset's archives, as far as they are not there yet.

    Args:
        name: one of `DATASETS`.
        data_root: the archives are kept in `<data_root>/<name>/archives`.
        progress: called with the bytes of the current archive.

    Returns:
        What `prepare_dataset` takes as its path.

    Raises:
        DataError: the dataset is not published for download, or the download fails.
    """
    dataset = DATASETS.get(name)
    if dataset is None:
        raise _unknown(name, data_root)
    if not dataset.archives:
        reason = "drawn, not downloaded" if name == GLYPHS.name else "not published for download"
        remedy = "leave out --download" if name == GLYPHS.name else "use --from PATH"
        raise DataError(f"dataset {name!r} is {reason}; {remedy}")
    folder = Path(data_root).expanduser() / name / "archives"
    paths = [download(archive, folder, progress) for archive in dataset.archives]
    return paths[0] if len(paths) == 1 else folder


def prepare_command(
    name: str, data_root: Path, image_size: int | None = None, resize: Resize = "stretch"
) -> str:
    """The command line that prepares a dataset."""
    words = ["gradshare", "data", "prepare", name]
    dataset = DATASETS.get(name)
    if dataset is None:
        words += ["--format", "folder", "--from", "FOLDER"]
    elif dataset.archives:
        words += ["--download"]
    elif dataset.read is not None:
        words += ["--from", "PATH"]
    if image_size is not None:
        words += ["--image-size", str(image_size)]
    if resize != "stretch":
        words += ["--resize", resize]
    if data_root != DEFAULT_DATA_ROOT:
        words += ["--data-root", str(data_root)]
    return shlex.join(words)


@dataclass(frozen=True)
class _Images:
    """What is to be written to a store.

    Attributes:
        classes: of all splits.
        class_count: how many there will be, None if only reading tells.
        count: how many images there will be, None if only reading tells.
        channels: of each image.
        rotate_classes: see `ImageStore`.
        source: for the record.
    """

    classes: Iterable[ClassImages]
    class_count: int | None
    count: int | None
    channels: int
    rotate_classes: bool
    source: Mapping[str, Any]


def _drawn(path: Path | None, image_size: int, resize: Resize, seed: int | None) -> _Images:
    if path is not None:
        raise DataError(f"glyphs are drawn, not read: leave out {path}")
    if resize != "stretch":
        raise DataError(f"glyphs are drawn at their final size: leave out the resize {resize!r}")
    number = len(glyphs.letters())
    return _Images(
        classes=glyphs.generate(image_size, seed or 0),
        class_count=number,
        count=number * glyphs.SAMPLES,
        channels=GLYPHS.channels,
        rotate_classes=GLYPHS.rotate_classes,
        source=glyphs.source(seed or 0),
    )


def _found(path: Path, image_size: int, resize: Resize, seed: int | None) -> _Images:
    with _reading(path):
        found = find_classes(path, seed)
    form = ImageFormat(image_size, 1 if is_grey(found) else 3, resize)
    return _Images(
        classes=read_classes(found, form),
        class_count=len(found.classes),
        count=sum(len(item.images) for item in found.classes),
        channels=form.channels,
        rotate_classes=False,
        source={"from": str(path), "resize": resize, "splits": found.splits_from},
    )


def _read(
    dataset: Dataset, path: Path, image_size: int, resize: Resize, seed: int | None
) -> _Images:
    if seed is not None:
        raise DataError(
            f"the splits of {dataset.name!r} are fixed, so seed {seed} would change nothing; "
            "leave out --seed"
        )
    with _reading(path):
        there = path.exists()
    if not there:
        raise DataError(f"there is no {path}; give the archive or folder of {dataset.name!r}")
    if dataset.read is None:  # only glyphs has no reader
        raise ValueError(f"dataset {dataset.name!r} has no reader")
    return _Images(
        classes=dataset.read(path, ImageFormat(image_size, dataset.channels, resize)),
        class_count=None,
        count=None,
        channels=dataset.channels,
        rotate_classes=dataset.rotate_classes,
        source={"from": str(path), "resize": resize},
    )


def _write(
    target: Path, name: str, images: _Images, force: bool, progress: OnProgress | None
) -> Prepared:
    """Write a store beside its place and move it there, unless another process was first."""
    _check_place(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            _unwound_by_sigterm(),
            tempfile.TemporaryDirectory(prefix=".prepare-", dir=target.parent) as folder,
        ):
            complete = Path(folder) / "complete"
            write_store(
                complete,
                _reported(images, progress),
                name=name,
                rotate_classes=images.rotate_classes,
                source={"gradshare": version("gradshare"), **images.source},
            )
            if force and _is_store(target):
                with contextlib.suppress(FileNotFoundError):
                    target.rename(Path(folder) / "replaced")
            try:
                complete.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                _check_place(target)
                return Prepared(ImageStore.open(target), written=False)
    except OSError as error:
        raise DataError(
            f"cannot prepare {name!r} in {target} ({error}); free space there, or choose a "
            "folder you may write to with --data-root"
        ) from error
    return Prepared(ImageStore.open(target), written=True)


@contextlib.contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise an exit, so that what is half written is cleared away, as it is at Ctrl-C.

    Only where it would end the process as it stands: whoever handles it otherwise goes on to. And
    only here: a handler of Python's has to wait until whatever goes on in C++ comes back.
    """
    asked = False

    def leave(number: int, _: object) -> None:
        nonlocal asked
        asked = True
        sys.exit(SIGNAL_STATUS + number)

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if ours:
        signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if asked:  # in a call from C++, as of FreeType that reads a font, where an exit is lost
        sys.exit(SIGNAL_STATUS + signal.SIGTERM)


def _reported(images: _Images, progress: OnProgress | None) -> Iterator[ClassImages]:
    with _reading(images.source.get("from", "a font")):
        for done, item in enumerate(images.classes, start=1):
            yield item
            if progress is not None:
                progress(done, images.class_count)


@contextlib.contextmanager
def _reading(source: object) -> Iterator[None]:
    """Blame what fails in here on what is read, or the store's place would be blamed for it."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or source} cannot be read ({error.strerror or error}); mend its "
            "permissions, or give a copy that can be read"
        ) from error


def _check_place(target: Path) -> None:
    """Raise if a store's place is taken by what is no store."""
    if target.is_dir() and not _is_store(target) and any(target.iterdir()):
        raise DataError(
            f"{target} is in the way: it holds files but no prepared dataset; move it elsewhere"
        )


def _check_space(target: Path, size: int) -> None:
    """Raise if a store's images (bytes) cannot fit; writing holds them twice for a moment."""
    there = next(parent for parent in target.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if free < 2 * size:
        raise DataError(
            f"{target} needs {2 * size / 1e9:.1f} GB while it is written, {there} has "
            f"{free / 1e9:.1f} GB free; free some, choose a smaller --image-size, or another "
            "--data-root"
        )


def _unknown(name: str, data_root: Path) -> DataError:
    own = [other for other in prepared(data_root) if other not in DATASETS]
    near = difflib.get_close_matches(name, [*DATASETS, *own], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    mine = f", and prepared in {data_root}: {', '.join(own) or 'nothing else'}"
    return DataError(
        f"there is no dataset {name!r}; {hint}there are {', '.join(DATASETS)}{mine}; prepare "
        "images of your own with `gradshare data prepare NAME --format folder --from FOLDER`"
    )


def _usual_size(name: str, data_root: Path, there: Sequence[str], resize: Resize) -> int:
    """The size to open a dataset at when none is asked for."""
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
        return DATASETS[name].image_size if name in DATASETS else FOLDER_IMAGE_SIZE
    if asked not in IMAGE_SIZES:
        raise DataError(
            f"image size {asked} is out of range; use {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]} pixels"
        )
    return asked


def _suffix(resize: Resize) -> str:
    return "" if resize == "stretch" else f"-{resize}"


def _opened(data_root: Path, name: str, image_size: int, resize: Resize) -> ImageStore:
    """The store that is in the folder of its name.

    Raises:
        DataError: it is damaged, or holds images of another size.
    """
    path = store_path(data_root, name, image_size, resize)
    store = ImageStore.open(path)
    size = store.image_shape[1]
    if size != image_size:
        raise DataError(
            f"the images in {path} are of {size} pixels, not {image_size}; name the folder by "
            f"their size, {store_path(data_root, name, size, resize)}"
        )
    return store


def _is_store(path: Path) -> bool:
    return (path / "index.json").is_file()
