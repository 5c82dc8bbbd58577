"""The classes of the published splits of the benchmarks."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from gradshare.errors import DataError
from gradshare.tasks.dataset import Dataset, FoundClass
from gradshare.tasks.notes import some

_LISTS = Path(__file__).with_name("published_splits.toml")
_NAMED = 5
"""How many classes an error names."""


@cache
def published_split(dataset: str) -> dict[str, str]:
    """The split of each class of a benchmark, from the list of its classes."""
    lists = tomllib.loads(_LISTS.read_text(encoding="utf-8"))[dataset]
    return {name: split for split, names in lists.items() for name in names.split()}


def require_classes(found: Sequence[FoundClass], where: Path, dataset: Dataset) -> None:
    """Check the splits before any image is decoded.

    Args:
        found: the classes of all splits.
        where: what they were found in, for the message.
        dataset: what was to be found.

    Raises:
        DataError: two classes have one name; or the classes or their splits are not those that are
            published. A copy that calls all of its classes something else is checked by their
            number.
    """
    split_of: dict[str, str] = {}
    for item in found:
        if item.name in split_of:
            raise DataError(
                f"class {item.name!r} of {where} is in {split_of[item.name]!r} and in "
                f"{item.split!r}: splits must not overlap; give it to one of them"
            )
        split_of[item.name] = item.split
    published = dataset.split
    faults = []
    if published and (published.keys() & split_of.keys() or "" in split_of.values()):
        moved = [name for name, split in split_of.items() if published.get(name, split) != split]
        for fault, names in (
            ("lacks {}", published.keys() - split_of.keys()),
            ("adds {}", split_of.keys() - published.keys()),
            ("puts {} into another split", moved),
        ):
            if names:
                faults.append(f"it {fault.format(some(sorted(names), _NAMED))}")
    counts = Counter(split_of.values())
    for split, count in Counter(published.values()).items():
        if counts[split] != count:
            faults.append(f"it has {counts[split]} classes in {split!r}, and not {count}")
    if faults:
        raise DataError(
            f"{where} does not have the published split: {'; '.join(faults)}; get a complete copy "
            "with that split"
        )
