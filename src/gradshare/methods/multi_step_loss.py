"""MAML++'s outer loss over the queries after every inner step (Antoniou et al., 2018, §4)."""

from __future__ import annotations

SMALLEST_SHARE = 0.03
"""The part of its first weight that an earlier step keeps, as in the reference code."""


def multi_step_weights(steps: int, iteration: int, iterations: int) -> list[float]:
    """The weights of the query losses after update 1, …, K: equal at first, and annealed until only
    the last one counts.

    The reference code changes them after each of its epochs of 500 iterations. Here they change
    with each iteration, and equal the reference's at the start of its epochs.

    Args:
        steps: K.
        iteration: the outer iteration, from 0.
        iterations: how many iterations the annealing takes.
    """
    K = steps
    if iteration >= iterations:
        return [0.0] * (K - 1) + [1.0]
    done = iteration / iterations
    other = max(1 / K - done / K, SMALLEST_SHARE / K)
    last = min(1 / K + done * (K - 1) / K, 1 - (K - 1) * SMALLEST_SHARE / K)
    return [other] * (K - 1) + [last]
