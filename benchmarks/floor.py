"""The floor: the convolutions that a second-order meta-step cannot do without, and nothing else.

How many there are. Let y = x * w be a convolution of an inner step, F its forward kernel and B the
backward kernel, which gives ∂/∂x (a transposed convolution) and ∂/∂w (a correlation) together.

- The inner loss:                    y = x * w                                     1 F
- Its gradient, from ȳ = ∂L/∂y:      x̄ = ȳ *ᵀ w and w̄ = x ⋆ ȳ                      1 B
- The outer gradient, from the cotangents u of x̄ and v of w̄, and p of y:
    of ȳ, through x̄ and w̄:           u * w + x * v                                 2 F
    of w through x̄, of x through w̄:  u ⋆ ȳ,  ȳ *ᵀ v                                1 B
    of x and w, through y:           p *ᵀ w,  x ⋆ p                                1 B

so 3 F and 3 B. Nothing flows into images: the first layer has no x̄, hence no u, and of B needs only
the half that gives ∂/∂w, and of the outer gradient only x * v and x ⋆ p: 2 F and 2 halves of B. The
products are bilinear, and forward-over-reverse needs the same ones. A query pass is 1 F and 1 B.
K support passes and one query pass for each task; no inner step is recomputed.

Each of these calls runs in whichever memory layout is faster for it, found out before the clock
starts; no contender could change layouts for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.networks import WAYS
from benchmarks.problems import Problem

LAYOUTS = (torch.contiguous_format, torch.channels_last)
TRIALS = 3

Call = Callable[[], object]

_convolution = torch.ops.aten.convolution.default
_convolution_backward = torch.ops.aten.convolution_backward.default


class Floor:
    """The convolutions of a meta-step of Conv-4, to be run alone."""

    layout = "the faster of each call"
    units = 1

    def __init__(self, problem: Problem) -> None:
        self.calls: list[Call] = []
        p = problem
        channels, size, _ = p.kind.shape
        filters = sum(len(w) for n, w in p.model(ours=False).named_parameters() if "conv" in n) // 4
        for images, passes, second_order in (
            (WAYS * p.shots, p.task_batch * p.steps, True),
            (WAYS * p.queries, p.task_batch, False),
        ):
            for layer in range(4):
                first = layer == 0
                times = passes * ((2 if first else 3) if second_order else 1)
                x = torch.randn(
                    images, channels if first else filters, size >> layer, size >> layer
                )
                forward, backward = _fastest_calls(x, filters, with_x=not first)
                self.calls += [forward] * times + [backward] * times

    def run(self) -> None:
        """All of them once."""
        for call in self.calls:
            call()


def _fastest_calls(x: Tensor, filters: int, *, with_x: bool) -> tuple[Call, Call]:
    """The forward and the backward call of one convolution, each in its faster layout.

    Args:
        x: (N, C, H, W), its input.
        filters: output channels.
        with_x: whether the backward call gives ∂/∂x besides ∂/∂w.
    """
    pairs = [_calls(x, filters, layout, with_x=with_x) for layout in LAYOUTS]
    forward, backward = (min(calls, key=_seconds) for calls in zip(*pairs, strict=True))
    return forward, backward


def _calls(
    x: Tensor, filters: int, layout: torch.memory_format, *, with_x: bool
) -> tuple[Call, Call]:
    x = x.contiguous(memory_format=layout)
    w = torch.randn(filters, x.shape[1], 3, 3).contiguous(memory_format=layout)
    y = torch.randn(len(x), filters, *x.shape[2:]).contiguous(memory_format=layout)
    # stride, padding, dilation, transposed, output padding, groups
    arguments = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)

    def forward() -> object:
        return _convolution(x, w, None, *arguments)

    def backward() -> object:
        return _convolution_backward(y, x, w, None, *arguments, [with_x, True, False])

    return forward, backward


def _seconds(call: Call) -> float:
    """The best of a few trials, the first one apart."""
    trials = []
    for _ in range(TRIALS + 1):
        start = time.perf_counter()
        call()
        trials.append(time.perf_counter() - start)
    return min(trials[1:])
