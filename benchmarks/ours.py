"""gradshare as a contender, through its public interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import gradshare as gs
from benchmarks.problems import Problem, chunks, starting_model
from gradshare.inner_loop import Tensors
from gradshare.methods import Adapted
from gradshare.tasks import TaskBatch
from gradshare.training.evaluation import CHUNK

# So long that the multi-step loss counts every inner step in all that is measured.
MULTI_STEP_ITERATIONS = 10**6

METHODS = {"maml": gs.maml, "meta-sgd": gs.meta_sgd, "maml++": gs.maml_plus_plus}


@dataclass(frozen=True)
class Method:
    """What is measured of gradshare.

    Attributes:
        name: "maml", "meta-sgd" or "maml++" (with all its parts on).
        sharing: with gradient sharing.
        flat: recompute each inner step in the backward pass, in memory flat in K, instead of
            keeping its graph.
    """

    name: Literal["maml", "meta-sgd", "maml++"] = "maml"
    sharing: bool = False
    flat: bool = False


class Ours:
    """A `Runner` of gradshare."""

    def __init__(self, problem: Problem, method: Method) -> None:
        options: dict[str, Any] = {
            "steps": problem.steps,
            "inner_lr": problem.inner_lr,
            "sharing": method.sharing,
        }
        if method.name == "maml++":
            options["multi_step_iterations"] = MULTI_STEP_ITERATIONS
        # As `gradshare.fit` lays the work out on a CPU.
        options |= {"recompute": method.flat, "tasks_at_a_time": 1 if method.flat else None}
        self.problem = problem
        self.learner = METHODS[method.name](starting_model(problem), **options)
        self.meta, self.carried = self.learner.init()

    def as_given(self, tasks: TaskBatch) -> TaskBatch:
        """Normalised images in the layout that `Normalization` gives them."""
        return self.problem.normalization.batch(tasks, self.problem.torch_dtype)

    def meta_gradient(self, tasks: TaskBatch) -> Tensors:
        """See `Runner`. The carried ĝ is kept as in training; the parameters stay."""
        step = self.learner.outer_step(self.meta, self.carried, tasks, iteration=0)
        gradients = torch.autograd.grad(
            step.objective.mean(),
            list(self.meta.values()),
            allow_unused=True,
            materialize_grads=True,
        )
        self.carried = step.carried
        names = (name.removeprefix("model.") for name in self.meta)
        return dict(zip(names, gradients, strict=True))

    @torch.no_grad()
    def predictions(self, tasks: TaskBatch) -> Tensor:
        """See `Runner`; as `gradshare.training.evaluation` does it."""
        logits = []
        for some in chunks(tasks, CHUNK):
            adapted = self.learner.adapt(self.meta, self.carried, some)
            logits.append(self.learner.predict(self.meta, adapted, some))
        return torch.cat(logits)

    def query_pass(self, tasks: TaskBatch) -> Tensors:
        """What an extra query pass of the multi-step loss is: the query loss at some parameters
        of each task, and its gradient.
        """
        fast = {
            name: self.meta[f"model.{name}"]
            .detach()
            .expand(len(tasks), *self.meta[f"model.{name}"].shape)
            .requires_grad_()
            for name in self.learner.adapted
        }
        outputs = self.learner.predict(self.meta, Adapted(fast, updates=1), tasks)
        shared = {f"model.{n}": self.meta[f"model.{n}"] for n in self.learner.shared}
        inputs = {**fast, **shared}
        loss = self.learner.losses(outputs, tasks.query_y).mean()
        return dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True))
