"""torchmeta's caches are read where they hold images, and refused where they point elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from gradshare.errors import DataError
from gradshare.tasks import hdf5
from gradshare.tasks.hdf5 import cache_files, class_names, read_classes
from gradshare.tasks.hdf5_heap import heap_items
from gradshare.tasks.images import ImageFormat
from tests.tasks.archive_builders import encoded, pixels

FORM = ImageFormat(size=8, channels=3)
REMEDY = "; let torchmeta write it again, or prepare the dataset from its original archive"
IMAGES = np.stack([pixels(i) for i in range(3)])


def make_cache(folder: Path, classes: dict[str, Any], labels: Any = None) -> h5py.Group:
    """Write a cache of arrays and hand back its open group for mischief."""
    data, names = cache_files(folder, "train")
    names.write_text(json.dumps(list(classes) if labels is None else labels))
    group = h5py.File(data, "w").create_group("datasets")
    for name, images in classes.items():
        group.create_dataset(name, data=images)
    return group


def add_files(group: h5py.Group, name: str, files: list[bytes]) -> None:
    """A class of the bytes of image files, as torchmeta's CUB has it."""
    dataset = group.create_dataset(name, (len(files),), dtype=h5py.vlen_dtype(np.uint8))
    for index, data in enumerate(files):
        dataset[index] = np.frombuffer(data, np.uint8)


def read(group: h5py.Group) -> dict[str, list[Any]]:
    folder = Path(group.file.filename).parent
    group.file.close()
    return {item.name: list(item.images) for item in read_classes(folder, "train", FORM)}


def refusal(group: h5py.Group) -> str:
    with pytest.raises(DataError) as error:
        read(group)
    return str(error.value)


def test_reads_pixels_and_files(tmp_path: Path) -> None:
    group = make_cache(tmp_path, {"a": IMAGES}, labels=["b", "a"])
    add_files(group, "b", [encoded(image) for image in IMAGES])
    found = read(group)
    assert list(found) == ["b", "a"]
    for images in found.values():
        assert np.array_equal(np.stack(images).transpose(0, 2, 3, 1), IMAGES)


@pytest.mark.parametrize("compression", ["gzip", "lzf"])
def test_reads_compressed_pixels(tmp_path: Path, compression: str) -> None:
    group = make_cache(tmp_path, {}, labels=["a"])
    group.create_dataset("a", data=IMAGES, compression=compression, shuffle=True, fletcher32=True)
    assert len(read(group)["a"]) == 3


def test_follows_no_link(tmp_path: Path) -> None:
    path = tmp_path / "train_data.hdf5"
    group = make_cache(tmp_path, {"a": IMAGES}, labels=["b", "a"])
    group["b"] = h5py.SoftLink("/datasets/a")
    assert f"{path} has a link to somewhere else for 'b'{REMEDY}" == refusal(group)
    group = make_cache(tmp_path, {}, labels=["b"])
    group["b"] = h5py.ExternalLink("/etc/passwd", "/")
    assert f"{path} has a link to somewhere else for 'b'{REMEDY}" == refusal(group)


