"""UNICORN-MAML (Ye & Chao, 2022): MAML whose head starts with one learned vector for all classes,
so that one trained model serves any number of classes in any order.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gradshare.errors import ConfigError
from gradshare.inner_loop import SGD, Chain, Tensors, UpdateRule
from gradshare.methods.maml import Sharing, sharing_rule
from gradshare.methods.meta_learner import MetaLearner
from gradshare.tasks.batch import TaskBatch


class UnicornMAML(MetaLearner):
    """A meta-learner that repeats one row of its head for each class of a task.

    Args:
        model: see `MetaLearner`; its head is a linear layer with any number of outputs.
        rule: see `MetaLearner`.
        head: the name of the head; None for the last linear layer of the model.
        **options: of `MetaLearner`.

    Raises:
        ConfigError: there is no such linear layer, or the inner loop does not adapt it.
    """

    def __init__(
        self, model: nn.Module, rule: UpdateRule, *, head: str | None = None, **options: Any
    ) -> None:
        super().__init__(model, rule, **options)
        linear = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
        head = linear[-1] if head is None and linear else head
        self.head = tuple(
            name
            for name in (f"{head}.weight".lstrip("."), f"{head}.bias".lstrip("."))
            if name in self.adapted
        )
        if head not in linear or f"{head}.weight".lstrip(".") not in self.head:
            raise ConfigError(
                f"the head {head!r} is not a linear layer that the inner loop adapts; name one "
                f"of {linear}"
            )

    def initial_parameters(self) -> dict[str, Tensor]:
        """The model's parameters, with the first row of the head alone."""
        theta = super().initial_parameters()
        return {name: t[:1] if name in self.head else t for name, t in theta.items()}

    def start(self, theta: Tensors, tasks: TaskBatch) -> dict[str, Tensor]:
        """The initialisation, with the head's row repeated for each class of the tasks."""
        ways = int(tasks.support_y.max()) + 1
        repeated = {
            name: t.expand(ways, *t.shape[1:]) if name in self.head else t
            for name, t in theta.items()
        }
        return super().start(repeated, tasks)

    def parts(self, tasks: TaskBatch) -> list[slice]:
        """All tasks together if they differ in their number of classes, since the head has outputs
        for the classes of all of them.
        """
        parts = super().parts(tasks)
        last = tasks.support_y.flatten(1).amax(1)
        return parts if len(parts) == 1 or bool((last == last[0]).all()) else [slice(None)]


def unicorn_maml(
    model: nn.Module,
    *,
    head: str | None = None,
    steps: int = 5,
    inner_lr: float = 0.1,
    sharing: Sharing = False,
    rule: UpdateRule | None = None,
    **options: Any,
) -> UnicornMAML:
    """MAML with one learned head vector, repeated for each class.

    Args:
        model: any module with a linear head, which may have any number of outputs.
        head: the name of the head; None for the last linear layer of the model.
        steps: K, the number of inner steps.
        inner_lr: α, the inner learning rate.
        sharing: see `maml`.
        rule: see `maml`.
        **options: options of `MetaLearner`, such as `loss` and `second_order`.
    """
    chain = Chain(sharing=sharing_rule(sharing), rule=rule, sgd=SGD(inner_lr))
    return UnicornMAML(model, chain, head=head, steps=steps, **options)
