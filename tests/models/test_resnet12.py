"""ResNet-12 against the published network, written out with the layers of PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from gradshare.methods import maml
from gradshare.models import BatchNorm2d, ResNet12
from gradshare.tasks import TaskBatch
from tests.models.test_drop_block import drop_block_literally

WIDTHS = (3, 4, 5, 6)
RATE = 0.2
WAYS = 3
MODES = pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])


class PublishedBlock(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width, track_running_stats=False)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, track_running_stats=False)
        self.conv3 = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width, track_running_stats=False)
        self.downsample_conv = nn.Conv2d(channels, width, kernel_size=1, bias=False)
        self.downsample_bn = nn.BatchNorm2d(width, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.leaky_relu(self.bn1(self.conv1(x)), 0.1)
        out = F.leaky_relu(self.bn2(self.conv2(out)), 0.1)
        out = self.bn3(self.conv3(out))
        out = out + self.downsample_bn(self.downsample_conv(x))
        return F.max_pool2d(F.leaky_relu(out, 0.1), 2)


class PublishedResNet12(nn.Module):
    """With the final rate of DropBlock's schedule."""

    def __init__(self, classes: int, widths: tuple[int, ...], block_size: int) -> None:
        super().__init__()
        self.layer1 = PublishedBlock(3, widths[0])
        self.layer2 = PublishedBlock(widths[0], widths[1])
        self.layer3 = PublishedBlock(widths[1], widths[2])
        self.layer4 = PublishedBlock(widths[2], widths[3])
        self.classifier = nn.Linear(widths[3], classes)
        self.block_size = block_size

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.layer1(x), RATE, self.training)
        x = F.dropout(self.layer2(x), RATE, self.training)
        x = self.layer3(x)
        if self.training:
            x = drop_block_literally(x, RATE, self.block_size)
        x = self.layer4(x)
        if self.training:
            x = drop_block_literally(x, RATE, self.block_size)
        x = F.adaptive_avg_pool2d(x, 1).view(len(x), -1)
        logits: Tensor = self.classifier(x)
        return logits


def small(classes: int = WAYS, **options: Any) -> ResNet12:
    """A narrow network in float64, whose γ and β are not all alike."""
    torch.manual_seed(0)
    model = ResNet12(classes, **{"widths": WIDTHS, "drop_rate": RATE, **options}).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BatchNorm2d):
                nn.init.normal_(module.weight, 1, 0.3)
                nn.init.normal_(module.bias, 0, 0.3)
    return model


def images(count: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64)


def tasks(count: int) -> TaskBatch:
    x = images(count * WAYS * 4, 32).view(count, WAYS * 4, 3, 32, 32)
    y = torch.arange(WAYS).repeat(count, 1)
    return TaskBatch(x[:, : 2 * WAYS], y.repeat(1, 2), x[:, 2 * WAYS :], y.repeat(1, 2))


def meta_gradient(model: ResNet12, batch: TaskBatch, **options: Any) -> dict[str, Tensor]:
    """Of one outer step of MAML with two inner steps, by the parameter's name."""
    torch.manual_seed(7)
    learner = maml(model, steps=2, inner_lr=0.1, **options)
    meta, carried = learner.init()
    objective = learner.outer_step(meta, carried, batch, iteration=0).objective.mean()
    gradients = torch.autograd.grad(objective, list(meta.values()))
    return {n.removeprefix("model."): g for n, g in zip(meta, gradients, strict=True)}


def assert_equal(mine: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert mine.keys() == other.keys()
    for name, tensor in mine.items():
        assert tensor.norm() > 0, name
        assert (tensor - other[name]).norm() <= 1e-9 * other[name].norm(), name


@MODES
@pytest.mark.parametrize(("size", "block_size"), [(84, 5), (50, 3), (32, 2), (16, 5)])
def test_outputs_and_gradients_equal_those_of_the_published_network(
    size: int, block_size: int, training: bool
) -> None:
    ours = small(drop_block_size=block_size).train(training)
    theirs = PublishedResNet12(WAYS, WIDTHS, block_size).double().train(training)
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert mine.shape == other.shape
            other.copy_(mine)
    found = []
    for model in (ours, theirs):
        x = images(4, size).requires_grad_()
        torch.manual_seed(1)
        y = model(x)
        gradients = torch.autograd.grad(y.square().sum(), [x, *model.parameters()])
        names = ["x", *(name for name, _ in ours.named_parameters())]
        found.append({"y": y, **dict(zip(names, gradients, strict=True))})
    assert_equal(*found)


def test_it_has_as_many_parameters_as_the_published_network() -> None:
    with torch.device("meta"):
        model, published = ResNet12(64), PublishedResNet12(64, (64, 160, 320, 640), 5)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == sum(parameter.numel() for parameter in published.parameters())
    assert count - 640 * 64 - 64 == 12_424_320


@pytest.mark.parametrize(("H", "W"), [(16, 16), (28, 28), (33, 47), (84, 84)])
def test_one_network_takes_images_of_any_size(H: int, W: int) -> None:
    with torch.device("meta"):
        model = ResNet12(5, channels=1)
        assert model(torch.empty(3, 1, H, W)).shape == (3, 5)


def test_it_starts_as_the_published_network() -> None:
    torch.manual_seed(0)
    model = ResNet12(5, widths=(16, 32, 64, 64))
    weight = model.get_parameter("blocks.2.first.conv.weight")
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)
    weight = model.get_parameter("blocks.3.shortcut.conv.weight")
    assert weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.03)
    assert all(p.eq(1).all() for n, p in model.named_parameters() if "norm.weight" in n)
    assert all(p.eq(0).all() for n, p in model.named_parameters() if "norm.bias" in n)


