"""The layer's hand-written derivatives against finite differences and against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from gradshare.errors import ConfigError
from gradshare.inner_loop import Tensors
from gradshare.models import ConvBlock, conv_block
from tests.models.derivatives import assert_equal, second_derivatives, third_derivatives

SLOPES = pytest.mark.parametrize("slope", [0.0, 0.01])
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True])


def problem(slope: float, *, channels_last: bool) -> tuple[ConvBlock, Tensor]:
    torch.manual_seed(0)
    block = ConvBlock(3, 4, negative_slope=slope, conv_bias=False).double()
    with torch.no_grad():
        block.norm.weight.copy_(torch.tensor([0.4, -0.7, 1.3, 2.0]))
        block.norm.bias.copy_(torch.tensor([0.1, 0.2, -0.3, 0.5]))
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    return block, x.requires_grad_()


def definition(
    block: ConvBlock, parameters: Tensors, x: Tensor, convolves_in: torch.dtype = torch.float64
) -> Tensor:
    """In the reference code's order: convolution, batch norm, activation, max-pooling."""
    filters = parameters["conv.weight"].to(convolves_in)
    z = F.conv2d(x.to(convolves_in), filters, padding=1).to(x.dtype)
    mean = z.mean((0, 2, 3), keepdim=True)
    variance = (z - mean).square().mean((0, 2, 3), keepdim=True)
    z = (z - mean) / torch.sqrt(variance + block.norm.eps)
    z = parameters["norm.weight"][:, None, None] * z + parameters["norm.bias"][:, None, None]
    return F.max_pool2d(torch.where(z > 0, z, block.negative_slope * z), 2)


