"""A supervised start: the body of a network, trained as a classifier of all training classes."""

from __future__ import annotations

import copy
import time
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.errors import ConfigError, require_count
from gradshare.methods import Learner
from gradshare.methods.meta_learner import MODEL
from gradshare.methods.network import call_module
from gradshare.tasks import TaskSource
from gradshare.tasks.batch import tree_map
from gradshare.tasks.source import prepared, training_indices
from gradshare.training.distributed import OneProcess
from gradshare.training.options import Options
from gradshare.training.randomness import isolated, seed_generators
from gradshare.training.state import TrainState

Model = TypeVar("Model", bound=nn.Module)

TASKS = 4
"""The tasks that one step takes its examples from."""

WEIGHT_DECAY = 1e-4

PADDING = -100
"""The label of what is not an example; cross entropy leaves it out."""


def supervised_start(
    model: Model, source: TaskSource, *, iterations: int = 300, lr: float = 1e-3, seed: int = 0
) -> Model:
    """A copy of a network whose body is trained to tell all training classes apart.

    The body is everything but the last linear layer, which is the head. A new head, with an output
    for each class of the source, is trained with it and then replaced by the model's own.

    Args:
        model: any classifier with a linear head. It is not changed.
        source: of training tasks, with `classes_of(index)`, as the sources of this package have it.
        iterations: steps of AdamW, each on all examples of 4 tasks.
        lr: the learning rate, annealed to 0 by a cosine.
        seed: of the tasks, the new head and dropout.

    Raises:
        ConfigError: the model has no linear layer, or the source does not name the classes of its
            tasks.
    """
    require_count("iterations", iterations)
    name = require_startable(model, source)
    owner, _, attribute = name.rpartition(".")
    trained = copy.deepcopy(model)
    own_head = trained.get_submodule(name)
    device = next(model.parameters()).device
    steps = [training_indices(seed, step, TASKS) for step in range(iterations)]
    classes: dict[Any, int] = {}
    for index in (index for indices in steps for index in indices):
        for label in source.classes_of(index):  # type: ignore[attr-defined]
            classes.setdefault(label, len(classes))
    with isolated(device):
        seed_generators(seed)
        head = nn.Linear(own_head.in_features, len(classes))  # type: ignore[arg-type]
        setattr(trained.get_submodule(owner), attribute, head.to(device))
        parameters = [p for p in trained.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
        for indices in steps:
            outputs, labels = _outputs(trained, source, indices, classes, device)
            loss = F.cross_entropy(outputs, labels, ignore_index=PADDING)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    setattr(trained.get_submodule(owner), attribute, own_head)
    return trained


def train_body(
    processes: OneProcess, learner: Learner, state: TrainState, source: TaskSource, options: Options
) -> None:
    """Give the meta-parameters of a learner's model, but those of its head, a supervised start.

    It counts as training time.
    """
    meta, began = state.meta, time.monotonic()

    def trained() -> dict[str, Tensor]:
        device = next(iter(meta.values())).device
        model: nn.Module = copy.deepcopy(learner.model).to(device)  # type: ignore[attr-defined]
        head = require_startable(model, source)
        how = {"iterations": options.start_iterations, "seed": options.seed}
        parameters = supervised_start(model, source, **how).named_parameters()
        body = {name: p for name, p in parameters if not name.startswith(f"{head}.")}
        return {f"{MODEL}.{name}": p.detach().cpu() for name, p in body.items()}

    for name, tensor in processes.from_first(trained).items():
        if name in meta:  # not if it is frozen
            meta[name].data.copy_(tensor)
    took = time.monotonic() - began
    state.status.training_seconds += took
    state.status.seconds += took


def require_startable(model: object, source: TaskSource) -> str:
    """The name of a network's head; ConfigError if the network or the source cannot have a
    supervised start.
    """
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    linear: list[str] = [name for name, m in modules if name and isinstance(m, nn.Linear)]
    if not linear:
        raise ConfigError(
            "a supervised start needs a network with a body and a linear head, and this one "
            f"({type(model).__name__}) is another; start from random weights"
        )
    if not hasattr(source, "classes_of"):
        raise ConfigError(
            f"a supervised start needs the names of the classes of each task; give "
            f"{type(source).__name__} a method classes_of(index), or start from random weights"
        )
    return linear[-1]


def _outputs(
    model: nn.Module,
    source: TaskSource,
    indices: range,
    classes: dict[Any, int],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """The outputs for all examples of some tasks, and their classes among all training classes."""
    tasks = prepared(source, source.batch(indices).to(device))
    names = [source.classes_of(index) for index in indices]  # type: ignore[attr-defined]
    codes = [torch.tensor([classes[name] for name in task], device=device) for task in names]
    outputs, labels = [], []
    for x, y, sizes in (
        (tasks.support_x, tasks.support_y, tasks.support_n),
        (tasks.query_x, tasks.query_y, tasks.query_n),
    ):
        outputs.append(call_module(model, tree_map(lambda t: t.flatten(0, 1), x)))
        of_part = torch.stack([own[labels] for own, labels in zip(codes, y, strict=True)])
        for task, size in enumerate(sizes or ()):
            of_part[task, size:] = PADDING
        labels.append(of_part.flatten())
    return torch.cat(outputs), torch.cat(labels)
