"""Archives and images made in memory, for the tests of the dataset readers."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradshare.errors import DataError
from gradshare.tasks.datasets import prepare_dataset
from gradshare.tasks.images import Resize
from gradshare.tasks.store import Images

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
}


def make_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    """A deflated zip archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """A tar archive, compressed as its name says."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    kind = path.name[path.name.index(".tar") + 1 :]
    path.write_bytes(COMPRESSORS[kind](buffer.getvalue()))
    return path


def make_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    """The same files in a folder."""
    path.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def pixels(*key: int, size: int = 8) -> Images:
    """A noise image (size, size, 3) that no other key gives."""
    return np.random.default_rng(list(key)).integers(0, 256, (size, size, 3), dtype=np.uint8)


def encoded(image: Images, kind: str = "PNG") -> bytes:
    """The bytes of an image file of (H, W, 3) or (H, W) pixels."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def prepared_classes(
    name: str, path: Path, size: int = 8, resize: Resize = "stretch"
) -> dict[tuple[str, str], tuple[tuple[int, ...], bytes]]:
    """Prepare a dataset: shape and pixels of each class of each split, in the store's order."""
    with tempfile.TemporaryDirectory() as root:
        store = prepare_dataset(name, root, path=path, image_size=size, resize=resize).store
        found = {}
        for split in store.splits.values():
            rows = zip(split.class_names, split.starts, split.counts, strict=True)
            for class_name, start, count in rows:
                images = split.images[start : start + count]
                found[split.name, class_name] = images.shape, images.tobytes()
        return found


def refusal_to_prepare(name: str, path: Path) -> str:
    """The error of preparing a dataset, which leaves nothing behind."""
    with tempfile.TemporaryDirectory() as root:
        with pytest.raises(DataError) as error:
            prepare_dataset(name, root, path=path, image_size=8)
        assert list(Path(root).rglob("*.partial")) == []
    assert ".partial" not in str(error.value)
    return str(error.value)


def cache_files(folder: Path, split: str) -> tuple[Path, Path]:
    """The two files of a split of torchmeta's caches."""
    return folder / f"{split}_data.hdf5", folder / f"{split}_labels.json"


def real_data(name: str) -> Path:
    """The folder of a real dataset, where there is one; skips the test where not."""
    default = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("GRADSHARE_TEST_DATA", default)) / name
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set GRADSHARE_TEST_DATA to the folder above it")
    return folder
