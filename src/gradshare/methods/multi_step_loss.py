"""MAML++'s multi-step loss: the outer loss counts the queries after every inner step at first, and
after the last one alone in the end (Antoniou et al., 2018, §4; weights as in the reference code).
"""

from __future__ import annotations

from dataclasses import dataclass

from gradshare.errors import require_count

SMALLEST_SHARE = 0.03


@dataclass(frozen=True)
class MultiStepLoss:
    """The annealed weights of the inner steps.

    The reference code holds the weights for each of its epochs of 500 iterations; here they move
    with every iteration, equal to the reference's at the start of its epochs.

    Attributes:
        steps: K.
        iterations: how many outer iterations the annealing takes; afterwards only the last inner
            step counts.

    Raises:
        ConfigError: no steps, or iterations that are no whole number.
    """

    steps: int
    iterations: int

    def __post_init__(self) -> None:
        require_count("steps", self.steps)
        require_count("iterations of the multi-step loss", self.iterations, least=0)

    def weights(self, iteration: int) -> list[float]:
        """The weights of the query losses after update 1, …, K at an outer iteration (from 0)."""
        K = self.steps
        if iteration >= self.iterations:
            return [0.0] * (K - 1) + [1.0]
        done = iteration / self.iterations
        other = max(1 / K - done / K, SMALLEST_SHARE / K)
        last = min(1 / K + done * (K - 1) / K, 1 - (K - 1) * SMALLEST_SHARE / K)
        return [other] * (K - 1) + [last]
