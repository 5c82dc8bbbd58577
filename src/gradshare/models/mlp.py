"""A small network for rows of numbers, such as features from a frozen backbone."""

from __future__ import annotations

from torch import Tensor, nn

from gradshare.errors import require_count


class MLP(nn.Module):
    """Linear, layer norm, ReLU, then a linear head. Examples do not influence each other.

    Args:
        ways: N, the number of outputs.
        features: D, the numbers in a row.
        hidden: the width.

    Raises:
        ConfigError: one of them is not a whole number of at least 1.
    """

    def __init__(self, *, ways: int, features: int, hidden: int = 128) -> None:
        super().__init__()
        for name, value in (("ways", ways), ("features", features), ("hidden", hidden)):
            require_count(name, value)
        self.body = nn.Sequential(nn.Linear(features, hidden), nn.LayerNorm(hidden), nn.ReLU())
        self.head = nn.Linear(hidden, ways)

    def forward(self, x: Tensor) -> Tensor:
        """Rows (n, D) to class scores (n, ways)."""
        scores: Tensor = self.head(self.body(x))
        return scores
