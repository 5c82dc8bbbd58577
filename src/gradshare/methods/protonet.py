"""Prototypical networks (Snell et al., 2017): a yardstick without an inner loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn import functional as F

from gradshare.inner_loop import SGD, Adaptation, Tensors
from gradshare.methods.learner import Loss
from gradshare.methods.network import Precision
from gradshare.methods.proto_maml import ProtoMAML
from gradshare.models import BatchNormMode
from gradshare.tasks.batch import TaskBatch


class ProtoNet(ProtoMAML):
    """A prototypical network: ProtoMAML without inner steps; see `protonet`."""

    def _adapt(self, meta: Tensors, carried: Tensors, tasks: TaskBatch, **how: Any) -> Adaptation:
        """Take no step, whatever the number of steps is."""
        adaptation = super()._adapt(meta, carried, tasks, **{**how, "steps": 0})
        return replace(adaptation, params={how["steps"]: adaptation.params[0]})


def protonet(
    model: nn.Module,
    *,
    head: str | None = None,
    loss: Loss = F.cross_entropy,
    batch_norm: BatchNormMode = "auto",
    precision: Precision = "float32",
) -> ProtoNet:
    """A prototypical network (Snell et al., 2017): the nearest class mean in a learned space.

    It serves any number of classes. With the network f up to its head, and the means μ_c of f(x)
    over the support examples of each class c, the probability of a class is

        p(c | x) = softmax_c(-‖f(x) - μ_c‖²)

    The outputs are 2 μ_c·f(x) - ‖μ_c‖², which differ from these distances by the same number for
    all classes. The reference code normalises the support set and the queries together, in one
    batch; here each is normalised by itself, or the queries as the support set (`batch_norm`).

    Args:
        model: any module with a linear head, which may have any number of outputs.
        head: the name of the head, which the class means replace; None for the last linear layer.
        loss: the outer loss of one task.
        batch_norm: see `MetaLearner`.
        precision: see `MetaLearner`.
    """
    # No inner step is taken, so the rule is never called.
    return ProtoNet(
        model,
        SGD(0.0),
        head=head,
        steps=1,
        loss=loss,
        batch_norm=batch_norm,
        precision=precision,
    )
