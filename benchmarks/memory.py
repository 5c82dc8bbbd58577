"""Peak memory of a process, from Linux's own account of it."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path

from gradshare.errors import RunError

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # see proc(5)


def peak_over_resident(iteration: Callable[[int], object], iterations: int) -> int:
    """How far `iteration(0)`, … raise the resident memory at their peak, in bytes, over what is
    resident before the first.

    Raises:
        RunError: this system does not let a process reset its peak.
    """
    try:
        CLEAR.write_text(RESET_PEAK, encoding="ascii")
    except OSError as error:
        raise RunError(
            f"peak memory cannot be measured here ({error}); use a Linux with {CLEAR}"
        ) from error
    give_back_freed()  # which would hide what is needed
    before = _bytes("VmRSS")
    for index in range(iterations):
        iteration(index)
    return _bytes("VmHWM") - before


def give_back_freed() -> None:
    """Give the memory that this process has freed back to the kernel."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def _bytes(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])
