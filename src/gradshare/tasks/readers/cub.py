"""CUB-200-2011: 11,788 photographs of 200 species of birds.

Source: Wah, Branson, Welinder, Perona and Belongie, "The Caltech-UCSD Birds-200-2011 Dataset",
CNS-TR-2011-001 (2011); data.caltech.edu/records/65de6-vp158.

Splits, on which accuracies cannot be compared:

- `cub`: of the species counted from 0, the even ones train, those with i % 4 == 1 validate, and
  those with i % 4 == 3 test: the rule of the paper, of torchmeta, and of Chen et al., "A Closer
  Look at Few-shot Classification".
- `cub-140`: 140 train, 30 validate and 30 test, as in Meta-Dataset, learn2learn and easyfsl.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from gradshare.tasks.readers.archives import find_archive, unpacked
from gradshare.tasks.readers.benchmarks import Files, Layout, benchmark, by_split
from gradshare.tasks.readers.class_splits import published_split
from gradshare.tasks.readers.dataset import Archive, FoundClass, Notes
from gradshare.tasks.readers.folder import classes_in
from gradshare.tasks.readers.labelled import read_hdf5

_NAME = "CUB_200_2011"
_URL = f"https://data.caltech.edu/records/65de6-vp158/files/{_NAME}.tgz"
_PARTS = ("train", "val", "train", "test")
_SPLIT_140 = published_split("cub-140")
_SPLIT = {name: _PARTS[number % 4] for number, name in enumerate(sorted(_SPLIT_140))}


def _archive(path: Path) -> Files:
    return {f"{_NAME}.tgz": path if path.is_file() else find_archive(path, _NAME)}


def _in_archive(paths: list[Path], notes: Notes) -> Iterable[FoundClass]:
    folder = unpacked(paths[0], notes.scratch)
    inner = folder / _NAME
    return classes_in((inner if inner.is_dir() else folder) / "images", "", notes)


CUB = benchmark(
    "cub",
    "CUB-200-2011",
    by_split("hdf5", read_hdf5, "{}_data.hdf5", "{}_labels.json", inside="cub"),
    Layout("archive", f"{_NAME}.tgz or what it unpacks to", _archive, _in_archive),
    split=_SPLIT,
    summary="CUB-200-2011: 11,788 photographs of 200 species of birds",
    image_size=84,
    archives=(Archive(_URL, f"{_NAME}.tgz", "97eceeb196236b17998738112f37df78"),),
)

CUB_140 = replace(
    CUB, name="cub-140", summary="the same photographs in the split 140/30/30", split=_SPLIT_140
)
