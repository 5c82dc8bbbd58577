"""Attention that can be differentiated twice.

PyTorch's fused kernels of `scaled_dot_product_attention` have no second derivative, which a
second-order step needs. The same product written as matrix products has one.
"""

from __future__ import annotations

import threading

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradshare.inner_loop.flat_memory import TaskLosses
from gradshare.inner_loop.rule import Tensors

# PyTorch's choice of kernels is that of the whole process: threads take turns.
_choosing = threading.RLock()


def twice_differentiable(losses: TaskLosses) -> TaskLosses:
    """The same losses, computed without fused attention."""

    def without_fused_attention(params: Tensors, shared: Tensors, chunk: slice) -> Tensor:
        with _choosing, sdpa_kernel(SDPBackend.MATH):
            return losses(params, shared, chunk)

    return without_fused_attention
