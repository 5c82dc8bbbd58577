"""Modules of every kind, and MAML by a literal loop that makes a new module for each call."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from gradshare.inner_loop import Tensors
from gradshare.models import BatchNorm2d
from gradshare.tasks import TaskBatch

WAYS, STEPS, LR = 3, 2, 0.3


def batch(count: int = 3, seed: int = 1) -> TaskBatch:
    """Tasks of rows of 16 numbers."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(WAYS).repeat(2).expand(count, 2 * WAYS)

    def rows() -> Tensor:
        return torch.randn(count, 2 * WAYS, 16, generator=generator, dtype=torch.float64)

    return TaskBatch(rows(), y, rows(), y)


def same_layer_twice() -> nn.Module:
    layer = nn.Linear(16, 16)
    return nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(16, WAYS))


def tied_weights() -> nn.Module:
    first, second = nn.Linear(16, 16), nn.Linear(16, 16)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(16, WAYS))


def spectral_norm() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(16, WAYS)), nn.Tanh())


def weight_norm() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(16, WAYS)), nn.Tanh())


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(16, WAYS)), nn.Tanh())


class Counting(nn.Module):
    """A network whose `forward` changes a buffer that its outputs depend on."""

    def __init__(self, change: Callable[[Counting, Tensor], None]) -> None:
        super().__init__()
        self.linear = nn.Linear(16, WAYS)
        self.change = change
        self.count: Tensor
        self.register_buffer("count", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.change(self, x)
        y: Tensor = self.linear(x) * self.count.clone().sqrt()
        return y.tanh()


def counts_in_place() -> nn.Module:
    def change(module: Counting, x: Tensor) -> None:
        module.count += 1

    return Counting(change)


def adds_its_input_in_place() -> nn.Module:
    def change(module: Counting, x: Tensor) -> None:
        module.count += x.detach().square().mean()

    return Counting(change)


def replaces_its_buffer() -> nn.Module:
    def change(module: Counting, x: Tensor) -> None:
        module.count = module.count + x.detach().square().mean()

    return Counting(change)


class Remembering(nn.Module):
    """A network that makes buffers in its first forward pass, and whose outputs depend on them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, WAYS)
        self.first: Tensor | None
        self.second: Tensor
        self.register_buffer("first", None)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.detach().square().mean()
        if self.first is None:
            self.first = mean
        if not hasattr(self, "second"):
            self.register_buffer("second", mean)
        y: Tensor = self.linear(x) * (self.first + self.second)
        return y.tanh()


def makes_its_buffers() -> nn.Module:
    return Remembering()


def batch_norm_1d() -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 8), nn.BatchNorm1d(8, momentum=None), nn.Tanh(), nn.Linear(8, WAYS)
    )


def convolutions(norm: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)),
        nn.Conv2d(1, 4, 3),
        norm,
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, WAYS),
    )


def batch_norm_2d() -> nn.Module:
    return convolutions(nn.BatchNorm2d(4))


def own_batch_norm_2d() -> nn.Module:
    return convolutions(BatchNorm2d(4))


def pretrained_norm_in_evaluation_mode() -> nn.Module:
    model = convolutions(nn.BatchNorm2d(4))
    model(torch.randn(20, 16))  # gives it running statistics
    return model.eval()


def instance_norm() -> nn.Module:
    return convolutions(nn.InstanceNorm2d(4, affine=True, track_running_stats=True))


class Sequence(nn.Module):
    """A network over four words of four numbers."""

    def __init__(self, mix: nn.Module) -> None:
        super().__init__()
        self.mix = mix
        self.head = nn.Linear(4, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        words = x.reshape(len(x), 4, 4)
        if isinstance(self.mix, nn.MultiheadAttention):
            words = self.mix(words, words, words, need_weights=False)[0]
        elif isinstance(self.mix, nn.RNNBase):
            words = self.mix(words)[0]
        else:
            words = self.mix(words)
        y: Tensor = self.head(words[:, -1])
        return y


def lstm() -> nn.Module:
    return Sequence(nn.LSTM(4, 4, batch_first=True))


def gru() -> nn.Module:
    return Sequence(nn.GRU(4, 4, batch_first=True))


def plain_rnn() -> nn.Module:
    """A layer that vmap can't take."""
    return Sequence(nn.RNN(4, 4, batch_first=True))


def attention() -> nn.Module:
    return Sequence(nn.MultiheadAttention(4, 2, batch_first=True))


def transformer() -> nn.Module:
    return Sequence(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True))