@SLOPES
@LAYOUTS
def test_first_and_second_derivatives_are_finite_differences(
    slope: float, channels_last: bool
) -> None:
    block, x = problem(slope, channels_last=channels_last)
    names = [name for name, _ in block.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        y = functional_call(block, dict(zip(names, parameters, strict=True)), (x,))
        assert isinstance(y, Tensor)
        return y

    inputs = (x, *block.parameters())
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


@SLOPES
@LAYOUTS
def test_it_equals_its_definition(slope: float, channels_last: bool) -> None:
    block, x = problem(slope, channels_last=channels_last)
    inputs = [x, *block.parameters()]
    ours, theirs = block(x), definition(block, dict(block.named_parameters()), x)
    assert torch.allclose(ours, theirs, rtol=1e-12)
    pairs = zip(second_derivatives(ours, inputs), second_derivatives(theirs, inputs), strict=True)
    for mine, other in pairs:
        assert (mine - other).norm() <= 1e-10 * other.norm()


@SLOPES
@pytest.mark.parametrize("path", ["one task", "vmap"])
def test_the_third_derivative_equals_that_of_its_definition(path: str, slope: float) -> None:
    block, x = problem(slope, channels_last=False)
    inputs = [x, *block.parameters()]
    ours = torch.vmap(block)(x[None])[0] if path == "vmap" else block(x)
    theirs = definition(block, dict(block.named_parameters()), x)
    assert_equal(third_derivatives(ours, inputs), third_derivatives(theirs, inputs))


@LAYOUTS
@pytest.mark.parametrize("images_at_a_time", [1, 2, 5])
def test_a_first_layer_computed_in_pieces_equals_its_definition(
    images_at_a_time: int, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, x = problem(0.01, channels_last=channels_last)
    images = torch.cat([x, x * 2 + 1, x[:1] * 3]).detach()
    bytes_of_an_image = 8 * block(images)[0].numel() * 5 * 5 // (2 * 2)
    monkeypatch.setattr(conv_block, "CACHED_BYTES", images_at_a_time * bytes_of_an_image)
    inputs: list[Tensor] = list(block.parameters())
    ours = block(images)
    theirs = definition(block, dict(block.named_parameters()), images)
    pairs = zip(second_derivatives(ours, inputs), second_derivatives(theirs, inputs), strict=True)
    for mine, other in pairs:
        assert (mine - other).norm() <= 1e-10 * other.norm()


@SLOPES
@LAYOUTS
@pytest.mark.parametrize("path", ["one task", "vmap", "inductive"])
def test_under_autocast_the_convolution_alone_is_narrow(
    path: str, slope: float, channels_last: bool
) -> None:
    block, x = problem(slope, channels_last=channels_last)
    block, x = block.float(), x.detach().float().requires_grad_()
    inputs = [x, *block.parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        if path == "vmap":
            ours = torch.vmap(block)(torch.stack([x, x]))[1]
        else:
            ours = block(x, len(x) if path == "inductive" else None)
    theirs = definition(block, dict(block.named_parameters()), x, torch.bfloat16)
    # The same z, rounded alike; statistics of fewer bits would differ by more than 2⁻⁹.
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    pairs = zip(second_derivatives(ours, inputs), second_derivatives(theirs, inputs), strict=True)
    for mine, other in pairs:
        # What goes into and comes out of a convolution is rounded by up to 2⁻⁹ of itself, in each
        # of the two derivatives, but not at the same places of the two formulas.
        assert mine.dtype == torch.float32
        assert (mine - other).norm() <= 2**-6 * other.norm()


def test_autocast_leaves_float64_as_it_leaves_it_everywhere() -> None:
    block, x = problem(0.01, channels_last=True)
    expected = block(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block(x), expected)


@pytest.mark.parametrize(
    ("images", "parameters", "autocast"),
    [
        (torch.uint8, torch.float32, False),
        (torch.uint8, torch.float32, True),
        (torch.float16, torch.float32, False),
        (torch.float32, torch.float64, False),
        (torch.float32, torch.float64, True),
        (torch.float64, torch.float32, True),
    ],
)
def test_images_of_another_type_than_the_parameters(
    images: torch.dtype, parameters: torch.dtype, autocast: bool
) -> None:
    block, x = problem(0.01, channels_last=True)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        pytest.raises(ConfigError) as error,
    ):
        block.to(parameters)(x.detach().to(images))
    assert str(error.value) == (
        f"the images are {images}, the model's parameters {parameters}; give both the same type: "
        f"Normalization(mean, std).batch(tasks, {parameters}) makes it of uint8 images"
    )


def test_nothing_is_divided_by_gamma() -> None:
    # With pooling the layer has a kink at γ = 0; its derivative there is that from above.
    block, x = problem(0.01, channels_last=True)
    values = []
    for gamma in (0.0, 1e-9):
        with torch.no_grad():
            block.norm.weight.fill_(gamma)
        values.append(second_derivatives(block(x), [x, *block.parameters()]))
    for at_zero, above in zip(*values, strict=True):
        assert torch.allclose(at_zero, above, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("own", ["images and filters", "filters", "images"])
def test_under_vmap_each_task_is_as_by_itself(own: str) -> None:
    block, x = problem(0.01, channels_last=True)
    parameters = {name: p.detach() for name, p in block.named_parameters()}
    images, filters = x.detach(), parameters.pop("conv.weight")
    dims = (0 if "filters" in own else None, 0 if "images" in own else None)
    if "filters" in own:
        filters = torch.stack([filters, filters.flip(0), filters * 2 + 0.1])
    if "images" in own:
        images = torch.stack([images, images * 2 + 1, images.flip(0)])
    inputs = [t.requires_grad_() for t in (filters, images, *parameters.values())]

    def call(filters: Tensor, images: Tensor) -> Tensor:
        y = functional_call(block, {**parameters, "conv.weight": filters}, (images,))
        assert isinstance(y, Tensor)
        return y

    tasks = [
        call(
            filters[t] if "filters" in own else filters,
            images[t] if "images" in own else images,
        )
        for t in range(3)
    ]
    together, apart = torch.vmap(call, in_dims=dims)(filters, images), torch.stack(tasks)
    assert torch.allclose(together, apart, rtol=1e-12)
    pairs = zip(
        second_derivatives(together, inputs), second_derivatives(apart, inputs), strict=True
    )
    for mine, other in pairs:
        assert (mine - other).norm() <= 1e-10 * other.norm()


def test_other_transforms_of_torch_take_the_definition() -> None:
    block, x = problem(0.01, channels_last=False)
    parameters = {name: p.detach() for name, p in block.named_parameters()}

    def total(parameters: Tensors) -> Tensor:
        y = functional_call(block, dict(parameters), (x.detach(),))
        assert isinstance(y, Tensor)
        return y.square().sum()

    got = torch.func.grad(total)(parameters)
    expected = torch.autograd.grad(block(x).square().sum(), list(block.parameters()))
    for mine, other in zip(got.values(), expected, strict=True):
        assert torch.allclose(mine, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 4), nn.Identity()])
def test_another_norm_in_its_place_is_used(norm: nn.Module) -> None:
    block, x = problem(0.01, channels_last=False)
    block.norm = norm.double()  # type: ignore[assignment]
    expected = F.max_pool2d(F.leaky_relu(norm(block.conv(x)), 0.01), 2)
    assert torch.allclose(block(x), expected, rtol=1e-12)
    assert torch.allclose(torch.vmap(block)(x[None])[0], expected, rtol=1e-12)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 4, 3, padding=1, stride=2),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(3, 4, 3, padding=2, dilation=2),
        nn.Conv2d(3, 4, 3, padding=0),
        nn.Conv2d(3, 4, 5, padding=1),
        nn.Conv2d(3, 3, 3, padding=1, groups=3),
    ],
    ids=str,
)
def test_another_convolution_in_its_place_is_used(conv: nn.Conv2d) -> None:
    block = ConvBlock(3, conv.out_channels, negative_slope=0.01, conv_bias=False).double()
    block.conv = conv.double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = F.max_pool2d(F.leaky_relu(block.norm(conv(x)), 0.01), 2)
    assert torch.allclose(block(x), expected, rtol=1e-12)


@pytest.mark.parametrize("part", ["conv", "norm"])
@pytest.mark.parametrize(
    "kind", ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]
)
def test_a_hook_on_a_part_is_called(kind: str, part: str) -> None:
    block, x = problem(0.01, channels_last=True)
    expected = block(x)
    calls: list[str] = []
    register = getattr(block.get_submodule(part), f"register_{kind}")
    register(lambda *_: calls.append(part))
    y = block(x)
    torch.autograd.grad(y.sum(), [x, *block.parameters()])
    assert torch.allclose(y, expected, rtol=1e-12)
    assert calls == [part]


def test_the_supports_statistics_make_queries_independent() -> None:
    block, x = problem(0.01, channels_last=True)
    y = block(torch.cat([x, x * 3, x * 3 + 1]), statistics_from=2)
    assert torch.allclose(y[:2], block(x), rtol=1e-9)
    assert torch.allclose(block(torch.cat([x, x * 3 + 1]), statistics_from=2)[2:], y[4:])
