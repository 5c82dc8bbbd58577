"""The memory that a run needs, and the memory that there is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gradshare.errors import RunError, is_out_of_memory

log = logging.getLogger(__name__)

# The estimate errs by up to a third.
SURELY = 0.7  # of the estimate is needed for certain
CLOSE = 0.8  # of the available memory is a reason to warn

LESS_MEMORY = (
    "lower the task batch, the inner steps, the queries or the size of the model or its inputs, or "
    "use memory='recompute' (--memory recompute) or the first order"
)

# Of a control group in versions 1 and 2: where it is, its limit, its usage, and the pages of files
# in it that are given back when memory runs short.
GROUPS_1 = (
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file ",
)
GROUPS_2 = ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file ")


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Turn an out-of-memory error into a RunError with a remedy."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        words = str(error) or type(error).__name__
        raise RunError(f"memory ran out ({words.splitlines()[0]}); {LESS_MEMORY}") from error


def require_memory(need: int, device: torch.device) -> None:
    """Raise RunError if this machine surely has less than `need` bytes, and warn if it may.

    On a GPU, where the estimate is not calibrated, only warn.
    """
    there = available(device)
    if there is None:
        return
    words = (
        f"the run needs about {amount(need)} of memory, {amount(there)} are available; "
        f"{LESS_MEMORY}"
    )
    if SURELY * need > there and device.type == "cpu":
        raise RunError(words)
    if need > CLOSE * there:
        log.warning("%s", words)


def amount(size: float) -> str:
    """A number of bytes in words."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def available(device: torch.device, root: Path = Path("/")) -> int | None:
    """The bytes that a process can still take; None where the system does not say.

    Args:
        device: where it runs. On a CPU, the machine's free memory and the limits of the process's
            control groups (a container's, a job's) count.
        root: where `proc` and `sys` are.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [
        1024 * int(line.split()[1])
        for line in _lines(root / "proc/meminfo")
        if line.startswith("MemAvailable:")
    ]
    return min([*free, *_left_by_control_groups(root)], default=None)


def _left_by_control_groups(root: Path) -> Iterator[int]:
    """The rest of the limit of each control group above this process."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, limit, usage, cache = GROUPS_1 if controllers else GROUPS_2
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            place = root / mount / folder
            limits, used = _lines(place / limit), _lines(place / usage)
            if limits and limits[0].isdecimal() and used:
                freeable = [s for s in _lines(place / "memory.stat") if s.startswith(cache)]
                yield int(limits[0]) - int(used[0]) + sum(int(s.split()[1]) for s in freeable)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
