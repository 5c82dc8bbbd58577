"""Attention that can be differentiated twice, and computed for several tasks by `torch.vmap`.

PyTorch's fused kernels of `scaled_dot_product_attention` have no second derivative, which a
second-order step needs, and no rule for vmap. The same product written as matrix products has both.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

# PyTorch's choice of kernels is that of the whole process: threads take turns.
_choosing = threading.RLock()


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Compute attention by matrix products."""
    with _choosing, sdpa_kernel(SDPBackend.MATH):
        yield
