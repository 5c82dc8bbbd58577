"""CUB-200-2011 from the official archive, from what it unpacks to, and from torchmeta's cache."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from gradshare.tasks.readers.benchmarks import CUB, CUB_140
from tests.tasks.archive_builders import (
    cache_files,
    encoded,
    make_folder,
    pixels,
    prepared_classes,
    real_data,
    refusal_to_prepare,
)

CLASS_NAMES = sorted(CUB.split)
PHOTOGRAPHS = {
    f"images/{name}/{name[4:]}_{j:04}_{i}.jpg": encoded(pixels(i, j, size=12), "JPEG")
    for i, name in enumerate(CLASS_NAMES)
    for j in range(2 + (i == 7))
}
# What else is in the official archive.
BESIDE = {
    "README": b"",
    "classes.txt": b"",
    "attributes/certainties.txt": b"",
    "parts/parts.txt": b"",
    "images.txt": b"",
}


def add_files(archive: tarfile.TarFile, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        header = tarfile.TarInfo(name)
        header.size = len(data)
        archive.addfile(header, io.BytesIO(data))


def official_archive(folder: Path) -> Path:
    """`CUB_200_2011.tgz` as it is published: with folders, and in no particular order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        add_files(archive, {"attributes.txt": b""})
        for name in ("CUB_200_2011", "CUB_200_2011/images"):
            header = tarfile.TarInfo(name)
            header.type = tarfile.DIRTYPE
            archive.addfile(header)
        shuffled = sorted((PHOTOGRAPHS | BESIDE).items(), key=lambda item: item[0][::-1])
        add_files(archive, {f"CUB_200_2011/{name}": data for name, data in shuffled})
    path = folder / "CUB_200_2011.tgz"
    path.write_bytes(gzip.compress(buffer.getvalue(), 1))
    return path


def folder_with_the_archive(folder: Path) -> Path:
    return official_archive(folder).parent


def unpacked(folder: Path) -> Path:
    return make_folder(folder / "CUB_200_2011", PHOTOGRAPHS | BESIDE)


def folder_with_the_unpacked(folder: Path) -> Path:
    return unpacked(folder).parent


def torchmeta(folder: Path, names: list[str] = CLASS_NAMES) -> Path:
    place = folder / "cub"
    place.mkdir()
    for part, classes in {
        "train": names[::2],
        "val": names[1::4],
        "test": names[3::4],
    }.items():
        data, labels = cache_files(place, part)
        labels.write_text(json.dumps(classes))
        with h5py.File(data, "w") as file:
            for name in classes:
                files = [data for path, data in PHOTOGRAPHS.items() if f"/{name}/" in path]
                dataset = file.create_dataset(
                    f"datasets/{name}", (len(files),), h5py.vlen_dtype(np.uint8)
                )
                for i, image in enumerate(files):
                    dataset[i] = np.frombuffer(image, np.uint8)
    return folder


def cache_itself(folder: Path) -> Path:
    return torchmeta(folder) / "cub"


def refusal(path: Path) -> str:
    return refusal_to_prepare("cub", path)


Classes = dict[tuple[str, str], tuple[tuple[int, ...], bytes]]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Classes:
    return prepared_classes("cub", official_archive(tmp_path_factory.mktemp("cub")))


def test_reads_and_splits_the_official_archive(expected: Classes) -> None:
    assert Counter(part for part, _name in expected) == {"train": 100, "val": 50, "test": 50}
    names = [name for _part, name in expected]
    assert names[:2] == [CLASS_NAMES[0], CLASS_NAMES[2]]
    assert names[100:102] == [CLASS_NAMES[1], CLASS_NAMES[5]]
    assert names[150:152] == [CLASS_NAMES[3], CLASS_NAMES[7]]
    shape_of = {name: shape for (_part, name), (shape, _) in expected.items()}
    shapes = [shape_of[name] for name in CLASS_NAMES]
    assert shapes == [(3 if i == 7 else 2, 3, 8, 8) for i in range(200)]


