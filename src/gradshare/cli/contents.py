"""What prepared datasets hold, printed and drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gradshare.errors import DataError, escaped, some
from gradshare.tasks.features import FORM, FeatureStore
from gradshare.tasks.image_tasks import image_splits
from gradshare.tasks.registry import DATASETS, prepared
from gradshare.tasks.store import NO_VALIDATION, SPLITS, ImageStore, Split

Counts = Mapping[str, npt.NDArray[np.int64]]
"""The number of examples of each class of each split."""

MOST_FILES = 10
"""How many files are printed by name."""

_NOTES = {"Left out": "skipped", "Duplicates": "duplicates"}
"""What a store's source has of the images that were read."""

NAME_LENGTH = 40  # characters of a class's name, in a contact sheet
SIDE = 0.5  # inches of an image, in a contact sheet

WIDE = 200
"""Columns for a table, of which a narrow terminal breaks the lines instead of hiding numbers."""


def print_datasets(data_root: Path) -> None:
    """Print the datasets that are prepared below a folder, and those that can be."""
    table = Table()
    for column in ("dataset", "prepared as", "classes: train / val / test", "examples"):
        table.add_column(column)
    there = prepared(data_root)
    for name, forms in there.items():
        for form in forms:
            try:
                counts = _counts(data_root / name / form)
            except DataError as error:
                click.echo(str(error), err=True)
                continue
            classes = " / ".join(f"{len(of_split):,}" for of_split in counts.values())
            examples = sum(int(of_split.sum()) for of_split in counts.values())
            table.add_row(escaped(name), escaped(form), classes, f"{examples:,}")
    for name in DATASETS:
        if name not in there:
            table.add_row(name, "not prepared")
    Console(width=WIDE).print(table)


def print_images(store: ImageStore) -> None:
    """Print what a store of images holds, and how much was read, left out and found twice."""
    channels, height, width = store.image_shape
    counts = {name: split.counts for name, split in store.splits.items()}
    _print_table(f"{store.name}, {channels}×{height}×{width}", counts)
    mean, std = (" ".join(f"{value:.4f}" for value in values) for values in (store.mean, store.std))
    click.echo(f"Pixels of train, in [0, 1]: mean {mean}, standard deviation {std}")
    if store.rotate_classes:
        click.echo("Training episodes turn each class by a random multiple of 90°")
    source = {name: value for name, value in store.source.items() if name not in _NOTES.values()}
    click.echo(yaml.safe_dump(source, sort_keys=False, allow_unicode=True).rstrip())
    print_notes(store)


def print_features(store: FeatureStore) -> None:
    """Print what a store of features holds."""
    _print_table(f"{len(store.mean)} features of {store.name}", _counts(store.path))
    record = {"backbone": store.backbone.model_dump(mode="json"), **store.source}
    click.echo(yaml.safe_dump(record, sort_keys=False, allow_unicode=True).rstrip())


def _counts(path: Path) -> Counts:
    if path.name != FORM:
        store = ImageStore.open(path)
        counts = {name: split.counts for name, split in store.splits.items()}
        if store.source.get("splits") == NO_VALIDATION:
            counts["val"] = counts["val"][:0]
        return counts
    FeatureStore.open(path)  # refuses a damaged one
    return {
        name: np.unique(np.load(path / name / "y.npy"), return_counts=True)[1] for name in SPLITS
    }


def _print_table(title: str, counts: Counts) -> None:
    table = Table(title=Text(escaped(title)), title_justify="left")
    table.add_column("split")
    for column in ("classes", "images", "images a class"):
        table.add_column(column, justify="right")
    for name, of_split in counts.items():
        least, most = of_split.min(), of_split.max()
        table.add_row(
            name,
            f"{len(of_split):,}",
            f"{of_split.sum():,}",
            f"{least:,}" if least == most else f"{least:,} to {most:,}",
        )
    Console(width=WIDE).print(table)


def print_notes(store: ImageStore) -> None:
    """Print how much was read, what was left out, and which tasks it is enough for."""
    splits = store.splits.values()
    # Validation classes may be those of training.
    counts = {
        name: int(count)
        for split in splits
        for name, count in zip(split.class_names, split.counts, strict=True)
    }
    groups = store.splits["train"].groups
    of_groups = "" if groups is None else f" and {len(np.unique(groups)):,} groups"
    click.echo(f"Read {sum(counts.values()):,} images of {len(counts):,} classes{of_groups}")
    for title, kind in _NOTES.items():
        notes = [
            f"{len(files):,} {reason} ({some(files, MOST_FILES)})"
            for reason, files in store.source.get(kind, {}).items()
        ]
        if notes:
            click.echo(escaped(f"{title}: {', '.join(notes)}"))
    fewest = min(splits, key=lambda split: len(split.class_names))
    smallest = min(counts, key=lambda name: counts[name])
    limits = (
        f"Tasks can be up to {len(fewest.class_names)}-way (the classes of {fewest.name!r}), with "
        f"up to {counts[smallest]} shots + queries (the images of {smallest!r})"
    )
    click.echo(escaped(limits))
    try:
        image_splits(store)
    except DataError as error:
        click.echo(f"The default tasks do not fit: {error}")


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
