"""Recurrent layers in plain operations, beside PyTorch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence

import gradshare as gs
from tests.models.derivatives import assert_equal, second_derivatives, third_derivatives

KINDS = [nn.LSTM, nn.GRU]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"batch_first": True, "bias": False},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"num_layers": 3, "dropout": 0.5},
]


def layer(kind: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(3, 4, **options).double().eval()


def sequences(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def flat(returned: Any) -> list[Tensor]:
    output, final = returned
    return [output, *(final if isinstance(final, tuple) else [final])]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_last_states_and_two_derivatives_are_those_of_pytorch(
    kind: type[nn.RNNBase], options: dict[str, Any]
) -> None:
    plain = layer(kind, **options)
    fast = gs.accelerate(plain)
    assert type(fast) is not kind
    x = sequences(5, 6, 3)
    mine, other = flat(fast(x)), flat(plain(x))
    assert all(a.shape == b.shape for a, b in zip(mine, other, strict=True))
    assert_equal(mine, other)
    for a, b in zip(mine, other, strict=True):
        assert_equal(
            second_derivatives(a, [x, *fast.parameters()][:3]),
            second_derivatives(b, [x, *plain.parameters()][:3]),
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(5, 3), (5, 6, 3)])
def test_it_starts_from_given_states_and_takes_one_sequence(
    kind: type[nn.RNNBase], shape: tuple[int, ...]
) -> None:
    plain = layer(kind)
    x, state = sequences(*shape), sequences(1, *shape[1:-1], 4)
    start: Any = (state, 0.5 * state) if kind is nn.LSTM else state
    mine, other = flat(gs.accelerate(plain)(x, start)), flat(plain(x, start))
    assert all(a.shape == b.shape for a, b in zip(mine, other, strict=True))
    assert_equal(mine, other)


@pytest.mark.parametrize("kind", KINDS)
def test_the_third_derivative_is_right(kind: type[nn.RNNBase]) -> None:
    plain = layer(kind)
    found = []
    for model in (gs.accelerate(plain), plain):
        x = sequences(3, 2, 3)
        found.append(third_derivatives(model(x)[0], [x, model.weight_hh_l0, model.weight_ih_l0]))
    assert_equal(found[0], found[1])


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_computed_for_several_tasks_at_once(kind: type[nn.RNNBase]) -> None:
    fast = gs.accelerate(layer(kind, bidirectional=True))
    x = sequences(2, 5, 6, 3)
    params = {
        n: torch.stack([p, 1.1 * p]).detach().requires_grad_() for n, p in fast.named_parameters()
    }

    def output(params: dict[str, Tensor], x: Tensor) -> Tensor:
        found: Tensor = functional_call(fast, params, (x,))[0]
        return found

    together = torch.vmap(output)(params, x)
    apart = torch.stack([output({n: p[t] for n, p in params.items()}, x[t]) for t in range(2)])
    inputs = [x, *params.values()]
    assert_equal(second_derivatives(together, inputs), second_derivatives(apart, inputs))


def test_dropout_between_layers_is_on_in_training_mode_only() -> None:
    fast = gs.accelerate(layer(nn.LSTM, num_layers=2, dropout=0.5))
    x = sequences(5, 6, 3)
    assert torch.equal(fast(x)[0], fast(x)[0])
    fast.train()
    assert not torch.equal(fast(x)[0], fast(x)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_and_projections_are_left_to_pytorch(kind: type[nn.RNNBase]) -> None:
    plain = layer(kind)
    packed = pack_padded_sequence(sequences(5, 2, 3), torch.tensor([5, 3]))
    assert torch.equal(gs.accelerate(plain)(packed)[0].data, plain(packed)[0].data)
    projected = nn.LSTM(3, 4, proj_size=2).double()
    x = sequences(5, 6, 3)
    assert torch.equal(gs.accelerate(projected)(x)[0], projected(x)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "start"), [((5, 6, 2), None), ((5, 6, 3), (1, 5, 4))], ids=str)
def test_wrong_shapes_get_an_error_that_names_them(
    kind: type[nn.RNNBase], shape: tuple[int, ...], start: tuple[int, ...] | None
) -> None:
    state = None if start is None else sequences(*start)
    arguments: Any = (state, state) if kind is nn.LSTM and state is not None else state
    with pytest.raises(RuntimeError, match=r"must be equal|Expected hidden"):
        gs.accelerate(layer(kind))(sequences(*shape), arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_it_is_computed_in_half_precision(kind: type[nn.RNNBase]) -> None:
    fast = gs.accelerate(layer(kind).float())
    x = sequences(5, 6, 3).float()
    start: Any = torch.ones(1, 6, 4)
    for hidden in (None, (start, start) if kind is nn.LSTM else start):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output, _ = fast(x, hidden)
        assert output.dtype == torch.bfloat16
        assert (output - fast(x, hidden)[0]).abs().max() < 0.02


@pytest.mark.parametrize("shape", [(3,), (0, 6, 3), (5, 6, 3, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_sequence_gets_the_error_of_pytorch(
    kind: type[nn.RNNBase], shape: tuple[int, ...]
) -> None:
    plain = layer(kind)
    x = torch.ones(shape, dtype=torch.float64)
    with pytest.raises((ValueError, RuntimeError)) as theirs:
        plain(x)
    with pytest.raises(theirs.type) as ours:
        gs.accelerate(plain)(x)
    assert str(ours.value) == str(theirs.value)
