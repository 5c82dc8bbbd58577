"""A picture of a dataset: some images of some classes of every split."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradshare.errors import escaped
from gradshare.tasks.store import ImageStore, Split

NAME_LENGTH = 40  # characters of a class's name
SIDE = 0.5  # inches of an image


def contact_sheet(
    store: ImageStore, *, classes: int = 10, images: int = 12, seed: int = 0
) -> Figure:
    """Draw a block for each split: a row of images for each of some classes, with its name."""
    random = np.random.default_rng(seed)
    splits = list(store.splits.values())
    rows = [min(classes, len(split.class_names)) for split in splits]
    size = (SIDE * images + 3, SIDE * (sum(rows) + len(rows)))
    figure = Figure(figsize=size, layout="constrained")
    blocks = figure.subplots(len(splits), height_ratios=rows)
    for axes, split in zip(blocks, splits, strict=True):
        chosen = sorted(random.permutation(len(split.class_names))[:classes].tolist())
        _draw(axes, split, chosen, images, random)
        counted = f"{len(split.class_names):,} classes, {split.counts.sum():,} images"
        axes.set_title(f"{store.name}, {split.name}: {counted}", loc="left", fontsize=10)
    return figure


def _draw(
    axes: Axes, split: Split, chosen: list[int], images: int, random: np.random.Generator
) -> None:
    """Draw a row of images for each of the chosen classes."""
    channels, side, _ = split.images.shape[1:]
    step = side + 1  # with a white line
    block = np.full((len(chosen), images, channels, step, step), 255, dtype=np.uint8)
    for row, number in enumerate(chosen):
        picked = random.permutation(int(split.counts[number]))[:images]
        block[row, : len(picked), :, :side, :side] = split.images[split.starts[number] + picked]
    # (rows, columns, C, H, W) to one image (rows·H, columns·W, C)
    sheet = block.transpose(0, 3, 1, 4, 2).reshape(len(chosen) * step, images * step, channels)
    axes.imshow(sheet.repeat(3 // channels, axis=-1), interpolation="nearest")
    names = [escaped(split.class_names[number]) for number in chosen]
    shown = [name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…" for name in names]
    middles = [step * (row + 0.5) for row in range(len(chosen))]
    axes.set_yticks(middles, shown, fontsize=7, parse_math=False)
    axes.set_xticks([])
