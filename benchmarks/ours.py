"""gradshare as a contender, through its public interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

import gradshare as gs
from benchmarks.problems import Problem, chunks, starting_model
from gradshare.inner_loop import Tensors
from gradshare.tasks import TaskBatch
from gradshare.training.memory import CHUNK

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
            "sharing": gs.GradientSharing(problem.steps) if method.sharing else None,
        }
        if method.name == "maml++":
            options["multi_step_iterations"] = MULTI_STEP_ITERATIONS
        # As `gradshare train` lays the work out on a CPU.
        options |= {"recompute": method.flat, "tasks_at_a_time": 1 if method.flat else None}
        self.problem = problem
        self.learner = METHODS[method.name](starting_model(problem), **options)
        self.learned, self.state = self.learner.init()

    def as_given(self, tasks: TaskBatch) -> TaskBatch:
        """Normalised images in the layout that `Normalization` gives them."""
        return self.problem.normalization.batch(tasks, self.problem.torch_dtype)

    def meta_gradient(self, tasks: TaskBatch) -> Tensors:
        """See `Runner`. The state (ĝ) is kept as in training; the parameters stay."""
        step = self.learner.outer_step(self.learned, self.state, tasks, iteration=0)
        gradients = torch.autograd.grad(
            step.losses.mean(),
            list(self.learned.values()),
            allow_unused=True,
            materialize_grads=True,
        )
        self.state = step.state
        names = (name.removeprefix("model.") for name in self.learned)
        return dict(zip(names, gradients, strict=True))

    @torch.no_grad()
    def predictions(self, tasks: TaskBatch) -> Tensor:
        """See `Runner`; as `gradshare.training.evaluation` does it."""
        logits = []
        for some in chunks(tasks, CHUNK):
            adapted = self.learner.adapt(self.learned, self.state, some).params[-1]
            logits.append(
                self.learner.predict(self.learned, adapted, some, updates=self.learner.steps)
            )
        return torch.cat(logits)

    def query_pass(self, tasks: TaskBatch) -> Tensors:
        """What an extra query pass of the multi-step loss is: the query loss at some parameters
        of each task, and its gradient.
        """
        fast = {
            name: self.learned[f"model.{name}"]
            .detach()
            .expand(len(tasks), *self.learned[f"model.{name}"].shape)
            .requires_grad_()
            for name in self.learner.adapted
        }
        outputs = self.learner.predict(self.learned, fast, tasks, updates=1)
        shared = {f"model.{n}": self.learned[f"model.{n}"] for n in self.learner.shared}
        inputs = {**fast, **shared}
        loss = self.learner.losses(outputs, tasks.query_y).mean()
        return dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True))
