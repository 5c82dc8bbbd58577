"""The arms of a comparison, and their names."""

from __future__ import annotations

from typing import Final, Literal

SharingControl = Literal[
    "rate-control", "learned-rates", "own-gradient", "unnormalized", "detached", "forgotten"
]
SHARES_NOTHING: frozenset[SharingControl] = frozenset(
    {"rate-control", "own-gradient", "learned-rates"}
)
"""The controls in which no task sees another. The others leave out a part of sharing."""

ARM_FIELDS = ("sharing", "sharing_control", "fixed_lambda", "fixed_m")
"""The settings that tell arms apart."""

ORIGINAL: Final = "original"
SHARING: Final = "gradient-sharing"
RATE_CONTROL: Final = "rate-control"


def is_control(name: str) -> bool:
    """Whether an arm shares nothing, and yet is not the original; its λ may be held.

    Args:
        name: as in `RunConfig.arm`: "rate-control", "own-gradient-lambda-0.5".
    """
    return any(name == bare or name.startswith(f"{bare}-lambda-") for bare in SHARES_NOTHING)
