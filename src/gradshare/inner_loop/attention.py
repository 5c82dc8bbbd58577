"""Attention that can be differentiated twice.

PyTorch's fused kernels of `scaled_dot_product_attention` have a derivative without a derivative of
its own, which a second-order step needs. The same product written as matrix products has all.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradshare.inner_loop.flat_memory import TaskLosses
from gradshare.inner_loop.rule import Tensors


def twice_differentiable(losses: TaskLosses) -> TaskLosses:
    """The same losses, whose attention, if they have any, can be differentiated twice."""

    def without_fused_attention(params: Tensors, shared: Tensors, chunk: slice) -> Tensor:
        with _matrix_products():
            return losses(params, shared, chunk)

    return without_fused_attention


class _Switch:
    """PyTorch's choice of kernels, which is the process's: the first of several threads to need
    matrix products makes it, and the last one takes it back.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.choice = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            if not self.users:
                self.choice.enter_context(sdpa_kernel(SDPBackend.MATH))
            self.users += 1
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if not self.users:
                    self.choice.close()


_matrix_products = _Switch()
