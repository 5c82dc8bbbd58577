"""The contenders: gradshare, and second-order MAML as the peers' users write it.

All compute the same meta-gradient of one task batch. None adapts batch norm's γ and β.

- *plain*: `torch.autograd.grad(…, create_graph=True)` and θ - α·g, which is what the code of
  learn2learn and MAML++ comes down to. Neither of the two installs on a Python of today.
- *torchopt*: `MetaSGD`, with the network's state taken before each task and put back after it.
- *parallel-metalearn*: its `MAML.step`, by `torch.vmap` over all tasks or sequentially. The outer
  optimiser that it asks for has the rate 0. By vmap its meta-gradient through layer norm is wrong
  (4e-4 on features): so is PyTorch 2.13's second derivative of `torch.func.grad` under vmap.

The plain loop and torchopt call `backward` on each task's query loss, so that a task's graph is
gone before the next one's is built.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import gradshare as gs
from benchmarks.episodes import Files, Store
from benchmarks.floor import Floor
from benchmarks.problems import Problem
from gradshare.errors import ConfigError
from gradshare.inner_loop import Tensors
from gradshare.training.distributed import OneProcess
from gradshare.training.layout import choose_layout
from gradshare.training.outer_loop import outer_gradient


class Runner(Protocol):
    """A contender with its network built and its tasks drawn.

    Attributes:
        layout: of its work or of its memory, in words.
        units: the meta-steps, or the evaluated tasks, of one run.
    """

    layout: str
    units: int

    def run(self) -> object:
        """Do the work that is timed."""
        ...


@dataclass(frozen=True)
class Contender:
    """Who is measured, and how.

    Attributes:
        kind: of `KINDS`.
        options: of the kind's class.
        predicts: adapt and predict, instead of a meta-step.
        kept_memory: in a process with our allocator settings, as `gradshare` trains in.
    """

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    predicts: bool = False
    kept_memory: bool = True

    def build(self, problem: Problem, **options: Any) -> Any:
        """Make it for a problem; `options` are added to its own."""
        return KINDS[self.kind](problem, **self.options, **options)


class Ours:
    """gradshare.

    Args:
        problem: the work.
        device: where.
        tasks, memory: the layout, as for `gradshare.fit`; by default the one that it chooses.
        **options: of `gradshare.maml`.
    """

    units = 1

    def __init__(
        self,
        problem: Problem,
        *,
        device: str = "cpu",
        tasks: Any = "auto",
        memory: Any = "auto",
        **options: Any,
    ) -> None:
        learner = gs.maml(
            problem.model(ours=True, device=device),
            steps=problem.steps,
            inner_lr=problem.inner_lr,
            batch_norm="transductive",  # as the others
            **options,
        )
        # Datasets of images give them with the channels last in memory.
        self.tasks = problem.tasks(channels_last=True, device=device)
        self.meta, self.carried = learner.init()
        layout = choose_layout(
            learner,
            (self.meta, self.carried),
            self.tasks[:2],
            task_batch=problem.task_batch,
            tasks=tasks,
            memory=memory,
        )
        self.learner: Any = layout.applied(learner)
        self.layout = f"{layout.tasks}, {layout.memory}"

    def run(self) -> Tensors:
        """The meta-gradient by the name of each parameter. ĝ is carried on as in training."""
        share = OneProcess().share(range(len(self.tasks)))
        gradients, _, step = outer_gradient(
            self.learner, self.meta, self.carried, self.tasks, iteration=0, share=share
        )
        self.carried = step.carried
        names = (name.removeprefix("model.") for name in self.meta)
        return dict(zip(names, gradients, strict=True))

    def predict(self) -> Tensor:
        """(T, queries, ways) logits of the adapted tasks."""
        with torch.no_grad():
            adapted = self.learner.adapt(self.meta, self.carried, self.tasks)
            logits: Tensor = self.learner.predict(self.meta, adapted, self.tasks)
        return logits


class Fit:
    """`gradshare.fit`, tasks drawn and checkpoints written as in any run.

    Args:
        problem: the work.
        iterations: of a run.
        **options: of `gradshare.maml`.
    """

    layout = "chosen by fit"

    def __init__(self, problem: Problem, *, iterations: int, **options: Any) -> None:
        self.problem, self.units, self.options = problem, iterations, options
        self.source = problem.source()

    def run(self) -> None:
        """Train once."""
        model = self.problem.model(ours=True)
        problem = self.problem
        learner = gs.maml(
            model,
            steps=problem.steps,
            inner_lr=problem.inner_lr,
            batch_norm="transductive",  # as the others
            **self.options,
        )
        with tempfile.TemporaryDirectory() as folder:
            gs.fit(
                learner,
                self.source,
                self.source,
                out=f"{folder}/run",
                epochs=1,
                iterations=self.units,
                task_batch=problem.task_batch,
                val_tasks=2,
                device="cpu",
                progress=False,
            )


class Peer:
    """What the peers have in common.

    Args:
        problem: the work.
        device: where.
        channels_last: the layout of images and weights in memory.
    """

    units = 1

    def __init__(
        self, problem: Problem, *, device: str = "cpu", channels_last: bool = False
    ) -> None:
        self.problem = problem
        self.network = problem.model(ours=False, device=device)
        self.tasks = problem.tasks(channels_last=channels_last, device=device)
        self.layout = "channels last" if channels_last else "contiguous"
        if channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    # Fused attention has no second derivative. Ours leaves it out by itself.
    @sdpa_kernel(SDPBackend.MATH)
    def run(self) -> Tensors:
        """The meta-gradient by the name of each parameter."""
        self.network.zero_grad()
        for support_x, support_y, query_x, query_y in self._each():
            outputs = self._outputs(support_x, support_y, query_x, second_order=True)
            torch.autograd.backward(F.cross_entropy(outputs, query_y) / len(self.tasks))
            self._reset()
        return {name: p.grad for name, p in self.network.named_parameters() if p.grad is not None}

    def predict(self) -> Tensor:
        """(T, queries, ways) logits of the adapted tasks, without second-order graphs where the
        peer can leave them out.
        """
        logits = []
        for support_x, support_y, query_x, _ in self._each():
            logits.append(self._outputs(support_x, support_y, query_x, second_order=False).detach())
            self._reset()
        return torch.stack(logits)

    def _each(self) -> Iterator[tuple[Tensor, ...]]:
        tasks = self.tasks
        return zip(tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y, strict=True)

    def _outputs(self, x: Tensor, y: Tensor, query_x: Tensor, *, second_order: bool) -> Tensor:
        """Adapt to a support set, and predict the queries."""
        raise NotImplementedError

    def _reset(self) -> None:
        """Undo what adaptation did to the network."""


class Plain(Peer):
    """A loop written by hand."""

    def _outputs(self, x: Tensor, y: Tensor, query_x: Tensor, *, second_order: bool) -> Tensor:
        parameters = dict(self.network.named_parameters())
        fast: dict[str, Tensor] = {name: parameters[name] for name in adapted(self.network)}
        for _ in range(self.problem.steps):
            loss = F.cross_entropy(functional_call(self.network, fast, (x,)), y)
            gradients = torch.autograd.grad(loss, list(fast.values()), create_graph=second_order)
            fast = {
                name: parameter - self.problem.inner_lr * gradient
                for (name, parameter), gradient in zip(fast.items(), gradients, strict=True)
            }
            if not second_order:
                fast = {name: tensor.detach().requires_grad_() for name, tensor in fast.items()}
        with torch.set_grad_enabled(second_order):
            outputs: Tensor = functional_call(self.network, fast, (query_x,))
        return outputs


class TorchOpt(Peer):
    """`torchopt`. Its `MetaSGD` always builds second-order graphs."""

    def __init__(self, problem: Problem, **options: Any) -> None:
        super().__init__(problem, **options)
        self.torchopt: Any = _installed("torchopt")
        names = adapted(self.network)
        owners = {self.network.get_submodule(name.rpartition(".")[0]): None for name in names}
        self.optimizer = self.torchopt.MetaSGD(nn.ModuleList(owners), lr=problem.inner_lr)
        self.start = [
            self.torchopt.extract_state_dict(part, by="reference")
            for part in (self.network, self.optimizer)
        ]

    def _outputs(self, x: Tensor, y: Tensor, query_x: Tensor, *, second_order: bool) -> Tensor:
        for _ in range(self.problem.steps):
            self.optimizer.step(F.cross_entropy(self.network(x), y))
        with torch.set_grad_enabled(second_order):
            outputs: Tensor = self.network(query_x)
        return outputs

    def _reset(self) -> None:
        for part, start in zip((self.network, self.optimizer), self.start, strict=True):
            self.torchopt.recover_state_dict(part, start)


class ParallelMetalearn(Peer):
    """`parallel-metalearn`.

    Args:
        problem: the work.
        backend: "vmap" or "sequential".
        **options: of `Peer`.
    """

    def __init__(self, problem: Problem, *, backend: str, **options: Any) -> None:
        super().__init__(problem, **options)
        wrappers, optimizers, losses, algorithms, translation = (
            _installed(f"metalearn.{part}")
            for part in (
                "model_wrappers",
                "inner_optimizers",
                "loss",
                "algorithms",
                "nn_models.pytorch2metalearn",
            )
        )
        names = adapted(self.network)
        self.names = [name for name, _ in self.network.named_parameters()]
        if backend == "vmap" and any(isinstance(m, nn.LSTM) for m in self.network.modules()):
            network = translation.ModelTranslator.convert_to_functional(self.network)
            network.to(self.tasks.support_x)
            with torch.no_grad():  # the translation has rounded the weights to float32
                for to, old in zip(network.parameters(), self.network.parameters(), strict=True):
                    to.copy_(old)
            self.network, names = network, adapted(network)
        model = wrappers.MAML_Model(
            backbone=_IgnoresKeywords(self.network),
            head=_IgnoresKeywords(nn.Identity()),
            fast_weights_names=[f"backbone.module.{name}" for name in names],
        )
        self.maml = algorithms.MAML(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
            inner_optimizer=optimizers.InnerSGD(
                model.get_fast_weights(),
                inner_lr=problem.inner_lr,
                max_inner_steps=problem.steps,
                learn_lr=False,
            ),
            support_loss_fn=losses.CrossEntropy(metric_fn=losses.CategoricalAccuracy()),
            inner_steps=problem.steps,
            chunk_size=problem.task_batch,
            device=self.tasks.query_y.device,
            backend=backend,
        )

    @sdpa_kernel(SDPBackend.MATH)
    def run(self) -> Tensors:
        """See `Peer`."""
        tasks = self.tasks
        batch = (
            tasks.support_x,
            {"labels": tasks.support_y},
            tasks.query_x,
            {"labels": tasks.query_y},
        )
        self.maml.step(iter([batch]))
        gradients = [p.grad for p in self.network.parameters()]
        return {n: g for n, g in zip(self.names, gradients, strict=True) if g is not None}


class _IgnoresKeywords(nn.Module):
    """A module that is called with keywords for batch norm's statistics, which it doesn't have."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        outputs: Tensor = self.module(x)
        return outputs


KINDS: dict[str, Any] = {
    "gradshare": Ours,
    "fit": Fit,
    "plain": Plain,
    "torchopt": TorchOpt,
    "parallel-metalearn": ParallelMetalearn,
    "convolutions": Floor,
    "store": Store,
    "files": Files,
}


def adapted(network: nn.Module) -> list[str]:
    """The names of the parameters that the inner loop adapts: all but batch norm's."""
    return [
        f"{path}.{name}".lstrip(".")
        for path, module in network.named_modules()
        if not isinstance(module, nn.modules.batchnorm._BatchNorm)
        for name, _ in module.named_parameters(recurse=False)
    ]


def _installed(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"the peer cannot be imported ({error}); install the peers with "
            "`pip install '.[bench]'` in a checkout"
        ) from error
