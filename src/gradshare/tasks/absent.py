"""A source without images, for a run whose dataset is not on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from gradshare.errors import DataError
from gradshare.tasks.batch import TaskBatch
from gradshare.tasks.image_tasks import ImageTasks
from gradshare.tasks.images import ImageFormat
from gradshare.tasks.normalization import Normalization
from gradshare.tasks.source import TaskSource


class AbsentImages(BaseModel):
    """A source that prepares images as the run's own source did. Its only task, 0, is blank, and
    shows the shape of the inputs.

    The folder of a run on images has one, so that the run can predict without its dataset.
    """

    model_config = ConfigDict(frozen=True)

    form: ImageFormat
    mean: tuple[float, ...]
    std: tuple[float, ...]
    ways: int

    @property
    def used_normalization(self) -> Normalization:
        """What `prepare` applies."""
        return Normalization(self.mean, self.std)

    def batch(self, indices: Sequence[int]) -> TaskBatch:
        """Task 0, of one blank image of each class. Raise DataError if another one is asked for."""
        if list(indices) != [0]:
            raise DataError(
                "the run's dataset is not on this machine, so there are no tasks; prepare it, or "
                "give another source"
            )
        images = torch.zeros((1, self.ways, *self.form.shape), dtype=torch.uint8)
        labels = torch.arange(self.ways)[None]
        return TaskBatch(images, labels, images, labels)

    def prepare(self, batch: TaskBatch) -> TaskBatch:
        """Scale the images to floats and normalise them."""
        return self.used_normalization.batch(batch)


def preparation_of(source: TaskSource) -> dict[str, Any]:
    """How a source prepares inputs, for the record of a run.

    Returns:
        "prepares": whether it does; "images": an `AbsentImages`, or None for other inputs.
    """
    images = None
    if type(source) is ImageTasks:  # a subclass may prepare images in another way
        used = source.used_normalization
        mean, std = tuple(used.mean), tuple(used.std)
        ways = source.ways[1] if isinstance(source.ways, tuple) else source.ways
        absent = AbsentImages(form=source.form, mean=mean, std=std, ways=ways)
        images = absent.model_dump(mode="json")
    return {"prepares": hasattr(source, "prepare"), "images": images}
