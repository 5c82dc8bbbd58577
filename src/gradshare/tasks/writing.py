"""Writing a store, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from gradshare.errors import DataError
from gradshare.tasks.store import (
    FORMAT_VERSION,
    LONGEST,
    NO_VALIDATION,
    SPLITS,
    Images,
    ImageStore,
    Index,
    StoredClass,
    first_mistake,
)

log = logging.getLogger(__name__)

WORKSPACE = ".partial"
NEW = "store"


@dataclass(frozen=True, eq=False)
class ClassImages:
    """All images of one class, to be written to a store.

    Attributes:
        split: "train", "val" or "test".
        name: the class's name, unique within the dataset.
        images: uint8 (n, C, H, W) at the store's size.
        groups: the group of each image; None if the dataset has no groups.
    """

    split: str
    name: str
    images: Images
    groups: Sequence[str] | None = None


def write_store(
    path: Path | str,
    classes: Iterable[ClassImages],
    *,
    name: str,
    rotate_classes: bool,
    source: Mapping[str, Any],
) -> ImageStore:
    """Write a store, whole or not at all, and open it.

    Args:
        path: the store's folder; it must not exist yet.
        classes: every class of every split, in any order. They are taken one at a time, so the
            whole dataset is never in memory.
        name: see `ImageStore`.
        rotate_classes: see `ImageStore`.
        source: see `ImageStore`; JSON.

    Raises:
        DataError: the path exists; a split is unknown or has no classes; a class occurs twice or
            has no images; images are not square, or differ in shape or type; or the name or
            source is of another type.
    """
    path = Path(path)
    with writing(path) as workspace:
        if path.exists():
            raise DataError(
                f"{path} is there already and is not overwritten; delete it, or write to another "
                "path"
            )
        fill(workspace / NEW, classes, name=name, rotate_classes=rotate_classes, source=source)
    return ImageStore.open(path)


@contextmanager
def writing(path: Path, *, wait: bool = True) -> Iterator[Path]:
    """Be the only process that writes the store at a path; if another one does, `wait` for it or
    raise Timeout. Folders that are empty in the end are removed.

    Yields:
        A folder beside the store to work in. In the end, the folder `NEW` in it, if it is there,
        takes the place of the store, and the rest is removed; if the process is killed, by
        `clear_leftovers` or the next process that writes the store.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    workspace = path.with_name(f".{path.name}{WORKSPACE}")
    lock_path = path.with_name(f".{path.name}.lock")
    lock = FileLock(lock_path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if not wait:
                raise
            killed = f"if it was killed, delete {lock_path}"
            log.warning("another process is preparing %s; waiting for it (%s)", path, killed)
            lock.acquire()
        try:
            shutil.rmtree(workspace, ignore_errors=True)
            workspace.mkdir()
            yield workspace
            if (workspace / NEW).exists():
                if path.exists():
                    path.rename(workspace / "replaced")
                (workspace / NEW).rename(path)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)
            lock_path.unlink(missing_ok=True)  # while it is held: one that waits makes a new file
            lock.release()
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # it holds the store
                folder.rmdir()


def clear_leftovers(data_root: Path) -> None:
    """Remove the workspaces of killed processes under a data root."""
    for workspace in data_root.glob(f"*/.*{WORKSPACE}"):
        path = workspace.with_name(workspace.name[1:].removesuffix(WORKSPACE))
        with contextlib.suppress(Timeout, OSError):
            with writing(path, wait=False):
                pass
            path.parent.rmdir()  # if nothing else is in it


