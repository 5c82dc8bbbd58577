"""Small stores and folders of images for the tests of the episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from gradshare.tasks.drawing import Size
from gradshare.tasks.store import Images, ImageStore
from gradshare.tasks.writing import ClassImages, write_store


def up_to(most: int) -> st.SearchStrategy[Size]:
    """A number from 1 on, or a range of numbers."""
    number = st.integers(1, most)
    return number | st.tuples(number, number).map(lambda pair: (min(pair), max(pair)))


def is_of(number: int, size: Size) -> bool:
    """Whether a task may have this number of ways or shots."""
    return size[0] <= number <= size[1] if isinstance(size, tuple) else number == size


def random_images(
    count: int, *, channels: int = 1, size: int = 4, seed: Sequence[int] = (0,)
) -> Images:
    """Noise: at this size no two images are equal."""
    return np.random.default_rng(list(seed)).integers(
        0, 256, (count, channels, size, size), dtype=np.uint8
    )


def random_classes(
    counts: Mapping[str, Sequence[int]], *, channels: int = 1, size: int = 4
) -> list[ClassImages]:
    """Classes of noise: `counts` gives how many images each class of each split has."""
    return [
        ClassImages(
            split,
            f"{split} class {number}",
            random_images(count, channels=channels, size=size, seed=(len(split), number)),
        )
        for split, of_split in counts.items()
        for number, count in enumerate(of_split)
    ]


def random_store(path: Path, counts: Mapping[str, Sequence[int]], **form: int) -> ImageStore:
    """A store of `random_classes`."""
    return write_store(
        path, random_classes(counts, **form), name="noise", rotate_classes=False, source={}
    )


def make_image(path: Path, shade: int = 100, mode: str = "RGB", size: int = 10) -> Path:
    """Write an image of one shade, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (size, size), shade).convert(mode).save(path)
    return path


def make_classes(root: Path, names: Sequence[str], images: int = 2, mode: str = "RGB") -> Path:
    """Write a folder of class folders."""
    for name in names:
        for number in range(images):
            make_image(root / name / f"{number}.png", shade=40 * number, mode=mode)
    return root
