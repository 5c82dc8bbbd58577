"""Any network with fast second derivatives against the same network without them."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import gradshare as gs
from gradshare.models import winograd
from tests.models.derivatives import assert_equal, second_derivatives

WAYS = 3


class Residual(nn.Module):
    """As in torchvision's ResNets, with layers of each kind that is replaced or kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1, groups=2)
        self.bn2 = nn.BatchNorm2d(6, eps=1e-3, momentum=0.3)
        self.downsample = nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6, affine=False))
        self.same = nn.Conv2d(6, 6, 3, padding="same", padding_mode="circular")
        self.norm = nn.GroupNorm(2, 6)
        self.fc = nn.Linear(6, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)) + self.downsample(x))
        x = self.norm(self.same(x))
        y: Tensor = self.fc(F.max_pool2d(x, 2).flatten(2).mean(2))
        return y


def network() -> Residual:
    torch.manual_seed(0)
    model = Residual().double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bn" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def images(count: int = 4, *, tasks: tuple[int, ...] = ()) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*tasks, count, 3, 8, 8, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("training", [True, False])
def test_it_computes_what_it_computed_with_the_same_names(training: bool) -> None:
    plain = network().train(training)
    before = copy.deepcopy(plain.state_dict())
    fast = gs.accelerate(plain)
    assert isinstance(fast, Residual)
    assert type(plain.bn1) is nn.BatchNorm2d
    y, expected = fast(images()), plain(images())
    assert torch.equal(y, expected)
    assert_equal(
        second_derivatives(y, list(fast.parameters())),
        second_derivatives(expected, list(plain.parameters())),
    )
    # The running statistics are as PyTorch updates them.
    assert fast.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(t, plain.state_dict()[n]) for n, t in fast.state_dict().items())
    moved = not torch.equal(before["bn1.running_mean"], fast.state_dict()["bn1.running_mean"])
    assert moved == training


LAYOUTS: list[dict[str, Any]] = [{}, {"tasks_at_a_time": None}, {"recompute": True}]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("sharing", [False, True])
def test_each_meta_gradient_is_that_of_the_untouched_network(
    sharing: bool, layout: dict[str, Any]
) -> None:
    plain, tasks = network(), two_tasks(images(2 * WAYS, tasks=(2,)))
    options: dict[str, Any] = {"sharing": sharing, "adapts": lambda _: True}
    fast = meta_gradient(plain, tasks, **options, **layout)
    assert_same(fast, meta_gradient(plain, tasks, untouched=True, **options))