def test_follows_no_link_in_place_of_the_group(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.hdf5", "w") as other:
        other.create_group("datasets").create_dataset("a", data=IMAGES)
    group = make_cache(tmp_path, {}, labels=["a"])
    del group.file["datasets"]
    group.file["datasets"] = h5py.ExternalLink("other.hdf5", "/datasets")
    assert "has a link to somewhere else for 'datasets'" in refusal(group)


def test_reads_no_other_file(tmp_path: Path) -> None:
    other = tmp_path / "secret"
    other.write_bytes(IMAGES.tobytes())
    group = make_cache(tmp_path, {}, labels=["a"])
    group.create_dataset("a", IMAGES.shape, np.uint8, external=[(str(other), 0, IMAGES.nbytes)])
    path = tmp_path / "train_data.hdf5"
    assert f"class 'a' in {path} keeps its images in other files{REMEDY}" == refusal(group)

    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["a"] = IMAGES
    group = make_cache(tmp_path, {}, labels=["a"])
    layout = h5py.VirtualLayout(IMAGES.shape, np.uint8)
    layout[:] = h5py.VirtualSource(tmp_path / "other.hdf5", "a", IMAGES.shape)
    group.create_virtual_dataset("a", layout)
    assert "keeps its images in other files" in refusal(group)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (IMAGES.astype(np.float32), "float32 of shape (3, 8, 8, 3)"),
        (IMAGES[..., 0], "uint8 of shape (3, 8, 8)"),
        (IMAGES[..., :2], "uint8 of shape (3, 8, 8, 2)"),
        (IMAGES[:0], "uint8 of shape (0, 8, 8, 3)"),
        (np.zeros(3, np.uint8), "uint8 of shape (3,)"),
        (np.array(b"text"), "|S4 of shape ()"),
    ],
)
def test_refuses_what_is_no_images(tmp_path: Path, images: Any, said: str) -> None:
    message = refusal(make_cache(tmp_path, {"a": images}))
    assert f"class 'a' in {tmp_path / 'train_data.hdf5'} holds {said}, not image files" in message
    assert message.endswith(REMEDY)


def test_refuses_a_group_for_a_class(tmp_path: Path) -> None:
    group = make_cache(tmp_path, {}, labels=["a"])
    group.create_group("a")
    assert "has a Group for 'a'" in refusal(group)


def test_refuses_images_that_were_never_written(tmp_path: Path) -> None:
    group = make_cache(tmp_path, {}, labels=["a"])
    group.create_dataset("a", (90_000, 1000, 10, 3), np.uint8, chunks=(1, 10, 10, 3))
    assert "claims 2,700,000,000 bytes in chunks of 300, stored in 0" in refusal(group)


def test_refuses_more_bytes_than_a_class_can_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hdf5, "MAX_CLASS_BYTES", IMAGES.nbytes - 1)
    assert "claims 576 bytes" in refusal(make_cache(tmp_path, {"a": IMAGES}))
    monkeypatch.setattr(hdf5, "MAX_IMAGES", 2)
    assert "of shape (3, 8, 8, 3), not image files" in refusal(make_cache(tmp_path, {"a": IMAGES}))


def test_loads_no_plugin(tmp_path: Path) -> None:
    group = make_cache(tmp_path, {}, labels=["a"])
    dataset = group.create_dataset("a", data=IMAGES, chunks=IMAGES.shape, compression="lzf")
    assert dataset.compression == "lzf"
    group.file.close()
    path = tmp_path / "train_data.hdf5"
    data = path.read_bytes()
    # The filter's number, its name's length and its flags, as the file has them.
    lzf = (32000).to_bytes(2, "little") + (8).to_bytes(2, "little")
    assert lzf in data
    path.write_bytes(data.replace(lzf, (32001).to_bytes(2, "little") + lzf[2:]))
    with pytest.raises(DataError, match=r"needs the HDF5 plug-in 32001; let torchmeta"):
        list(read_classes(tmp_path, "train", FORM))


def test_names_a_damaged_image_file(tmp_path: Path) -> None:
    group = make_cache(tmp_path, {}, labels=["a"])
    add_files(group, "a", [encoded(IMAGES[0]), b"\xff\xd8\xff"])
    assert f"image 1 of class 'a' in {tmp_path / 'train_data.hdf5'} is not a readable image" in (
        refusal(group)
    )


def test_names_a_difference_between_the_two_files(tmp_path: Path) -> None:
    message = refusal(make_cache(tmp_path, {"a": IMAGES, "b": IMAGES}, labels=["a"]))
    assert (
        f"{tmp_path / 'train_data.hdf5'} and train_labels.json name different classes ('b' is in "
        f"one of them only){REMEDY}"
    ) == message


