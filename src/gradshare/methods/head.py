"""The head of a model, and learners whose head has any number of classes."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from gradshare.errors import ConfigError, DataError
from gradshare.inner_loop import UpdateRule
from gradshare.methods.meta_learner import MetaLearner
from gradshare.methods.network import Network, require_usable
from gradshare.tasks.batch import TaskBatch


def linear_head(model: nn.Module, head: str | None) -> str:
    """The name of the head of a model.

    Args:
        model: any module.
        head: the name of a linear layer; None for the last one.

    Raises:
        ConfigError: there is no such linear layer.
    """
    require_usable(model)
    linear: list[str] = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear)
    ]
    if head is None and linear:
        return linear[-1]
    if head is None or head not in linear:
        raise ConfigError(f"the head {head!r} is not a linear layer; name one of {linear}")
    return head


def head_parameters(model: nn.Module, head: str | None) -> tuple[str, ...]:
    """The names of the head's parameters. Arguments and errors as for `linear_head`."""
    head = linear_head(model, head)
    names = (name for name, _ in model.get_submodule(head).named_parameters())
    return tuple(f"{head}.{name}".lstrip(".") for name in names)


def weight_and_bias(model: nn.Module, head: str | None) -> tuple[str, ...]:
    """The names of the weight and of the bias, if there is one, of the head.

    Arguments as for `linear_head`.

    Raises:
        ConfigError: the model lacks this linear layer, or computes its weight from other tensors.
    """
    names = head_parameters(model, head)
    if [name.rpartition(".")[2] for name in names] not in (["weight"], ["weight", "bias"]):
        raise ConfigError(
            f"the head has the parameters {' and '.join(names)}, as by weight norm; use a plain "
            "nn.Linear, or a method that does not look into the head, such as maml or boil"
        )
    return names


METHODS_OF_ANY_WAYS: Final = "unicorn-maml, proto-maml or protonet"


class AnyWays(MetaLearner):
    """A meta-learner whose head gets one row for each class of a task. Its rule sees one row.

    Args:
        model: see `MetaLearner`; its head is a linear layer with any number of outputs.
        rule: see `MetaLearner`.
        head: the name of the head; None for the last linear layer of the model.
        **options: of `MetaLearner`.

    Raises:
        ConfigError: the model lacks this linear layer, or computes its weight from other tensors;
            or the inner loop does not adapt it.
    """

    def __init__(
        self, model: nn.Module, rule: UpdateRule, *, head: str | None = None, **options: Any
    ) -> None:
        names = weight_and_bias(model, head)
        super().__init__(model, rule, **options)
        self.head = tuple(name for name in names if name in self.adapted)
        if names[0] not in self.head:
            raise ConfigError(
                f"the inner loop does not adapt {names[0]!r}, the weight of the head; let `adapts` "
                "choose it, or name another head"
            )

    def initial_parameters(self) -> dict[str, Tensor]:
        """The model's parameters, with the first row of the head alone."""
        theta = super().initial_parameters()
        return {name: t[:1] if name in self.head else t for name, t in theta.items()}


def members(tasks: TaskBatch) -> Tensor:
    """Whether each support example is of each class, (T, n, classes of the largest task).

    Raises:
        DataError: the targets are not classes.
    """
    labels = tasks.support_y
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim != 2:
        kind = f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, Tensor) else "a tree"
        raise DataError(
            f"support_y is {kind}, and a head with one row for each class needs class numbers of "
            "shape (tasks, examples); give those, or use a method such as maml"
        )
    if tasks.support_n is not None:
        sizes = torch.tensor(tasks.support_n, device=labels.device)
        padding = torch.arange(labels.shape[1], device=labels.device) >= sizes[:, None]
        labels = labels.masked_fill(padding, -1)
    classes = torch.arange(int(labels.max()) + 1, device=labels.device)
    belongs: Tensor = labels[..., None] == classes
    return belongs


def body(learner: MetaLearner, head: str | None) -> Network:
    """The part of a learner's model before its head.

    Args:
        learner: whose model it is.
        head: the name of the head; None for the last linear layer of the model.
    """
    model, precision = learner.model, learner.network.precision
    return Network(model, precision=precision, up_to=linear_head(model, head))
