"""Labels that a classifying learner can take."""

from __future__ import annotations

import torch
from torch import Tensor

from gradshare.errors import DataError

IGNORED = -100  # by cross entropy, unless it is told another


def require_classes(outputs: Tensor, labels: Tensor, ignored: int = IGNORED) -> None:
    """Refuse labels that cross entropy cannot take.

    PyTorch has other words for each of them, or none: of a single output cross entropy is 0
    whatever the labels are.

    Args:
        outputs: (T, n, classes, …), or (T, classes).
        labels: (T, n, …) from 0, or (T,); or probabilities, in the shape of the outputs.
        ignored: a label that is left out of the loss.

    Raises:
        DataError: there is one output, or no label; or the labels are of another shape or type, or
            some are not in [0, classes).
    """
    axis = min(outputs.ndim - 1, 2)
    classes = outputs.shape[axis] if axis else 1
    if classes < 2:
        raise DataError(
            f"the model's outputs for a task are {tuple(outputs.shape[1:])}, and cross entropy "
            "needs two classes or more; give a loss of its own to what is no classifier, such as "
            "loss=F.mse_loss"
        )
    if labels.is_floating_point() and labels.shape == outputs.shape:
        return
    shape = outputs.shape[:axis] + outputs.shape[axis + 1 :]
    if labels.shape != shape:
        raise DataError(
            f"the labels of a task are {tuple(labels.shape[1:])} for outputs "
            f"{tuple(outputs.shape[1:])}; give {tuple(shape[1:])}"
        )
    if not labels.numel():
        raise DataError("the tasks have no labels; give at least one image of each, and its label")
    if labels.dtype not in (torch.int64, torch.uint8):
        raise DataError(f"the labels are {labels.dtype}; give torch.int64 (labels.long())")
    require_within(classes, labels, ignored)


def require_within(classes: int, labels: Tensor, ignored: int | None = None) -> None:
    """Refuse labels that name none of the outputs. On a GPU, which would have to be waited for,
    they are not looked at.

    Args:
        classes: how many outputs there are.
        labels: of any shape.
        ignored: a label that is let be; None for none.

    Raises:
        DataError: some are not in [0, classes).
    """
    if labels.device.type != "cpu":
        return
    named = labels if ignored is None else labels[labels != ignored]
    if named.numel():
        least, most = int(named.min()), int(named.max())
        if least < 0 or most >= classes:
            raise DataError(
                f"the labels go from {least} to {most}, and the model has {classes} outputs; "
                f"number the classes from 0 to {classes - 1}"
            )
