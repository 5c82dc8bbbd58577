"""Small pictures of examples: images and signals, for a page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

MOST_EXAMPLES = 10
MOST_PIXELS = 64
MOST_CHANNELS = 8
"""Inputs (C, L) with at most this number of channels are signals, others grey images."""

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def can_be_drawn(x: Tensor) -> bool:
    """Whether inputs (T, n, …) are images (C, H, W) or (H, W), or signals (C, L)."""
    shaped = x.ndim == 4 or (x.ndim == 5 and x.shape[2] in (1, 3))
    return shaped and (x.is_floating_point() or x.dtype == torch.uint8)


def pictures(inputs: Tensor, labels: list[int]) -> dict[int, str]:
    """Pictures of a few examples by their places, as many of each label, in the labels' order."""
    values = inputs.double().nan_to_num(0, 0, 0).numpy()
    scaled = (values - values.min()) / max(np.ptp(values), 1e-12)
    nth = [labels[:place].count(label) for place, label in enumerate(labels)]
    first = sorted(range(len(labels)), key=lambda place: (nth[place], labels[place]))
    draw = _signal if scaled.ndim == 3 and scaled.shape[1] <= MOST_CHANNELS else _image
    chosen = sorted(first[:MOST_EXAMPLES], key=lambda place: labels[place])
    return {place: draw(scaled[place]) for place in chosen}


def _image(pixels: npt.NDArray[Any]) -> str:
    """An image (C, H, W) or (H, W) with values from 0 to 1."""
    channels = (255 * pixels).astype(np.uint8).reshape(-1, *pixels.shape[-2:])
    picture = Image.fromarray(channels[0] if len(channels) == 1 else np.moveaxis(channels, 0, -1))
    picture.thumbnail((MOST_PIXELS, MOST_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG" if picture.mode == "RGB" else "PNG")
    return data_uri("jpeg" if picture.mode == "RGB" else "png", buffer.getvalue())


def _signal(channels: npt.NDArray[Any]) -> str:
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
