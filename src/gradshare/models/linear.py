"""A linear layer for tasks that are computed at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare.models.derivatives import by_hand, call, tasks_first, under_autocast


class Linear(nn.Linear):
    """`torch.nn.Linear` that adds the bias while it multiplies."""

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`, for whose product and sum `torch.vmap` takes two passes."""
    plain = bias is None or x.dtype != weight.dtype or under_autocast(x.device) or not by_hand()
    return F.linear(x, weight, bias) if plain else call(_Linear, x, weight, bias)


class _Linear:
    apply = staticmethod(F.linear)

    @staticmethod
    def of_tasks(T: int, dims: Sequence[int | None], *arguments: Any) -> tuple[Tensor, int]:
        x, weight, bias = tasks_first(T, dims, arguments)
        if dims[1] is None and dims[2] is None:  # tasks that share the layer are one batch
            return F.linear(x, weight[0], bias[0]), 0
        y = torch.baddbmm(bias[:, None], x.reshape(T, -1, x.shape[-1]), weight.mT)
        return y.view(*x.shape[:-1], -1), 0
