"""The peers: second-order MAML as their users write it.

All three run the same ordinary network on the same images, one task after the other, and call
`backward` on each task's query loss, so that a task's graph is gone before the next one's is built
(as the examples of learn2learn, higher and torchopt do; MAML++ sums over tasks first, which costs
memory and gains no time). γ and β of batch norm are not adapted, as in ours.

- *plain*: `torch.autograd.grad(…, create_graph=True)` and θ - α·g, which is what learn2learn's and
  MAML++'s code come down to. Neither of the two installs on a Python of today.
- *higher*: `innerloop_ctx` around `torch.optim.SGD`.
- *torchopt*: `MetaSGD`, with the network's state taken before each task and put back after it.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from benchmarks.problems import MEAN, STD, Problem, starting_model
from gradshare.errors import ConfigError
from gradshare.inner_loop import Tensors
from gradshare.tasks import TaskBatch


class Network(nn.Module):
    """Conv-4 of PyTorch's own modules; parameters are named as ours are."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        filters = problem.filters
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "conv": nn.Conv2d(channels, filters, 3, padding=1, bias=False),
                    "norm": nn.BatchNorm2d(filters, track_running_stats=False),
                }
            )
            for channels in (problem.channels, filters, filters, filters)
        )
        self.linear = nn.Linear(filters * (problem.image_size // 16) ** 2, problem.ways)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images to (N, ways) logits."""
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            x = F.max_pool2d(F.leaky_relu(block["norm"](block["conv"](x)), 0.01), 2)
        logits: Tensor = self.linear(x.flatten(1))
        return logits

    def adapted(self) -> nn.ModuleList:
        """The modules that the inner loop adapts: all but batch norm."""
        return nn.ModuleList(m for m in self.modules() if isinstance(m, nn.Conv2d | nn.Linear))


class Peer:
    """What the peers have in common.

    Args:
        problem: the work.
        layout: of images and weights in memory.
    """

    def __init__(self, problem: Problem, layout: torch.memory_format) -> None:
        self.problem = problem
        self.layout = layout
        self.network = Network(problem).to(problem.torch_dtype)
        self.network.load_state_dict(starting_model(problem).state_dict())
        self.network.to(memory_format=layout)  # type: ignore[call-overload]

    def as_given(self, tasks: TaskBatch) -> TaskBatch:
        """Normalised images in the peer's layout."""

        def normalised(images: Tensor) -> Tensor:
            x = (images.to(self.problem.torch_dtype) / 255 - MEAN) / STD
            return torch.stack([task.contiguous(memory_format=self.layout) for task in x])

        return TaskBatch(
            normalised(tasks.support_x), tasks.support_y, normalised(tasks.query_x), tasks.query_y
        )

    def meta_gradient(self, tasks: TaskBatch) -> Tensors:
        """See `Runner`."""
        self.network.zero_grad()
        for support_x, support_y, query_x, query_y in _each(tasks):
            outputs = self._outputs(support_x, support_y, query_x, second_order=True)
            torch.autograd.backward(F.cross_entropy(outputs, query_y) / len(tasks))
            self._reset()
        return {
            name: parameter.grad
            for name, parameter in self.network.named_parameters()
            if parameter.grad is not None
        }

    def predictions(self, tasks: TaskBatch) -> Tensor:
        """See `Runner`; without second-order graphs, where the peer can leave them out."""
        logits = []
        for support_x, support_y, query_x, _ in _each(tasks):
            logits.append(self._outputs(support_x, support_y, query_x, second_order=False).detach())
            self._reset()
        return torch.stack(logits)

    def _outputs(self, x: Tensor, y: Tensor, query_x: Tensor, *, second_order: bool) -> Tensor:
        """Adapt to a support set, and predict the queries."""
        raise NotImplementedError

    def _reset(self) -> None:
        """Undo what adaptation did to the network."""


class Plain(Peer):
    """A loop written by hand."""

    def _outputs(self, x: Tensor, y: Tensor, query_x: Tensor, *, second_order: bool) -> Tensor:
        fast: dict[str, Tensor] = {
            n: p for n, p in self.network.named_parameters() if ".norm." not in n
        }
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


class Higher(Peer):
    """`higher`."""

    def __init__(self, problem: Problem, layout: torch.memory_format) -> None:
        super().__init__(problem, layout)
        self.higher: Any = _installed("higher")
        self.optimizer = torch.optim.SGD(self.network.adapted().parameters(), lr=problem.inner_lr)

    def _outputs(self, x: Tensor, y: Tensor, query_x: Tensor, *, second_order: bool) -> Tensor:
        with self.higher.innerloop_ctx(
            self.network,
            self.optimizer,
            copy_initial_weights=False,
            track_higher_grads=second_order,
        ) as (network, optimizer):
            for _ in range(self.problem.steps):
                optimizer.step(F.cross_entropy(network(x), y))
            with torch.set_grad_enabled(second_order):
                outputs: Tensor = network(query_x)
            return outputs


class TorchOpt(Peer):
    """`torchopt`. Its `MetaSGD` always builds second-order graphs."""

    def __init__(self, problem: Problem, layout: torch.memory_format) -> None:
        super().__init__(problem, layout)
        self.torchopt: Any = _installed("torchopt")
        self.optimizer = self.torchopt.MetaSGD(self.network.adapted(), lr=problem.inner_lr)
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


PEERS = {"plain": Plain, "higher": Higher, "torchopt": TorchOpt}


def _each(tasks: TaskBatch) -> Any:
    return zip(tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y, strict=True)


def _installed(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"the peer {name!r} cannot be imported ({error}); install the peers with "
            "`pip install 'gradshare[bench]'`, or leave it out with --peers"
        ) from error
