"""Class names and pictures of a comparison's test tasks."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gradshare.comparison.results import Example, SampleTask, Values
from gradshare.tasks import TaskSource
from gradshare.tasks.batch import task_of
from gradshare.training.state import SAMPLE_TASKS

MOST_EXAMPLES = 10
MOST_PIXELS = 64
MOST_CHANNELS = 8
"""Inputs (C, L) with at most so many channels are signals, others grey images."""

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def class_names(source: TaskSource, tasks: int) -> list[tuple[str, ...]]:
    """The names of the labels of tasks 0, …, n - 1; an empty list if the source has none."""
    classes_of = getattr(source, "classes_of", None)
    if classes_of is None:
        return []
    return [tuple(map(str, classes_of(index))) for index in range(tasks)]


def sample_tasks(source: TaskSource, tasks: int) -> tuple[SampleTask, ...]:
    """Pictures of the first of some tasks.

    Args:
        source: of the tasks, which have one class for each example.
        tasks: how many there are.

    Returns:
        At most `SAMPLE_TASKS` tasks. None if the inputs are not images (C, H, W) or (H, W), or
        signals (C, L).
    """
    count = min(SAMPLE_TASKS, tasks)
    batch = source.batch(range(count))
    names = class_names(source, count) or [()] * count
    x = batch.support_x
    if not isinstance(x, Tensor) or batch.support_y.shape != x.shape[:2]:
        return ()
    drawable = x.ndim == 4 or (x.ndim == 5 and x.shape[2] in (1, 3))
    if not drawable or not (x.is_floating_point() or x.dtype == torch.uint8):
        return ()
    found = []
    for task, classes in enumerate(names):
        sets = []
        for inputs, labels, sizes in (
            (x, batch.support_y, batch.support_n),
            (batch.query_x, batch.query_y, batch.query_n),
        ):
            values = task_of(inputs, task, sizes).double().nan_to_num(0, 0, 0).numpy()
            sets.append(_examples(values, task_of(labels, task, sizes).tolist()))
        found.append(SampleTask(classes=classes, support=sets[0], queries=sets[1]))
    return tuple(found)


def _examples(values: Values, labels: list[int]) -> tuple[Example, ...]:
    """A few examples, as many of each label as of the others, in the order of their labels."""
    nth = [labels[:place].count(label) for place, label in enumerate(labels)]
    first = sorted(range(len(labels)), key=lambda place: (nth[place], labels[place]))
    low, high = values.min(), values.max()
    scaled = (values - low) / max(high - low, 1e-12)
    signals = scaled.ndim == 3 and scaled.shape[1] <= MOST_CHANNELS
    draw = _signal if signals else _image
    return tuple(
        Example(place=place, label=labels[place], picture=draw(scaled[place]))
        for place in sorted(first[:MOST_EXAMPLES], key=lambda place: labels[place])
    )


def _image(pixels: Values) -> str:
    """An image (C, H, W) or (H, W) with values from 0 to 1."""
    channels = (255 * pixels).astype(np.uint8).reshape(-1, *pixels.shape[-2:])
    picture = Image.fromarray(channels[0] if len(channels) == 1 else np.moveaxis(channels, 0, -1))
    picture.thumbnail((MOST_PIXELS, MOST_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG" if picture.mode == "RGB" else "PNG")
    return _data("jpeg" if picture.mode == "RGB" else "png", buffer.getvalue())


def _signal(channels: Values) -> str:
    """A line for each channel of a signal (C, L) with values from 0 to 1."""
    drawing = ""
    for channel, color in zip(channels, COLORS * 2, strict=False):
        kept = channel[:: -(-channel.size // 200)]
        x = np.linspace(0, 100, kept.size)
        points = " ".join(f"{a:.1f},{50 - 50 * b:.1f}" for a, b in zip(x, kept, strict=True))
        drawing += f'<polyline points="{points}" fill="none" stroke="{color}"/>'
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="100" height="54" viewBox="0 -2 100 54">'
    return _data("svg+xml", f"{head}{drawing}</svg>".encode())


def _data(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
