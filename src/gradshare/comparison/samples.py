"""Pictures of a comparison's test tasks."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gradshare.comparison.results import Picture, SampleTask, Values
from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.batch import task_of
from gradshare.training.labels import class_names

MOST_EXAMPLES = 10
MOST_PIXELS = 64
MOST_CHANNELS = 8
"""Inputs (C, L) with at most this number of channels are signals, others grey images."""

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def sample_tasks(
    source: TaskSource, predicted: Mapping[str, Sequence[Sequence[int]]]
) -> tuple[SampleTask, ...]:
    """The first tasks of a source, with pictures.

    Args:
        source: of the tasks.
        predicted: by arm, the label that it predicts for each query of each of these tasks. Empty
            if the tasks have no classes.

    Returns:
        The tasks. None if the inputs are not images (C, H, W) or (H, W), or signals (C, L).
    """
    count = min(map(len, predicted.values()), default=0)
    if count == 0:
        return ()
    batch = source.batch(range(count))
    x = batch.support_x
    if not isinstance(x, Tensor) or batch.support_y.shape != x.shape[:2]:
        return ()
    drawable = x.ndim == 4 or (x.ndim == 5 and x.shape[2] in (1, 3))
    if not drawable or not (x.is_floating_point() or x.dtype == torch.uint8):
        return ()
    names = class_names(source, count) or [()] * count
    return tuple(
        _sample(batch, task, names[task], {arm: rows[task] for arm, rows in predicted.items()})
        for task in range(count)
    )


def _sample(
    tasks: TaskBatch, task: int, classes: tuple[str, ...], predicted: Mapping[str, Sequence[int]]
) -> SampleTask:
    known = dict(enumerate(classes))

    def named(label: int) -> str:
        return known.get(label, f"class {label}")

    support_y = task_of(tasks.support_y, task, tasks.support_n).tolist()
    query_y = task_of(tasks.query_y, task, tasks.query_n).tolist()
    support = _pictures(task_of(tasks.support_x, task, tasks.support_n), support_y)
    queries = _pictures(task_of(tasks.query_x, task, tasks.query_n), query_y)
    return SampleTask(
        support=tuple(Picture(named(support_y[i]), image) for i, image in support.items()),
        queries=tuple(Picture(named(query_y[i]), image) for i, image in queries.items()),
        predicted={
            arm: tuple(named(labels[i]) for i in queries) for arm, labels in predicted.items()
        },
    )


def _pictures(inputs: Tensor, labels: list[int]) -> dict[int, str]:
    """Pictures of a few examples by their places, as many of each label, in the labels' order."""
    values = inputs.double().nan_to_num(0, 0, 0).numpy()
    scaled = (values - values.min()) / max(np.ptp(values), 1e-12)
    nth = [labels[:place].count(label) for place, label in enumerate(labels)]
    first = sorted(range(len(labels)), key=lambda place: (nth[place], labels[place]))
    draw = _signal if scaled.ndim == 3 and scaled.shape[1] <= MOST_CHANNELS else _image
    chosen = sorted(first[:MOST_EXAMPLES], key=lambda place: labels[place])
    return {place: draw(scaled[place]) for place in chosen}


def _image(pixels: Values) -> str:
    """An image (C, H, W) or (H, W) with values from 0 to 1."""
    channels = (255 * pixels).astype(np.uint8).reshape(-1, *pixels.shape[-2:])
    picture = Image.fromarray(channels[0] if len(channels) == 1 else np.moveaxis(channels, 0, -1))
    picture.thumbnail((MOST_PIXELS, MOST_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG" if picture.mode == "RGB" else "PNG")
    return data_uri("jpeg" if picture.mode == "RGB" else "png", buffer.getvalue())


def _signal(channels: Values) -> str:
    """A line for each channel of a signal (C, L) with values from 0 to 1."""
    drawing = ""
    for channel, color in zip(channels, COLORS * 2, strict=False):
        kept = channel[:: -(-channel.size // 200)]
        x = np.linspace(0, 100, kept.size)
        points = " ".join(f"{a:.1f},{50 - 50 * b:.1f}" for a, b in zip(x, kept, strict=True))
        drawing += f'<polyline points="{points}" fill="none" stroke="{color}"/>'
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="100" height="54" viewBox="0 -2 100 54">'
    return data_uri("svg+xml", f"{head}{drawing}</svg>".encode())


def data_uri(kind: str, content: bytes) -> str:
    """An image of a kind, such as "png", as the address that an `<img>` takes."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