class Sequences(nn.Module):
    """Over signals, with layers of each kind that is replaced or kept."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(3, 4, 3, stride=2, padding=2, dilation=2)
        self.conv2 = nn.Conv1d(4, 8, 3, groups=2, padding="same")
        self.conv3 = nn.Conv1d(8, 8, 1, groups=4, bias=False)
        self.pool = nn.MaxPool1d(3, stride=2, padding=1)
        self.lstm = nn.LSTM(8, 4, batch_first=True, bidirectional=True)
        self.attention = nn.TransformerEncoderLayer(8, 2, 6, dropout=0.0, batch_first=True)
        self.hidden = nn.Linear(8, 5, bias=False)
        self.fc = nn.Linear(5, WAYS)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        x = self.pool(self.conv3(self.conv2(self.conv1(x)).tanh()))
        x = self.attention(self.lstm(x.transpose(1, 2))[0])
        y: Tensor = self.fc(self.hidden(x).tanh()[:, -1])
        return y


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_over_sequences_too_each_meta_gradient_is_that_of_the_untouched_network(
    layout: dict[str, Any],
) -> None:
    torch.manual_seed(0)
    plain, tasks = Sequences().double(), two_tasks(images(2 * WAYS, tasks=(2,)))
    fast = meta_gradient(plain, tasks, sharing=True, **layout)
    assert_same(fast, meta_gradient(plain, tasks, sharing=True, untouched=True))


def test_with_many_channels_too_each_meta_gradient_is_that_of_the_untouched_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 104, 3, padding=1),
        nn.BatchNorm2d(104),
        nn.ReLU(inplace=True),
        nn.Conv2d(104, 104, 3, padding=1),
        nn.BatchNorm2d(104),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(104, WAYS),
    ).double()
    x = torch.randn(2, 2 * WAYS, 16, 16, 3, dtype=torch.float64).movedim(-1, 2)  # channels last
    tasks = two_tasks(x)
    forward = Mock(wraps=winograd.forward)
    monkeypatch.setattr(winograd, "forward", forward)
    fast = meta_gradient(plain, tasks)
    assert forward.called
    forward.reset_mock()
    assert_same(fast, meta_gradient(plain, tasks, untouched=True))
    assert not forward.called


def two_tasks(x: Tensor) -> gs.TaskBatch:
    y = torch.arange(WAYS).repeat(2, 2)
    return gs.TaskBatch(x, y, x.flip(1) * 1.1, y.flip(1))


def meta_gradient(
    model: nn.Module, tasks: gs.TaskBatch, *, untouched: bool = False, **options: Any
) -> dict[str, Tensor]:
    """The meta-gradient of a learner, whose copy of the model is accelerated or untouched."""
    with (
        patch("gradshare.methods.network.use_fast_layers", lambda m: m)
        if untouched
        else nullcontext()
    ):
        learner = gs.maml(model, steps=2, inner_lr=0.1, **options)
        meta, carried = learner.init()  # which copies the model again
    losses = learner.outer_step(meta, carried, tasks, iteration=0).objective
    gradients = torch.autograd.grad(losses.sum(), list(meta.values()))
    return dict(zip(meta, gradients, strict=True))


def assert_same(mine: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert mine.keys() == other.keys()
    for name, gradient in mine.items():
        assert (gradient - other[name]).norm() <= 1e-9 * other[name].norm() + 1e-13, name


def test_a_hessian_vector_product_of_the_outer_loss_is_that_of_the_untouched_network() -> None:
    # In evaluation mode: PyTorch's own third derivative of batch statistics (2.13.0) is wrong.
    plain = network().eval()
    mine, other = outer_hessian_product(gs.accelerate(plain)), outer_hessian_product(plain)
    assert_equal(mine, other, tolerance=1e-9)


def outer_hessian_product(model: nn.Module) -> list[Tensor]:
    """The derivative of the sum of the meta-gradient, for one inner step."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    values = list(parameters.values())
    y = torch.arange(4) % WAYS
    inner = F.cross_entropy(functional_call(model, parameters, (images(),)), y)
    steps = torch.autograd.grad(inner, values, create_graph=True)
    adapted = {n: p - 0.1 * g for (n, p), g in zip(parameters.items(), steps, strict=True)}
    outer = F.cross_entropy(functional_call(model, adapted, (images().flip(0),)), y)
    meta = torch.autograd.grad(outer, values, create_graph=True)
    return list(torch.autograd.grad(torch.stack([g.sum() for g in meta]).sum(), values))


def test_hooks_are_kept_and_it_can_be_pickled() -> None:
    model = network()
    calls: list[str] = []
    model.conv2.register_forward_hook(lambda *_: calls.append("conv2"))
    gs.accelerate(model)(images())
    assert calls == ["conv2"]
    fast = gs.accelerate(network())
    assert torch.equal(pickle.loads(pickle.dumps(fast))(images()), fast(images()))


def test_the_blocks_of_our_networks_stay_as_they_are() -> None:
    blocks = gs.Conv4(ways=WAYS, image_size=16, channels=3, filters=4).blocks
    kinds = [type(module) for module in gs.accelerate(blocks).modules()]
    assert kinds == [type(module) for module in blocks.modules()]


def test_subclasses_stay_as_they_are() -> None:
    class Own(nn.Conv2d):
        pass

    assert type(gs.accelerate(nn.Sequential(Own(3, 3, 3)))[0]) is Own


def test_complex_convolutions_have_the_gradients_of_pytorch() -> None:
    plain = nn.Conv2d(100, 100, 3, padding=1, dtype=torch.complex128)
    x = torch.randn(5, 100, 12, 12, dtype=torch.complex128)
    x = x.contiguous(memory_format=torch.channels_last)
    first, second = (
        torch.autograd.grad(net(x).abs().square().sum(), list(net.parameters()))
        for net in (plain, gs.accelerate(plain))
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(100, 100, 3, padding=1), "expected input.* to have 100 channels, but got 50"),
        (nn.BatchNorm2d(60, track_running_stats=False), "weight should contain 50 elements not 60"),
    ],
    ids=str,
)
def test_images_of_other_channels_raise_the_error_of_pytorch(
    layer: nn.Module, message: str
) -> None:
    x = torch.randn(16, 50, 12, 12).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match=message):
        gs.accelerate(layer)(x)


def test_under_autocast_it_computes_what_it_computed() -> None:
    plain = network().float()
    fast = gs.accelerate(plain)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(images().float()), plain(images().float()))
