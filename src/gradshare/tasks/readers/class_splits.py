"""Which classes are in which split: as published, from a file of the user's own, or by chance."""

from __future__ import annotations

import difflib
import itertools
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from gradshare.errors import ConfigError, DataError, some
from gradshare.tasks.readers.dataset import Dataset, FoundClass, Notes
from gradshare.tasks.readers.files import read_json
from gradshare.tasks.readers.lists import classes_in_lists, is_image
from gradshare.tasks.store import SPLITS

UNUSED = "unused"

# Of train, val and test: mini-ImageNet's shares.
SHARES = (0.64, 0.16, 0.20)

_PUBLISHED = Path(__file__).with_name("published_splits.toml")
MOST_NAMES = 5  # in an error


@cache
def published_split(dataset: str) -> dict[str, str]:
    """The split of each class of a benchmark, from the list of its classes."""
    lists = tomllib.loads(_PUBLISHED.read_text(encoding="utf-8"))[dataset]
    return {name: split for split, names in lists.items() for name in names.split()}


def with_splits(found: Sequence[FoundClass], notes: Notes, dataset: Dataset) -> list[FoundClass]:
    """Put the classes that have no split into the published one, and check all splits.

    Raises:
        DataError: two classes have one name, a split has no class, or the splits are not the
            published ones. Of a copy that has other names for all classes, only their number in
            each split is checked.
    """
    published = dataset.split
    split_of: dict[str, str] = {}
    for item in found:
        split = item.split or published.get(item.name, "")
        if item.name in split_of:
            raise DataError(
                f"class {item.name!r} of {notes.path} is in {split_of[item.name]!r} and in "
                f"{split!r}: splits must not overlap; give it to one of them"
            )
        split_of[item.name] = split
    empty = [split for split in SPLITS if split not in split_of.values()]
    if empty and notes.splits:
        raise DataError(
            f"no class of {notes.path} is in split {empty[0]!r}, by {notes.splits}; every split "
            "needs one: add it, or leave the splits out to have them drawn"
        )
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
            f"{notes.path} does not have the published split: {'; '.join(faults)}; get a complete "
            "copy with that split"
        )
    return [replace(item, split=split_of[item.name]) for item in found]


def split_by_file(found: Sequence[FoundClass], path: Path, notes: Notes) -> list[FoundClass]:
    """The classes that a JSON file puts into splits, `{"train": ["cat", …], "val": […], …}`.

    It may name images, `{"train": ["cat/1.jpg", …], …}`, instead of classes. A fourth list
    "unused" may name classes to leave out.

    Raises:
        DataError: the file has another form, or does not name every class once.
    """
    example = '{"train": ["class", …], "val": […], "test": […]}'
    named = read_json(path, example)
    lists_of_names = isinstance(named, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names)
        for names in named.values()
    )
    if not lists_of_names or set(named) - {UNUSED} != set(SPLITS):
        raise DataError(f"{path} does not give the three splits; it must be {example}")
    if all(map(is_image, itertools.chain(*named.values()))):
        listings = {split: dict.fromkeys(names, "") for split, names in named.items()}
        listed = classes_in_lists(found, listings, notes)
        return [item for item in listed if item.split != UNUSED]
    known = [item.name for item in found]
    split_of: dict[str, str] = {}
    for split, names in named.items():
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise DataError(
                    f"{path} names class {name!r} in {split!r}, but there is no such class{hint}; "
                    "correct the name or add the class"
                )
            if name in split_of:
                raise DataError(f"{path} names class {name!r} twice; give it to one split")
            split_of[name] = split
    unnamed = [name for name in known if name not in split_of]
    if unnamed:
        raise DataError(
            f"{path} gives class {unnamed[0]!r} ({len(unnamed)} in all) no split; add it to one, "
            f'or to a list "{UNUSED}"'
        )
    return [
        replace(item, split=split_of[item.name]) for item in found if split_of[item.name] != UNUSED
    ]


def split_by_chance(
    found: Sequence[FoundClass], notes: Notes, seed: int, shares: Sequence[float] | None
) -> list[FoundClass]:
    """Deal classes to train, val and test at random, of 6 or more at least two to each.

    Raises:
        ConfigError: the shares are not three fractions that add up to 1.
        DataError: there are fewer than three classes.
    """
    notes.seed, notes.splits = seed, f"drawn with seed {seed}"
    if shares is None:
        shares = SHARES
    else:
        notes.splits += f" and shares {some(shares)}"
    if len(shares) != len(SPLITS) or min(shares) <= 0 or not abs(sum(shares) - 1) < 1e-6:
        raise ConfigError(
            f"the shares of the splits are {', '.join(f'{share:g}' for share in shares)}; give "
            "three fractions above 0 that add up to 1, such as 0.6,0.2,0.2 for train, val and test"
        )
    if len(found) < len(SPLITS):
        raise DataError(
            f"{notes.path} has {len(found)} classes; at least 3 are needed, one for each of train, "
            "val and test (and as many in each as the tasks have ways); give each class a folder "
            "of its images"
        )
    shuffled = np.random.default_rng(seed).permutation(len(found)).tolist()
    least = 2 if len(found) >= 2 * len(SPLITS) else 1  # a task has at least two
    val = min(max(least, round(shares[1] * len(found))), len(found) - 2 * least)
    test = min(max(least, round(shares[2] * len(found))), len(found) - least - val)
    split_of = dict.fromkeys(shuffled, "train")
    split_of |= dict.fromkeys(shuffled[:val], "val")
    split_of |= dict.fromkeys(shuffled[val : val + test], "test")
    return [replace(item, split=split_of[number]) for number, item in enumerate(found)]
