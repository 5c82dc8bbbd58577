"""How much memory a run needs, and how much there is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gradshare.errors import RunError
from gradshare.methods.network import is_out_of_memory

log = logging.getLogger(__name__)

# The estimate errs by up to a third.
SURELY = 0.7  # of the estimate is needed for certain
CLOSE = 0.8  # of the available memory is a reason to warn

LESS_MEMORY = (
    "lower the task batch, the inner steps, the queries or the size of the model or its inputs, or "
    "use memory='recompute' (--memory recompute) or the first order"
)


@contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Turn an out-of-memory error into a RunError with a remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        words = str(error) or type(error).__name__
        raise RunError(f"memory ran out ({words.splitlines()[0]}); {LESS_MEMORY}") from error


def require_memory(need: int, device: torch.device) -> None:
    """Raise if the processes of this machine surely need more memory than there is, and warn if
    they hardly fit. On a GPU, where the estimate is not calibrated, only warn.

    Args:
        need: bytes of all processes together.
        device: where they run.

    Raises:
        RunError: it does not fit.
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


class PeakMemory:
    """The peak memory of this process above its memory when this is made.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before: int | None = torch.cuda.memory_allocated(device)
        else:
            self._before = _resident("VmRSS:")

    def bytes(self) -> int | None:
        """So far; None where the system does not say."""
        if self._device.type == "cuda":
            peak: int | None = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = _resident("VmHWM:")
        return None if peak is None or self._before is None else peak - self._before


def _resident(key: str) -> int | None:
    """This process's memory now (VmRSS), or its peak (VmHWM)."""
    return _number_of_bytes(Path("/proc/self/status"), key)


def available(device: torch.device, root: Path = Path("/")) -> int | None:
    """The bytes that a process can still take; None where the system does not say.

    Args:
        device: where it runs. On a CPU, the machine's free memory and the limits of the process's
            control groups (a container's, a job's) count.
        root: where `proc` and `sys` are.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = _number_of_bytes(root / "proc/meminfo", "MemAvailable:")
    return min([*([] if free is None else [free]), *_left_by_control_groups(root)], default=None)


def _left_by_control_groups(root: Path) -> Iterator[int]:
    """What each control group above this process leaves of its limit, in versions 1 and 2."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names = ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file ")
        elif "memory" in controllers.split(","):
            names = (
                "sys/fs/cgroup/memory",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file ",
            )
        else:
            continue
        mount, limit, usage, cache = names
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            place = root / mount / folder
            limits, used = _lines(place / limit), _lines(place / usage)
            if limits and limits[0].isdecimal() and used:
                # Pages of files that were read are given back when memory runs short.
                freeable = [s for s in _lines(place / "memory.stat") if s.startswith(cache)]
                yield int(limits[0]) - int(used[0]) + sum(int(s.split()[1]) for s in freeable)


def _number_of_bytes(path: Path, key: str) -> int | None:
    """The number of kilobytes behind a key in a file of the kernel, in bytes."""
    found = (1024 * int(line.split()[1]) for line in _lines(path) if line.startswith(key))
    return next(found, None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