def transformer_in_evaluation_mode() -> nn.Module:
    return transformer().eval()


def frozen_body() -> nn.Module:
    body = nn.Linear(16, 8).requires_grad_(False)
    return nn.Sequential(body, nn.Tanh(), nn.Linear(8, WAYS))


def unused_parameter() -> nn.Module:
    model = nn.Sequential(nn.Linear(16, WAYS))
    model.unused = nn.Parameter(torch.ones(2))
    return model


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, WAYS))


def attention_with_dropout() -> nn.Module:
    return Sequence(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.5, batch_first=True))


def lstm_with_dropout() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (4, 4)),
        nn.Dropout(0.5),
        Sequence(nn.LSTM(4, 4, 2, batch_first=True, dropout=0.5)),
    )


DROPOUT = [with_dropout, attention_with_dropout, lstm_with_dropout]
KINDS = [
    same_layer_twice,
    tied_weights,
    spectral_norm,
    weight_norm,
    old_weight_norm,
    counts_in_place,
    adds_its_input_in_place,
    replaces_its_buffer,
    makes_its_buffers,
    batch_norm_1d,
    batch_norm_2d,
    own_batch_norm_2d,
    pretrained_norm_in_evaluation_mode,
    instance_norm,
    lstm,
    gru,
    plain_rnn,
    attention,
    transformer,
    transformer_in_evaluation_mode,
    frozen_body,
    unused_parameter,
]


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    """The module, the same at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().double()


def snapshot(module: nn.Module) -> list[tuple[object, ...]]:
    """All that a call could change: each tensor by identity, value and version, and the mode."""
    found: list[tuple[object, ...]] = []
    for path, part in module.named_modules(remove_duplicate=False):
        found.append((path, part.training, sorted(vars(part))))
        for name, tensor in {**vars(part), **part._parameters, **part._buffers}.items():
            if isinstance(tensor, Tensor):
                found.append((path, name, id(tensor), tensor._version, tensor.tolist()))
    return found


def literal_adapt(
    kind: Callable[[], nn.Module], theta: Tensors, rest: Tensors, x: Tensor, y: Tensor, steps: int
) -> Tensors:
    """The inner loop of one task, each forward pass by a new module."""
    for _ in range(steps):
        loss = F.cross_entropy(literal_forward(kind, {**theta, **rest}, x), y)
        gradients = torch.autograd.grad(
            loss, list(theta.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        theta = {name: t - LR * g for (name, t), g in zip(theta.items(), gradients, strict=True)}
    return theta


def literal_forward(kind: Callable[[], nn.Module], params: Tensors, x: Tensor) -> Tensor:
    # Fused attention has no second derivative.
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        outputs: Tensor = torch.func.functional_call(made(kind), dict(params), x)
    return outputs


def literal_outer_loss(kind: Callable[[], nn.Module], meta: Tensors, tasks: TaskBatch) -> Tensor:
    """MAML's objective; the γ and β of batch norm are learned by the outer loop alone."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, BatchNorm2d)
    norms = [n for n, part in made(kind).named_modules() if isinstance(part, kinds)]
    outer = [f"{name}." for name in norms]
    params = {name.removeprefix("model."): tensor for name, tensor in meta.items()}
    rest = {name: t for name, t in params.items() if name.startswith(tuple(outer))}
    theta = {name: t for name, t in params.items() if name not in rest}
    losses = []
    for t in range(len(tasks)):
        adapted = literal_adapt(kind, theta, rest, tasks.support_x[t], tasks.support_y[t], STEPS)
        outputs = literal_forward(kind, {**adapted, **rest}, tasks.query_x[t])
        losses.append(F.cross_entropy(outputs, tasks.query_y[t]))
    return torch.stack(losses).mean()


def gradients(objective: Tensor, meta: Tensors) -> dict[str, Tensor]:
    found = torch.autograd.grad(
        objective, list(meta.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(meta, found, strict=True))


def assert_close(name: str, ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).norm() <= 1e-9 * theirs.norm() + 1e-13, name