@pytest.mark.parametrize(
    "make",
    [folder_with_the_archive, unpacked, folder_with_the_unpacked, torchmeta, cache_itself],
)
def test_every_layout_gives_the_same_classes(
    tmp_path: Path, make: Callable[[Path], Path], expected: Classes
) -> None:
    assert prepared_classes("cub", make(tmp_path)) == expected


def test_the_split_is_the_papers() -> None:
    with (real_data("cub") / "classes.csv").open(encoding="utf-8") as file:
        published = {row["class"]: row["split"] for row in csv.DictReader(file)}
    assert CUB.split == published


def test_the_other_split_has_a_name_of_its_own(tmp_path: Path) -> None:
    found = prepared_classes("cub-140", unpacked(tmp_path))
    assert Counter(part for part, _name in found) == {"train": 140, "val": 30, "test": 30}
    names = [name for _part, name in found]
    assert names[140:142] == ["044.Frigatebird", "051.Horned_Grebe"]
    assert names[170:172] == ["008.Rhinoceros_Auklet", "009.Brewer_Blackbird"]
    assert CUB_140.archives == CUB.archives
    message = refusal_to_prepare("cub-140", torchmeta(make_folder(tmp_path / "torchmeta", {})))
    assert "it puts 002.Laysan_Albatross, 004.Groove_billed_Ani" in message


def test_knows_itself() -> None:
    assert not CUB.rotate_classes
    assert (CUB.channels, CUB.image_size) == (3, 84)
    (archive,) = CUB.archives
    assert archive.filename == "CUB_200_2011.tgz"
    assert archive.md5 == "97eceeb196236b17998738112f37df78"


def test_refuses_an_incomplete_copy(tmp_path: Path) -> None:
    files = {name: data for name, data in PHOTOGRAPHS.items() if f"/{CLASS_NAMES[-1]}/" not in name}
    path = make_folder(tmp_path / "CUB_200_2011", files)
    assert refusal(path) == (
        f"{path} does not have the published split: it lacks 200.Common_Yellowthroat; it has 49 "
        "classes in 'test', and not 50; get a complete copy with that split"
    )


def test_refuses_classes_of_other_names(tmp_path: Path) -> None:
    files = {f"images/{i:03}.Bird/1.jpg": encoded(pixels(i), "JPEG") for i in range(1, 201)}
    message = refusal(make_folder(tmp_path / "CUB_200_2011", files).parent)
    assert "it lacks 001.Black_footed_Albatross, 002.Laysan_Albatross, " in message
    assert "; it adds 001.Bird, 002.Bird, " in message


def test_names_a_web_page_in_place_of_the_archive(tmp_path: Path) -> None:
    path = tmp_path / "CUB_200_2011.tgz"
    path.write_text("<!DOCTYPE html><title>Google Drive</title>")
    assert f"{path} is a web page, not an archive: the server answered" in refusal(path)
    assert "pass --from PATH" in refusal(path)


def test_names_a_truncated_archive(tmp_path: Path) -> None:
    path = official_archive(tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert f"{path} is damaged or cut off (" in refusal(path)


def test_names_a_damaged_photograph(tmp_path: Path) -> None:
    path = unpacked(tmp_path)
    photograph = next((path / "images" / CLASS_NAMES[5]).iterdir())
    photograph.write_bytes(photograph.read_bytes()[:200])
    assert f"{photograph} is not a readable image" in refusal(path)


def test_lists_the_layouts_where_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "birds").mkdir()
    assert refusal(tmp_path) == (
        f"{tmp_path} is not a complete copy of CUB-200-2011: found birds/; the layouts that can be "
        "read are\n"
        "  hdf5: {train,val,test}_data.hdf5, {train,val,test}_labels.json\n"
        "  archive: CUB_200_2011.tgz or what it unpacks to\n"
        "  folders: {train,val,test}/\n"
        "  classes: one folder of images for each class, such as 001.Black_footed_Albatross/"
    )


def test_refuses_a_cache_of_another_split(tmp_path: Path) -> None:
    swapped = [CLASS_NAMES[1], CLASS_NAMES[0], *CLASS_NAMES[2:]]
    path = torchmeta(tmp_path, swapped)
    message = refusal(path)
    assert "it puts 001.Black_footed_Albatross, 002.Laysan_Albatross into another split" in message
