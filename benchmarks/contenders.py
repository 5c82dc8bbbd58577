"""Who is measured: gradshare in each of its modes, the peers, and the floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.ours import Method

PEER_NAMES = ("plain", "higher", "torchopt")

# A meta-step takes it two to three times as long as the others, evaluation as long.
SLOW_STEP = "higher"


@dataclass(frozen=True)
class Contender:
    """One of them.

    Attributes:
        kind: "ours", "floor", or a peer's name.
        method: what is measured of ours; None for the others.
    """

    kind: str
    method: Method | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Contender:
        """From its fields, as they come out of JSON."""
        method = fields["method"]
        return cls(fields["kind"], None if method is None else Method(**method))


FLOOR = Contender("floor")


def ours(**method: Any) -> Contender:
    """gradshare; the arguments are those of `Method`."""
    return Contender("ours", Method(**method))
