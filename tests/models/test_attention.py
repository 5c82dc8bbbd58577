"""Self-attention that keeps the sequences of a batch together, beside PyTorch's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import gradshare as gs
from tests.models.derivatives import assert_equal, second_derivatives


@pytest.fixture(autouse=True)
def _twice_differentiable() -> Iterator[None]:
    with sdpa_kernel(SDPBackend.MATH):
        yield


def layer(**settings: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64, **settings)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_()
    return plain


def sequences(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, 8, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("bias", [True, False])
def test_the_output_and_two_derivatives_are_those_of_pytorch(bias: bool) -> None:
    plain, x = layer(bias=bias), sequences(3, 5)
    fast = gs.accelerate(plain)
    outputs = [f(x, x, x, need_weights=False)[0] for f in (fast, plain)]
    assert_equal(outputs[:1], outputs[1:])
    mine, other = (
        second_derivatives(y, [x, *f.parameters()])
        for y, f in zip(outputs, (fast, plain), strict=True)
    )
    assert_equal(mine, other)


def test_for_several_tasks_at_once_it_is_that_of_each() -> None:
    plain = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, dtype=torch.float64)
    fast, x = gs.accelerate(plain), sequences(3, 2, 4)
    own = {
        name: torch.stack([p.detach() * scale for scale in (0.5, 1.0, 1.5)]).requires_grad_()
        for name, p in plain.named_parameters()
    }

    def forward(model: nn.Module, params: dict[str, Tensor], x: Tensor) -> Tensor:
        y: Tensor = functional_call(model, params, (x,))
        return y

    together = torch.vmap(lambda params, x: forward(fast, params, x))(own, x)
    apart = torch.stack(
        [forward(plain, {name: p[task] for name, p in own.items()}, x[task]) for task in range(3)]
    )
    tensors = [x, *own.values()]
    assert_equal(second_derivatives(together, tensors), second_derivatives(apart, tensors))


@pytest.mark.parametrize(
    "call",
    [
        {"need_weights": True},
        {"need_weights": True, "average_attn_weights": False},
        {"need_weights": False, "attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1)},
        {"need_weights": False, "is_causal": True, "attn_mask": torch.full((5, 5), -9.0).double()},
        {"need_weights": False, "key_padding_mask": torch.eye(3, 5, dtype=torch.bool)},
    ],
    ids=["weights", "of each head", "mask", "causal", "padding"],
)
def test_weights_and_masks_are_those_of_pytorch(call: dict[str, Any]) -> None:
    plain, x = layer(), sequences(3, 5)
    for mine, other in zip(
        gs.accelerate(plain)(x, x, x, **call), plain(x, x, x, **call), strict=True
    ):
        assert (mine is None) == (other is None)
        if mine is not None:
            assert_equal([mine], [other])


@pytest.mark.parametrize(
    "settings", [{"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 8, "vdim": 6}], ids=str
)
def test_extended_layers_and_attention_to_others_are_those_of_pytorch(
    settings: dict[str, Any],
) -> None:
    plain, x = layer(**settings), sequences(3, 5)
    value = sequences(3, 5)[..., :6] if "vdim" in settings else x
    for key in (x, sequences(3, 5) * 2):
        mine, other = (
            f(x, key, value, need_weights=False)[0] for f in (gs.accelerate(plain), plain)
        )
        assert_equal([mine], [other])


def test_dropout_is_on_in_training_mode_only() -> None:
    fast, x = gs.accelerate(layer(dropout=0.5)), sequences(3, 5)
    first, second = (fast(x, x, x, need_weights=False)[0] for _ in range(2))
    assert not torch.equal(first, second)
    fast.eval()
    assert_equal(fast(x, x, x, need_weights=False)[:1], fast(x, x, x, need_weights=False)[:1])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_sequences_of_unequal_length_get_what_pytorch_gives_them() -> None:
    plain = layer().eval()
    with torch.no_grad():
        x = torch.nested.nested_tensor([sequences(2), sequences(5)])
        mine, other = (f(x, x, x, need_weights=False)[0] for f in (gs.accelerate(plain), plain))
    assert_equal(mine.unbind(), other.unbind())
