"""Recurrent layers in plain operations.

PyTorch's own cannot be computed for several tasks at once by `torch.vmap`, and on a GPU cuDNN's
cannot be differentiated twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.models.derivatives import under_autocast

States = tuple[Tensor, ...]
Cell = Callable[[Tensor, States, Tensor, Tensor | None], States]
"""Computes the next states from the input's part of the gates (N, …), the states (N, H), and the
weights and bias of the hidden state. The first state is the output."""


class LSTM(nn.LSTM):
    """`torch.nn.LSTM` in plain operations."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        """See `torch.nn.LSTM`."""
        if not _can_unroll(input) or self.proj_size:
            return super().forward(input, hx)
        return _unrolled(self, _lstm_cell, input, hx)


class GRU(nn.GRU):
    """`torch.nn.GRU` in plain operations."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        """See `torch.nn.GRU`."""
        if not _can_unroll(input):
            return super().forward(input, hx)
        output, (final,) = _unrolled(self, _gru_cell, input, None if hx is None else (hx,))
        return output, final


def _can_unroll(x: Any) -> bool:
    """Whether x is not packed and has the right form. PyTorch says what is wrong with others."""
    return isinstance(x, Tensor) and x.ndim in (2, 3) and x.numel() > 0


def _lstm_cell(gates: Tensor, states: States, weight: Tensor, bias: Tensor | None) -> States:
    hidden, cell = states
    i, f, g, o = (gates + F.linear(hidden, weight, bias)).chunk(4, -1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def _gru_cell(gates: Tensor, states: States, weight: Tensor, bias: Tensor | None) -> States:
    (hidden,) = states
    of_x, of_hidden = gates.chunk(3, -1), F.linear(hidden, weight, bias).chunk(3, -1)
    reset, update = ((a + b).sigmoid() for a, b in zip(of_x[:2], of_hidden[:2], strict=True))
    new = (of_x[2] + reset * of_hidden[2]).tanh()
    return (torch.lerp(new, hidden, update),)


def _unrolled(
    module: nn.RNNBase, cell: Cell, x: Tensor, initial: States | None
) -> tuple[Tensor, States]:
    """The outputs and the last states, as the module's own `forward` returns them."""
    batch, time = (0, 1) if module.batch_first else (1, 0)
    if x.ndim == 2:  # one sequence is a batch of one
        initial = None if initial is None else tuple(state.unsqueeze(1) for state in initial)
        x, final = _unrolled(module, cell, x.unsqueeze(batch), initial)
        return x.squeeze(batch), tuple(state.squeeze(1) for state in final)
    directions = 2 if module.bidirectional else 1
    if initial is None:
        zeros = x.new_zeros(module.num_layers * directions, x.shape[batch], module.hidden_size)
        initial = (zeros, zeros) if cell is _lstm_cell else (zeros,)
    hidden = initial[0] if cell is _gru_cell else initial
    module.check_forward_args(x, hidden, None)  # type: ignore[arg-type]
    last: list[States] = []
    for layer in range(module.num_layers):
        if layer:
            x = F.dropout(x, module.dropout, module.training)
        outputs = []
        for backwards in range(directions):
            parameters: list[Any] = module.all_weights[len(last)]
            weight, weight_hidden, *biases = parameters
            bias, bias_hidden = biases or (None, None)
            if biases and cell is _lstm_cell:  # both are added to the same gates
                bias, bias_hidden = biases[0] + biases[1], None
            gates = F.linear(x.flip(time) if backwards else x, weight, bias)
            states = tuple(state[len(last)] for state in initial)
            if under_autocast(x.device):  # which computes the gates in half precision
                states = tuple(state.to(gates.dtype) for state in states)
            found: list[Tensor] = []
            for of_x in gates.unbind(time):
                states = cell(of_x, states, weight_hidden, bias_hidden)
                found.append(states[0])
            last.append(states)
            outputs.append(torch.stack(found[::-1] if backwards else found, time))
        x = torch.cat(outputs, -1)
    final = tuple(torch.stack(parts) for parts in zip(*last, strict=True))
    return x, final