def fill(
    folder: Path,
    classes: Iterable[ClassImages],
    *,
    name: str,
    rotate_classes: bool,
    source: Mapping[str, Any],
) -> None:
    """Write the two files of a store into a new folder; see `write_store`. The validation classes
    are those of training if the source says that it has none.
    """
    splits: dict[str, list[StoredClass]] = {split: [] for split in SPLITS}
    split_of, shape = dict[str, str](), tuple[int, ...]()
    groups: list[str] = []
    rows = 0
    moments: npt.NDArray[np.int64] | int = 0
    digest = hashlib.sha256()
    folder.mkdir()
    with (folder / "images.npy").open("wb") as npy:
        for item in classes:
            _require_class(item, split_of)
            images = np.ascontiguousarray(item.images)
            if not shape:
                shape = images.shape[1:]
                _write_header(npy, 0, shape)
            if images.shape[1:] != shape:
                raise DataError(
                    f"images of class {item.name!r} are {images.shape[1:]}, those before it {shape}"
                )
            split_of[item.name] = item.split
            splits[item.split].append(StoredClass(name=item.name, start=rows, count=len(images)))
            rows += len(images)
            groups += item.groups or ()
            data = images.tobytes()
            digest.update(data)
            npy.write(data)
            if item.split == "train":
                moments = moments + _moments(images)
        if rows:
            _write_header(npy, rows, shape)
    if source.get("splits") == NO_VALIDATION:
        splits["val"] = splits["train"]
    empty = [split for split, entries in splits.items() if not entries]
    if groups and len(groups) != rows:
        raise DataError(f"{len(groups)} groups are given for {rows} images; give one for each")
    if empty:
        raise DataError(f"no classes in split {empty[0]!r}; every one of {SPLITS} needs some")
    count, total, squares = np.asarray(moments)
    mean = total / count
    variance = squares / count - mean**2
    # A constant channel is left as it is instead of being divided by zero.
    std = np.where(variance > 0, np.sqrt(np.maximum(variance, 0)), 255.0)
    try:
        index = Index(
            format_version=FORMAT_VERSION,
            name=name,
            shape=[rows, *shape],
            mean=tuple((mean / 255).tolist()),
            std=tuple((std / 255).tolist()),
            rotate_classes=rotate_classes,
            source=dict(source),
            sha256=digest.hexdigest(),
            written=(folder / "images.npy").stat().st_mtime_ns,
            splits=splits,
            groups=groups or None,
        )
        content = index.model_dump_json(indent=1)
    except ValueError as error:
        cause = first_mistake(error)
        raise DataError(f"the store's index cannot be written ({cause}); correct it") from error
    (folder / "index.json").write_text(content, encoding="utf-8")


def _require_class(item: ClassImages, split_of: Mapping[str, str]) -> None:
    """Check a class that is to be written, after those in `split_of`."""
    if not isinstance(item.name, str):
        raise DataError(f"a class has the name {item.name!r}; give a str")
    if item.split not in SPLITS:
        raise DataError(f"class {item.name!r} is in split {item.split!r}; use one of {SPLITS}")
    if item.name in split_of:
        raise DataError(
            f"class {item.name!r} is in {split_of[item.name]!r} and in {item.split!r}: splits "
            "must not overlap; give it to one of them"
        )
    images = np.asarray(item.images)
    if len(images) == 0:
        raise DataError(f"class {item.name!r} has no images; remove it or add some")
    shape = images.shape
    fits = len(shape) == 4 and shape[2] == shape[3] and max(shape[1:]) <= LONGEST
    if images.dtype != np.uint8 or not fits:
        raise DataError(
            f"images of class {item.name!r} are {images.dtype} {shape}; give uint8 (n, C, H, W), "
            f"the channels first, with H = W and none of them above {LONGEST}"
        )


def _write_header(npy: BinaryIO, rows: int, shape: tuple[int, ...]) -> None:
    """Write the .npy header at the file's start. numpy leaves room in it for any number of rows,
    so that it can be written again when their number is known.
    """
    npy.seek(0)
    header = {"descr": "|u1", "fortran_order": False, "shape": (rows, *shape)}
    np.lib.format.write_array_header_1_0(npy, header)


def _moments(images: Images) -> npt.NDArray[np.int64]:
    """The number, the sum and the sum of squares of the pixels of each channel: exact, (3, C)."""
    pixels = images.transpose(1, 0, 2, 3).reshape(images.shape[1], -1).astype(np.int64)
    return np.stack([np.full(len(pixels), pixels.shape[1]), pixels.sum(1), (pixels**2).sum(1)])
