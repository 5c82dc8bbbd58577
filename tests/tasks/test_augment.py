"""Augmentation changes training images alone, and depends on a task's index only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gradshare as gs
from gradshare.errors import ConfigError
from gradshare.tasks import ImageStore, ImageTasks
from gradshare.tasks.augment import JITTER, Augmentation, augmented
from gradshare.tasks.source import require_pure
from gradshare.tasks.writing import write_store
from tests.tasks.builders import random_classes, random_images, random_store

KINDS = get_args(Augmentation)
COUNTS = {"train": [6, 6, 6], "val": [6, 6], "test": [6, 6]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    return random_store(tmp_path_factory.mktemp("data") / "20", COUNTS, channels=3, size=20)


def images(count: int = 40, channels: int = 3, size: int = 20) -> Tensor:
    return torch.from_numpy(random_images(count, channels=channels, size=size))


def changed(batch: Tensor, *kinds: Augmentation) -> Tensor:
    return augmented(batch.clone(), kinds, np.random.default_rng(3))


def test_flip_mirrors_some_images_whole() -> None:
    before = images()
    after = changed(before, "flip")
    mirrored = [torch.equal(new, old.flip(-1)) for new, old in zip(after, before, strict=True)]
    same = [torch.equal(new, old) for new, old in zip(after, before, strict=True)]
    assert 8 < sum(mirrored) < 32
    assert [not one for one in mirrored] == same


def test_crop_moves_an_image_over_black_by_at_most_a_tenth() -> None:
    before = images()
    after = changed(before, "crop")
    moves = set()
    for new, old in zip(after, before, strict=True):
        padded = torch.zeros(3, 24, 24, dtype=torch.uint8)
        padded[:, 2:22, 2:22] = old
        fits = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(new, padded[:, y : y + 20, x : x + 20])
        ]
        assert len(fits) == 1
        moves.update(fits)
    assert len(moves) > 10


def literal_jitter(image: Tensor, factors: Sequence[float]) -> Tensor:
    """Brightness, contrast and saturation of one image (3, H, W), written out."""

    def grey(x: Tensor) -> Tensor:
        return 0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]

    brightness, contrast, saturation = factors
    x = (image.double() * brightness).clamp(0, 255)
    x = (contrast * x + (1 - contrast) * grey(x).mean()).clamp(0, 255)
    x = (saturation * x + (1 - saturation) * grey(x)).clamp(0, 255)
    return x.round()


def test_colour_is_the_literal_brightness_contrast_and_saturation() -> None:
    before = images(10)
    after = changed(before, "colour")
    factors = np.random.default_rng(3).uniform(1 - JITTER, 1 + JITTER, size=(3, 10))
    for number in range(10):
        exact = literal_jitter(before[number], factors[:, number].tolist())
        assert (after[number] - exact).abs().max() <= 1, "they may be rounded differently"


def test_colour_leaves_a_grey_image_grey_and_a_constant_one_constant() -> None:
    assert changed(images(5, channels=1), "colour").shape == (5, 1, 20, 20)
    flat = torch.full((5, 3, 20, 20), 100, dtype=torch.uint8)
    after = changed(flat, "colour")
    assert torch.equal(after, after[:, :1, :1, :1].expand_as(after))


@settings(deadline=None, max_examples=20)
@given(
    kinds=st.sets(st.sampled_from(KINDS), min_size=1),
    index=st.integers(2**40, 2**60),
    other=st.integers(0, 2**60),
)
def test_a_task_depends_on_its_index_only(
    kinds: set[Augmentation], index: int, other: int, store: ImageStore
) -> None:
    train, *_ = gs.image_splits(store, ways=(1, 2), shots=(1, 3), queries=3, augment=tuple(kinds))
    require_pure(train, index, other)


def test_only_training_images_are_changed(store: ImageStore) -> None:
    plain = gs.image_splits(store, ways=2, queries=3)
    augmenting = gs.image_splits(store, ways=2, queries=3, augment=KINDS)
    same = []
    for one, other in zip(plain, augmenting, strict=True):
        before, after = one.batch([5]), other.batch([5])
        assert torch.equal(before.query_y, after.query_y)
        assert after.support_x.dtype == torch.uint8
        same.append(
            torch.equal(before.support_x, after.support_x)
            and torch.equal(before.query_x, after.query_x)
        )
    assert same == [False, True, True]
    assert plain[0].fingerprint != augmenting[0].fingerprint
    assert plain[1].fingerprint == augmenting[1].fingerprint


def test_an_unknown_augmentation_is_named(store: ImageStore) -> None:
    with pytest.raises(ConfigError, match="augment 'mixup' is unknown; use 'flip' or 'crop'"):
        ImageTasks(store.splits["train"], ways=2, queries=1, augment=("mixup",))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["glyphs", "omniglot", "omniglot-lake"])
def test_characters_are_not_mirrored(tmp_path: Path, name: str) -> None:
    store = write_store(
        tmp_path / "4", random_classes(COUNTS), name=name, rotate_classes=False, source={}
    )
    gs.image_splits(store, ways=2, queries=3, augment=("crop", "colour"))
    with pytest.raises(ConfigError, match=f"a mirrored character of {name} is another one or"):
        gs.image_splits(store, ways=2, queries=3, augment=("crop", "flip"))
