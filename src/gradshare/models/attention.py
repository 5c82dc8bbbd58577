"""Self-attention for tasks that are computed at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.models.linear import linear


class MultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` that keeps the sequences of a batch together.

    PyTorch's puts the positions first. If each task has its own weights, `torch.vmap` then
    multiplies each position by another copy of them.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *more: Any, **options: Any) -> Any:
        """See `torch.nn.MultiheadAttention`."""
        itself = query.ndim == 3 and query is key and key is value and not query.is_nested
        masked = options.get("is_causal") or any(
            options.get(mask) is not None for mask in ("key_padding_mask", "attn_mask")
        )
        extended = self.bias_k is not None or self.add_zero_attn or self.in_proj_weight is None
        output_alone = not more and not options.get("need_weights", True)
        if not (itself and self.batch_first and output_alone) or masked or extended:
            return super().forward(query, key, value, *more, **options)
        projected = linear(query, self.in_proj_weight, self.in_proj_bias)
        # (N, L, 3 E) to three of (N, heads, L, E / heads)
        q, k, v = (
            torch.unflatten(part, -1, (self.num_heads, -1)).transpose(1, 2)
            for part in projected.chunk(3, -1)
        )
        weights = (q * self.head_dim**-0.5 @ k.transpose(-2, -1)).softmax(-1)
        attended = F.dropout(weights, self.dropout, self.training) @ v
        joined = attended.transpose(1, 2).flatten(2)
        return linear(joined, self.out_proj.weight, self.out_proj.bias), None
