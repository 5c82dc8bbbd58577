"""A picture of a dataset: some images of some classes of every split."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gradshare.tasks.store import SPLITS, Images, ImageStore, Split

# In pixels.
CELL = 56  # smaller images are enlarged to it, by a whole factor
GAP = 2
NAME_WIDTH = 240
HEADING_HEIGHT = 40
PADDING = 12

PAPER, INK, FAINT = (255, 255, 255), (0, 0, 0), (110, 110, 110)


def contact_sheet(
    store: ImageStore, *, classes: int = 10, images: int = 12, seed: int = 0
) -> Image.Image:
    """Draw a block for each split: a row a class, with the class's name.

    Args:
        store: an opened store.
        classes: how many classes of each split, at most.
        images: how many images of each class, at most.
        seed: chooses the classes and images.
    """
    random = np.random.default_rng(seed)
    size = store.image_shape[-1]
    factor = max(1, round(CELL / size))
    step = size * factor + GAP
    blocks = [(store.splits[name], _choose(store.splits[name], classes, random)) for name in SPLITS]
    height = sum(HEADING_HEIGHT + len(chosen) * step + PADDING for _, chosen in blocks)
    width = PADDING + NAME_WIDTH + images * step + PADDING
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = 0
    for split, chosen in blocks:
        heading = f"{store.name}: {split.name}"
        counted = f"{len(split.class_names):,} classes, {split.counts.sum():,} images"
        draw.text((PADDING, top + 10), heading, INK, _font(18, bold=True))
        draw.text((PADDING + NAME_WIDTH, top + 13), counted, FAINT, _font(14))
        top += HEADING_HEIGHT
        for number in chosen:
            _draw_name(draw, split.class_names[number], top, step - GAP)
            count = int(split.counts[number])
            picked = random.permutation(count)[:images]
            for column, image in enumerate(split.images[split.starts[number] + picked]):
                corner = (PADDING + NAME_WIDTH + column * step, top)
                sheet.paste(_picture(image, factor), corner)
            top += step
        top += PADDING
    return sheet


def _choose(split: Split, classes: int, random: np.random.Generator) -> list[int]:
    """Some classes, in the store's order."""
    return sorted(random.permutation(len(split.class_names))[:classes].tolist())


def _picture(image: Images, factor: int) -> Image.Image:
    channels = image if len(image) == 3 else image.repeat(3, axis=0)
    picture = Image.fromarray(np.ascontiguousarray(channels.transpose(1, 2, 0)))
    return picture.resize(
        (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
    )


def _draw_name(draw: ImageDraw.ImageDraw, name: str, top: int, height: int) -> None:
    """A class's name beside its row, on as many lines as it needs and the row has room for."""
    font = _font(12)
    room = NAME_WIDTH - PADDING
    lines = [""]
    for character in name:
        # A line breaks after what separates words in class names, or where it is full.
        if draw.textlength(lines[-1] + character, font) > room:
            cut = max(lines[-1].rfind(mark) for mark in " /_-.") + 1 or len(lines[-1])
            lines[-1:] = [lines[-1][:cut], lines[-1][cut:]]
        lines[-1] += character
    line_height = math.ceil(font.size * 1.25)
    most = max(1, height // line_height)
    if len(lines) > most:
        lines[most - 1] = lines[most - 1].rstrip()[:-1] + "…"
    for number, line in enumerate(lines[:most]):
        draw.text((PADDING, top + number * line_height), line, INK, font)


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(fonts / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"), size)
