"""MAML++'s multi-step loss (Antoniou et al., 2018, §4; weights as in the reference code)."""

from __future__ import annotations

from dataclasses import dataclass

from gradshare.errors import require_count

SMALLEST_SHARE = 0.03


@dataclass(frozen=True)
class MultiStepLoss:
    """Weights of the query losses after each inner step. They are equal at first, and annealed
    until only the last step counts.

    The reference code changes the weights after each of its epochs of 500 iterations. Here they
    change with each iteration, and equal the reference's at the start of its epochs.

    Attributes:
        iterations: the length of the annealing in outer iterations.

    Raises:
        ConfigError: `iterations` is not a whole number of at least 0.
    """

    iterations: int

    def __post_init__(self) -> None:
        require_count("iterations of the multi-step loss", self.iterations, least=0)

    def weights(self, steps: int, iteration: int) -> list[float]:
        """The weights of the query losses after update 1, …, K at an outer iteration (from 0)."""
        K = steps
        if iteration >= self.iterations:
            return [0.0] * (K - 1) + [1.0]
        done = iteration / self.iterations
        other = max(1 / K - done / K, SMALLEST_SHARE / K)
        last = min(1 / K + done * (K - 1) / K, 1 - (K - 1) * SMALLEST_SHARE / K)
        return [other] * (K - 1) + [last]
