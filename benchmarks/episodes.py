"""Drawing episodes: our source of tasks, beside a loader that decodes each image each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.problems import Problem, draw_tasks
from gradshare.tasks import ImageStore, ImageTasks, TaskBatch
from gradshare.tasks.writing import ClassImages, write_store

CLASSES, IMAGES = 20, 30
STORE, FILES = "store", "files"


def write_images(problem: Problem, folder: Path) -> None:
    """The same images as a prepared store and as JPEG files of the target size, one folder a class.

    The files need no resizing, which spares the loader work that real photographs give it.
    """
    classes = []
    shape = (CLASSES, IMAGES, problem.channels, problem.image_size, problem.image_size)
    tasks = draw_tasks(_a_task_of_all_images(problem), 1, problem.seed)
    for index, pixels in enumerate(tasks.query_x.numpy().reshape(shape)):
        name = f"class-{index:02}"
        (folder / FILES / name).mkdir(parents=True)
        for number, image in enumerate(pixels):
            squeezed = image[0] if problem.channels == 1 else image.transpose(1, 2, 0)
            Image.fromarray(squeezed).save(folder / FILES / name / f"{number:02}.jpg", quality=90)
        classes.append(ClassImages("train", name, pixels))
    for split in ("val", "test"):
        classes.append(ClassImages(split, split, classes[0].images[:1]))
    write_store(folder / STORE, classes, name="benchmark", rotate_classes=False, source={})


def _a_task_of_all_images(problem: Problem) -> Problem:
    return Problem(
        problem.image_size, problem.channels, shots=1, task_batch=1, ways=CLASSES, queries=IMAGES
    )


def open_tasks(problem: Problem, folder: Path) -> ImageTasks:
    """Our source of tasks over the images that `write_images` wrote."""
    return ImageTasks(
        ImageStore.open(folder / STORE).splits["train"],
        ways=problem.ways,
        shots=problem.shots,
        queries=problem.queries,
    )


class DecodingLoader:
    """The same episodes from the JPEG files, as a data set class that opens its images in
    `__getitem__` loads them.
    """

    def __init__(self, problem: Problem, folder: Path) -> None:
        self.problem = problem
        self.rows = open_tasks(problem, folder).rows
        self.paths = sorted((folder / FILES).glob("*/*.jpg"))

    def batch(self, index: int) -> TaskBatch:
        """One episode, as uint8 images."""
        rows, _ = self.rows(index)
        shots = self.problem.shots
        labels = torch.arange(self.problem.ways)
        return TaskBatch(
            self._decoded(rows[:, :shots].ravel().tolist()),
            labels.repeat_interleave(shots)[None],
            self._decoded(rows[:, shots:].ravel().tolist()),
            labels.repeat_interleave(self.problem.queries)[None],
        )

    def _decoded(self, rows: list[int]) -> Tensor:
        images = []
        for row in rows:
            with Image.open(self.paths[row]) as image:
                pixels = np.asarray(image.convert("L" if self.problem.channels == 1 else "RGB"))
            images.append(
                torch.from_numpy(pixels.copy()).view(*pixels.shape[:2], -1).movedim(-1, 0)
            )
        return torch.stack(images)[None]
