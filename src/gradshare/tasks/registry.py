"""Which datasets there are: those gradshare knows, and those prepared under a data root."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gradshare.errors import DataError
from gradshare.tasks.glyphs import GLYPHS
from gradshare.tasks.images import Resize
from gradshare.tasks.readers.benchmarks import (
    CIFAR_FS,
    CUB,
    CUB_140,
    FC100,
    MINI_IMAGENET,
    TIERED_IMAGENET,
)
from gradshare.tasks.readers.dataset import Dataset
from gradshare.tasks.readers.omniglot import OMNIGLOT, OTHER_SPLITS

_KNOWN = (
    *(GLYPHS, OMNIGLOT, *OTHER_SPLITS),
    *(MINI_IMAGENET, TIERED_IMAGENET, CIFAR_FS, FC100, CUB, CUB_140),
)
DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _KNOWN}

DEFAULT_DATA_ROOT = Path("data")


def prepared(data_root: Path) -> dict[str, list[str]]:
    """What there is under a data root: of each dataset, the names of its stores, such as "84"."""
    found: dict[str, list[str]] = {}
    for index in sorted(data_root.glob("[!.]*/[!.]*/*.json")):
        if index.name in ("index.json", "features.json"):
            found.setdefault(index.parts[-3], []).append(index.parts[-2])
    return found


def dataset_of(name: str, data_root: Path) -> Dataset:
    """The dataset of a name, or a DataError with the names there are."""
    if name in DATASETS:
        return DATASETS[name]
    own = [other for other in prepared(data_root) if other not in DATASETS]
    near = difflib.get_close_matches(name, [*DATASETS, *own], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    mine = f", and prepared in {data_root}: {', '.join(own) or 'nothing else'}"
    raise DataError(
        f"there is no dataset {name!r}; {hint}there are {', '.join(DATASETS)}{mine}; prepare "
        "images of your own with `gradshare data prepare NAME --format folder --from FOLDER`"
    )


def require_new_name(name: str) -> None:
    """Raise DataError if data of the user's own cannot have a name: it is that of a published
    dataset, however spelled, or cannot be a folder's.
    """
    if _letters(name) in map(_letters, DATASETS):
        raise DataError(
            f"{name!r} is the name of a dataset with a format of its own; leave out "
            "--format folder, or give your images another name"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise DataError(
            f"{name!r} cannot name a dataset, since it names its folder; use letters, digits, "
            "'.', '_' and '-', the first a letter or digit"
        )


def prepare_command(
    name: str,
    data_root: Path,
    image_size: int,
    resize: Resize,
    source: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """The command line that prepares a dataset; `source` is that of a store prepared by it."""
    words = ["gradshare", "data", "prepare", name]
    dataset = DATASETS.get(name)
    if dataset is None:
        words += ["--format", "folder", "--from", "FOLDER"]
    elif dataset.archives:
        words += ["--download"]
    elif dataset.read is not None:
        words += ["--from", "PATH"]
    words += ["--image-size", str(image_size)]
    if resize != "stretch":
        words += ["--resize", resize]
    for option in ("seed", "split", "group"):
        if option in source:
            words += [f"--{option}", str(source[option])]
    if "skip_bad" in source:
        words += ["--skip-bad"]
    if data_root != DEFAULT_DATA_ROOT:
        words += ["--data-root", str(data_root)]
    return shlex.join(words)


def _letters(name: str) -> str:
    """A name without what people write differently: mini-imagenet, miniImageNet."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
