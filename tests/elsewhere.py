"""What learn2learn and torchmeta do, which cannot be installed beside a current PyTorch.

The parts that `docs/migrating.md` uses, written anew from their documentation and their code at
learnables/learn2learn 17d7369 and tristandeleu/pytorch-meta 337e11a, with plain loops.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

# learn2learn: a learner is a differentiable copy, which `adapt` moves one step along a loss.


class _Learner:
    def __init__(self, module: nn.Module, rates: list[Any], *, first_order: bool) -> None:
        self.module, self.rates, self.first_order = module, rates, first_order
        self.weights: dict[str, Tensor] = dict(module.named_parameters())

    def __call__(self, x: Tensor) -> Any:
        return functional_call(self.module, self.weights, (x,))

    def adapt(self, loss: Tensor) -> None:
        kept = not self.first_order
        weights = list(self.weights.values())
        gradients = torch.autograd.grad(loss, weights, retain_graph=kept, create_graph=kept)
        self.weights = {
            name: weight - rate * gradient
            for (name, weight), rate, gradient in zip(
                self.weights.items(), self.rates, gradients, strict=True
            )
        }


class MAML(nn.Module):
    def __init__(self, model: nn.Module, lr: float, first_order: bool = False) -> None:
        super().__init__()
        self.module, self.lr, self.first_order = model, lr, first_order

    def clone(self) -> _Learner:
        rates = [self.lr for _ in self.module.parameters()]
        return _Learner(self.module, rates, first_order=self.first_order)


class MetaSGD(nn.Module):
    def __init__(self, model: nn.Module, lr: float = 1.0, first_order: bool = False) -> None:
        super().__init__()
        self.module, self.first_order = model, first_order
        rates = (nn.Parameter(torch.ones_like(p) * lr) for p in model.parameters())
        self.lrs = nn.ParameterList(rates)

    def clone(self) -> _Learner:
        return _Learner(self.module, list(self.lrs), first_order=self.first_order)


# torchmeta: modules take their parameters as an argument.


class MetaModule(nn.Module):
    def meta_named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.named_parameters()


class MetaLinear(nn.Linear, MetaModule):
    pass


class MetaSequential(nn.Sequential, MetaModule):
    def forward(self, x: Tensor, params: Any = None) -> Tensor:
        weights = dict(self.named_parameters()) if params is None else params
        plain = nn.Sequential(*copy.copy(self._modules).values())
        found: Tensor = functional_call(plain, dict(weights), (x,))
        return found


def gradient_update_parameters(
    model: MetaModule,
    loss: Tensor,
    params: Any = None,
    step_size: float = 0.5,
    first_order: bool = False,
) -> Any:
    weights = OrderedDict(model.meta_named_parameters()) if params is None else params
    gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=not first_order)
    steps = zip(weights.items(), gradients, strict=True)
    return OrderedDict((name, weight - step_size * g) for (name, weight), g in steps)


def modules() -> dict[str, ModuleType]:
    """The modules under the names that programs import."""
    contents: dict[str, dict[str, Any]] = {
        "learn2learn": {},
        "learn2learn.algorithms": {"MAML": MAML, "MetaSGD": MetaSGD},
        "torchmeta": {},
        "torchmeta.modules": {"MetaLinear": MetaLinear, "MetaSequential": MetaSequential},
        "torchmeta.utils": {},
        "torchmeta.utils.gradient_based": {
            "gradient_update_parameters": gradient_update_parameters
        },
    }
    found: dict[str, ModuleType] = {}
    for name, members in contents.items():
        found[name] = ModuleType(name)
        vars(found[name]).update(members)
        home, _, own = name.rpartition(".")
        if home:
            setattr(found[home], own, found[name])
    return found
