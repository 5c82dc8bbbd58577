"""The classes of the published splits of the benchmarks."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from gradshare.errors import DataError, some
from gradshare.tasks.dataset import Dataset, FoundClass

_LISTS = Path(__file__).with_name("published_splits.toml")
MOST_NAMES = 5  # in an error


@cache
def published_split(dataset: str) -> dict[str, str]:
    """The split of each class of a benchmark, from the list of its classes."""
    lists = tomllib.loads(_LISTS.read_text(encoding="utf-8"))[dataset]
    return {name: split for split, names in lists.items() for name in names.split()}


def with_splits(found: Sequence[FoundClass], where: Path, dataset: Dataset) -> list[FoundClass]:
    """Put classes into the published splits, and check all splits before an image is decoded.

    Args:
        found: the classes. Those without a split get the published one.
        where: what they were found in, for errors.
        dataset: of which they are.

    Raises:
        DataError: two classes have one name, or the splits are not the published ones. Of a copy
            that has other names for all classes, only their number in each split is checked.
    """
    published = dataset.split
    split_of: dict[str, str] = {}
    for item in found:
        split = item.split or published.get(item.name, "")
        if item.name in split_of:
            raise DataError(
                f"class {item.name!r} of {where} is in {split_of[item.name]!r} and in "
                f"{split!r}: splits must not overlap; give it to one of them"
            )
        split_of[item.name] = split
    faults = []
    if published and (published.keys() & split_of.keys() or "" in split_of.values()):
        moved = [name for name, split in split_of.items() if published.get(name, split) != split]
        for fault, names in (
            ("lacks {}", published.keys() - split_of.keys()),
            ("adds {}", split_of.keys() - published.keys()),
            ("puts {} into another split", moved),
        ):
            if names:
                faults.append(f"it {fault.format(some(sorted(names), MOST_NAMES))}")
    counts = Counter(split_of.values())
    for split, count in Counter(published.values()).items():
        if counts[split] != count:
            faults.append(f"it has {counts[split]} classes in {split!r}, and not {count}")
    if faults:
        raise DataError(
            f"{where} does not have the published split: {'; '.join(faults)}; get a complete copy "
            "with that split"
        )
    return [replace(item, split=split_of[item.name]) for item in found]
