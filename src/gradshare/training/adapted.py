"""A learner after it has adapted to one support set, as a torch module."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradshare.errors import DataError
from gradshare.inner_loop import Tensors
from gradshare.methods import Learner
from gradshare.methods.network import call_module
from gradshare.tasks import TaskBatch, TaskSource
from gradshare.tasks.batch import Tree, first_leaf, leaves, tree_map
from gradshare.tasks.source import prepared


class AdaptedModel(nn.Module):
    """Maps inputs (n, …) to outputs, preparation included.

    Attributes:
        classes: the labels of the outputs, in their order; None if the targets are not classes.
        network: the user's model with the adapted parameters, of a learner that has one. It takes
            prepared inputs, and in the inductive mode the support set's too: `network(x, support)`.
    """

    def __init__(
        self,
        learner: Learner,
        meta: Tensors,
        adapted: Any,
        support: TaskBatch,
        source: TaskSource | None,
        classes: tuple[Any, ...] | None,
    ) -> None:
        super().__init__()
        self.classes = classes
        self._learner = learner
        self._meta = meta
        self._adapted = adapted
        self._support = support
        self._source = source
        module = getattr(learner, "module", None)
        self.network: nn.Module | None = None if module is None else module(meta, adapted)
        self.eval()

    def forward(self, x: Tree) -> Tensor:
        """The outputs for some inputs, as the source gives them."""
        x = tree_map(lambda t: t[None], as_inputs(x, self._support.support_x))
        first = first_leaf(x)
        none = torch.zeros(first.shape[:2], dtype=torch.int64, device=first.device)
        tasks = replace(self._support, query_x=x, query_y=none)
        if self._source is not None:
            tasks = prepared(self._source, tasks)
        outputs: Tensor
        if self.network is not None and not getattr(self._learner, "inductive", False):
            query = tree_map(lambda t: t[0], tasks.query_x)
            outputs = call_module(self.network, query)
        else:
            outputs = self._learner.predict(self._meta, self._adapted, tasks)[0]
        return outputs


def as_inputs(x: Tree, like: Tree) -> Tree:
    """Arrays or tensors as tensors on the device and of the type of others, in the order of these;
    real numbers are never made whole ones.

    Raises:
        DataError: there are other inputs, or they are not numbers.
    """
    given, wanted = dict(leaves(x, "x")), dict(leaves(like, "x"))
    if given.keys() != wanted.keys():
        raise DataError(
            f"the inputs are {', '.join(given)}, and the run takes {', '.join(wanted)}; give these"
        )
    values = iter([given[path] for path in wanted])

    def convert(other: Tensor) -> Tensor:
        tensor = as_tensor(next(values))
        if other.is_floating_point() or not tensor.is_floating_point():
            tensor = tensor.to(other.dtype)
        return tensor.to(other.device)

    return tree_map(convert, like)


def as_tensor(value: Any) -> Tensor:
    """An array, a list or a tensor as a tensor."""
    if isinstance(value, np.ndarray):
        # torch takes neither a read-only nor a reversed array; others are not copied.
        value = np.require(value, requirements=["C", "W"])
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"the inputs are not numbers ({error!s:.100}); make them floats") from error
