"""Drawing tasks of images: our source, beside a loader that decodes each image each time."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import gradshare as gs
from benchmarks.problems import Problem

CLASSES = 20
CELL = 28  # pixels of one colour, but for the noise


class Store:
    """Tasks from an image store of random images.

    Args:
        problem: its network's inputs are the images.
    """

    layout = "uint8 images in memory"
    units = 20

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.drawn = 0
        self.pixels = _images(problem)
        classes = [
            *(gs.ClassImages("train", f"{n:02}", pixels) for n, pixels in enumerate(self.pixels)),
            gs.ClassImages("val", "val", self.pixels[0, :1]),
            gs.ClassImages("test", "test", self.pixels[0, :1]),
        ]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "store"
            gs.write_store(path, classes, name="benchmark", rotate_classes=False, source={})
            images = gs.ImageStore.open(path).splits["train"]  # mapped: it outlives its files
        self.source = gs.ImageTasks(images, ways=5, shots=problem.shots, queries=problem.queries)

    def run(self) -> None:
        """Draw some tasks, each time others."""
        for index in range(self.drawn, self.drawn + self.units):
            self.draw(index)
        self.drawn += self.units

    def draw(self, index: int) -> gs.TaskBatch:
        """One task of uint8 images."""
        return self.source.batch([index])


class Files(Store):
    """The same tasks, from JPEG files that are decoded each time. They are in memory and need no
    resizing, which spares the loader work that photographs give it.
    """

    layout = "JPEG files in memory"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.files = []
        for pixels in self.pixels.reshape(-1, *self.pixels.shape[2:]):
            file = io.BytesIO()
            Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "JPEG", quality=90)
            self.files.append(file)

    def draw(self, index: int) -> gs.TaskBatch:
        """See `Store`."""
        rows, _ = self.source.rows(index)
        shots, labels = self.problem.shots, torch.arange(5)
        return gs.TaskBatch(
            self._decoded(rows[:, :shots].ravel().tolist()),
            labels.repeat_interleave(shots)[None],
            self._decoded(rows[:, shots:].ravel().tolist()),
            labels.repeat_interleave(self.problem.queries)[None],
        )

    def _decoded(self, rows: list[int]) -> Tensor:
        images = []
        for row in rows:
            with Image.open(self.files[row]) as image:
                pixels = torch.from_numpy(np.array(image))
            images.append(pixels.movedim(-1, 0))
        return torch.stack(images)[None]


def _images(problem: Problem) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(classes, images, channels, size, size) coarse patterns with a little noise, which JPEG
    compresses about as well as photographs.
    """
    random = np.random.default_rng(0)
    channels, size, _ = problem.kind.shape
    each, cells = problem.shots + problem.queries, size // CELL + 1
    coarse = random.integers(0, 236, (CLASSES, each, channels, cells, cells))
    pixels = coarse.repeat(CELL, axis=3).repeat(CELL, axis=4)[..., :size, :size]
    return (pixels + random.integers(0, 20, pixels.shape)).astype(np.uint8)
