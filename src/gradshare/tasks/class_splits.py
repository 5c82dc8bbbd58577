"""Which classes of the user's own images are in which split: from a file, or by chance."""

from __future__ import annotations

import difflib
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from gradshare.errors import ConfigError, DataError
from gradshare.tasks.dataset import FoundClass
from gradshare.tasks.lists import classes_in_lists, is_image, places_of
from gradshare.tasks.reading import Notes
from gradshare.tasks.store import SPLITS
from gradshare.tasks.web_page import refuse_web_page

UNUSED = "unused"

# Of train, val and test: mini-ImageNet's shares.
SHARES = (0.64, 0.16, 0.20)


def split_by_file(found: Sequence[FoundClass], path: Path, notes: Notes) -> list[FoundClass]:
    """The classes that a JSON file puts into splits, `{"train": ["cat", …], "val": […], …}`.

    It may name images, `{"train": ["cat/1.jpg", …], …}`, instead of classes. A fourth list
    "unused" may name classes to leave out.

    Raises:
        DataError: it is no such file, or does not name every class once.
    """
    example = '{"train": ["class", …], "val": […], "test": […]}'
    try:
        refuse_web_page(path, "a list of classes")
        named = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is not readable as JSON ({error}); it must be {example}"
        ) from error
    lists_of_names = isinstance(named, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names)
        for names in named.values()
    )
    if not lists_of_names or set(named) - {UNUSED} != set(SPLITS):
        raise DataError(f"{path} does not give the three splits; it must be {example}")
    if any(named.values()) and all(map(is_image, itertools.chain(*named.values()))):
        places = places_of((image for item in found for image in item.images), notes.name)
        listings = {split: dict.fromkeys(names, "") for split, names in named.items()}
        return classes_in_lists(listings, places, notes.path)
    known = [item.name for item in found]
    for split, names in named.items():
        if not names and split != UNUSED:
            raise DataError(f"{path} gives split {split!r} no classes; it needs at least one")
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise DataError(
                    f"{path} names class {name!r} in {split!r}, but there is no such class{hint}; "
                    "correct the name or add the class"
                )
    times = Counter(name for names in named.values() for name in names)
    twice = [name for name in times if times[name] > 1]
    if twice:
        raise DataError(f"{path} names class {twice[0]!r} twice; give it to one split")
    unnamed = [name for name in known if name not in times]
    if unnamed:
        raise DataError(
            f"{path} gives class {unnamed[0]!r} ({len(unnamed)} in all) no split; add it to one, "
            f'or to a list "{UNUSED}"'
        )
    split_of = {name: split for split, names in named.items() for name in names}
    return [
        replace(item, split=split_of[item.name]) for item in found if split_of[item.name] != UNUSED
    ]


def split_by_chance(
    found: Sequence[FoundClass], where: Path, seed: int, shares: Sequence[float] = SHARES
) -> list[FoundClass]:
    """Deal classes to the splits at random, at least one to each.

    Args:
        found: the classes.
        where: what they were found in, for the message.
        seed: the same seed gives the same splits.
        shares: of the classes, for train, val and test.

    Raises:
        ConfigError: the shares are not three fractions that add up to 1.
        DataError: there are fewer than three classes.
    """
    if len(shares) != len(SPLITS) or min(shares) <= 0 or not abs(sum(shares) - 1) < 1e-6:
        raise ConfigError(
            f"the shares of the splits are {', '.join(f'{share:g}' for share in shares)}; give "
            "three fractions above 0 that add up to 1, such as 0.6,0.2,0.2 for train, val and test"
        )
    if len(found) < len(SPLITS):
        raise DataError(
            f"{where} has {len(found)} classes; at least 3 are needed, one for each of train, val "
            "and test (and as many in each as the tasks have ways); give each class a folder of "
            "its images"
        )
    shuffled = np.random.default_rng(seed).permutation(len(found))
    val = min(max(1, round(shares[1] * len(found))), len(found) - 2)
    test = min(max(1, round(shares[2] * len(found))), len(found) - 1 - val)
    split_of = dict.fromkeys(shuffled.tolist(), "train")
    split_of |= dict.fromkeys(shuffled[:val].tolist(), "val")
    split_of |= dict.fromkeys(shuffled[val : val + test].tolist(), "test")
    return [replace(item, split=split_of[number]) for number, item in enumerate(found)]
