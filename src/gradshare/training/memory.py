"""How much memory there is, and how much a process has taken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch


class PeakMemory:
    """What a stretch of work takes at its peak, over what there is when this is made.

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
    """What this process has in memory now (VmRSS), or had at most (VmHWM)."""
    for line in _lines(Path("/proc/self/status")):
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    return None


def available(device: torch.device, root: Path = Path("/")) -> int | None:
    """The bytes that a process can still take; None where the system does not say.

    Args:
        device: where it runs. Of a CPU the machine's free memory counts, and what the control
            groups of the process (a container's, a job's) leave it.
        root: where `proc` and `sys` are.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [*_free_memory(root), *_left_by_control_groups(root)]
    return min(found, default=None)


def _free_memory(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield 1024 * int(line.split()[1])


def _left_by_control_groups(root: Path) -> Iterator[int]:
    """What each control group above this process leaves of its limit, in versions 1 and 2."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, limit, usage, cache = (
                *("sys/fs/cgroup", "memory.max", "memory.current"),
                "inactive_file ",
            )
        elif "memory" in controllers.split(","):
            mount, limit, usage, cache = (
                *("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
                "total_inactive_file ",
            )
        else:
            continue
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            place = root / mount / folder
            limits, used = _lines(place / limit), _lines(place / usage)
            if limits and limits[0].isdecimal() and used:
                # Pages of files that were read are given back when memory runs short.
                freeable = [s for s in _lines(place / "memory.stat") if s.startswith(cache)]
                yield int(limits[0]) - int(used[0]) + sum(int(s.split()[1]) for s in freeable)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