def test_names_a_file_that_is_not_hdf5(tmp_path: Path) -> None:
    make_cache(tmp_path, {"a": IMAGES}).file.close()
    path = tmp_path / "train_data.hdf5"
    whole = path.read_bytes()

    def message(data: bytes) -> str:
        path.write_bytes(data)
        with pytest.raises(DataError) as error:
            list(read_classes(tmp_path, "train", FORM))
        return str(error.value)

    assert f"{path} is not an HDF5 file (it begins with b'PK'){REMEDY}" == message(b"PK")
    assert f"{path} is a web page, not an HDF5 file" in message(b"<html>")
    assert f"{path} is damaged (" in message(whole[:-700])


@pytest.mark.parametrize("labels", ["{}", "[]", "[1]", '["a", "a"]', '["a/b"]', '[""]', "[" * 9999])
def test_refuses_other_lists_of_names(tmp_path: Path, labels: str) -> None:
    path = tmp_path / "train_labels.json"
    path.write_text(labels)
    with pytest.raises(DataError) as error:
        class_names(tmp_path, "train")
    assert f"{path} is not torchmeta's JSON list of class names (" in str(error.value)
    assert str(error.value).endswith(REMEDY)


def test_names_a_web_page_in_place_of_the_list(tmp_path: Path) -> None:
    (tmp_path / "train_labels.json").write_text("<!doctype html>")
    with pytest.raises(DataError, match="is a web page, not a list of class names"):
        class_names(tmp_path, "train")


def vlen_cache(folder: Path) -> Path:
    group = make_cache(folder, {}, labels=["a"])
    add_files(group, "a", [encoded(image) for image in IMAGES])
    group.file.close()
    return folder / "train_data.hdf5"


@pytest.mark.parametrize("count", [1, 300])
def test_reads_the_heap_as_the_library_does(tmp_path: Path, count: int) -> None:
    random = np.random.default_rng(count)
    items = [random.bytes(int(size)) for size in random.integers(0, 9000, count)]
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        add_files(file, "a", items)
        offset = file["a"].id.get_offset()
    with (tmp_path / "a.hdf5").open("rb") as raw:
        assert list(heap_items(raw, offset, count, limit=9000)) == items
        with pytest.raises(ValueError, match="item 0 claims"):
            list(heap_items(raw, offset, count, limit=len(items[0]) - 1))


def test_a_damaged_heap_is_an_error_and_not_an_endless_loop(tmp_path: Path) -> None:
    path = vlen_cache(tmp_path)
    whole = path.read_bytes()
    heap = whole.index(b"GCOL")

    def message(at: int, value: int, size: int = 8) -> str:
        data = bytearray(whole)
        data[at : at + size] = value.to_bytes(size, "little")
        path.write_bytes(data)
        with pytest.raises(DataError) as error:
            list(read_classes(tmp_path, "train", FORM))
        return str(error.value)

    first = heap + 16
    assert f"{path} is damaged (an object of " in message(first + 8, 2**64 - 16)
    assert f"{path} is damaged (there is no heap at {heap})" in message(heap, 0)
    assert f"{path} is damaged (there is no heap at {heap})" in message(heap + 8, 1 << 40)
    assert f"{path} is damaged (item 0 is not where the dataset says)" in message(first, 0, 2)
    assert f"{path} is damaged (item 0 claims " in message(first + 8, 10)


def test_refuses_files_laid_out_in_another_way(tmp_path: Path) -> None:
    group = make_cache(tmp_path, {}, labels=["a"])
    group.create_dataset("a", (3,), h5py.vlen_dtype(np.uint8), chunks=(1,))[0] = IMAGES[0].ravel()
    assert "is not laid out as torchmeta does" in refusal(group)
    group = make_cache(tmp_path, {}, labels=["a"])
    group.create_dataset("a", (3,), h5py.vlen_dtype(np.uint8))  # never written
    assert refusal(group).endswith(REMEDY)