@MODES
def test_it_can_be_differentiated_twice(training: bool) -> None:
    model = small(widths=(2, 2, 2, 2)).train(training)
    names = [name for name, _ in model.named_parameters()]

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(1)
        y = functional_call(model, dict(zip(names, parameters, strict=True)), (x,))
        assert isinstance(y, Tensor)
        return y

    inputs = (images(3, 32).requires_grad_(), *model.parameters())
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_pytorchs_base_class_of_dropout_covers_all_that_is_random() -> None:
    model, x = small(), images(4, 32)
    expected = model.eval()(x)
    assert not torch.equal(model.train()(x), expected)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    assert torch.equal(model(x), expected)


def test_in_the_inductive_mode_a_query_does_not_depend_on_other_queries() -> None:
    model, support, queries = small().eval(), images(6, 32), images(5, 32, seed=1)
    together = model(queries, support)
    assert together.shape == (5, WAYS)
    for query, expected in zip(queries, together, strict=True):
        assert torch.allclose(model(query[None], support)[0], expected, rtol=1e-9)
    assert not torch.allclose(model(queries), together, rtol=1e-3)
    # The support set by itself is normalised with its own statistics.
    assert torch.allclose(model(support, support), model(support), rtol=1e-9)


def test_under_autocast_batch_norm_gets_all_bits() -> None:
    model, types = small().float(), set()
    for module in model.modules():
        if isinstance(module, BatchNorm2d):
            module.register_forward_pre_hook(lambda _, inputs: types.add(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(images(2, 16).float())
    assert types == {torch.float32}


@MODES
def test_the_meta_gradient_equals_that_of_a_loop_with_create_graph(training: bool) -> None:
    model, batch = small().train(training), tasks(1)
    meta_parameters = {n: p.detach().requires_grad_() for n, p in model.named_parameters()}
    torch.manual_seed(7)
    adapted = dict(meta_parameters)
    for _ in range(2):
        y = functional_call(model, adapted, (batch.support_x[0],))
        chosen = [name for name in adapted if "norm" not in name]
        loss = F.cross_entropy(y, batch.support_y[0])
        gradients = torch.autograd.grad(loss, [adapted[n] for n in chosen], create_graph=True)
        for name, gradient in zip(chosen, gradients, strict=True):
            adapted[name] = adapted[name] - 0.1 * gradient
    y = functional_call(model, adapted, (batch.query_x[0],))
    loss = F.cross_entropy(y, batch.query_y[0])
    expected = torch.autograd.grad(loss, list(meta_parameters.values()))
    literal = dict(zip(meta_parameters, expected, strict=True))
    assert_equal(meta_gradient(model, batch, batch_norm="transductive"), literal)


@pytest.mark.parametrize("batch_norm", ["transductive", "inductive"])
def test_the_meta_gradient_is_the_same_by_vmap_and_recomputed(batch_norm: str) -> None:
    model, batch = small().eval(), tasks(2)
    by_loop = meta_gradient(model, batch, batch_norm=batch_norm)
    by_vmap = meta_gradient(model, batch, batch_norm=batch_norm, tasks_at_a_time=None)
    recomputed = meta_gradient(model, batch, batch_norm=batch_norm, recompute=True)
    assert_equal(by_vmap, by_loop)
    assert_equal(recomputed, by_loop)


def test_with_dropout_the_meta_gradient_runs_by_vmap() -> None:
    batch = tasks(2)
    by_vmap = meta_gradient(small(), batch, tasks_at_a_time=None)
    assert_equal(meta_gradient(small(), batch, tasks_at_a_time=None), by_vmap)
    without = meta_gradient(small(drop_rate=0.0), batch, tasks_at_a_time=None)
    assert any((by_vmap[n] - g).norm() > 0.01 * g.norm() for n, g in without.items())
