"""What a training process asks of the machine, and what it says about it."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

TUNABLES = ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")
"""An environment variable that has glibc join freed memory to larger pieces, and its value. It is
read when a process starts, and never again.

glibc keeps small pieces that are freed in a cache where they count as in use, also those that it
cuts off each tensor to align it (32 to 96 bytes). They lie between the large ones, which then are
not joined, and so what an inner step frees is no room for the next one.
"""


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory instead of giving it back to the kernel.

    By default it returns every large tensor, and the next one costs page faults again: over half
    of the time of a meta-step at 84×84. This changes the whole process, so programs call it when
    they start and the library never does by itself. What is kept should be joined, too: see
    `join_freed_memory`.

    Returns:
        Whether the C library took it: False on another one than glibc.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def join_freed_memory(*, start_again: bool) -> None:
    """Give `TUNABLES` to the processes that this one starts, and to this one itself by starting it
    again, if so asked. Where the environment already has glibc's tunables, they stand.

    Args:
        start_again: run the same command line once more, in this process.
    """
    name, value = TUNABLES
    if name in os.environ or platform.libc_ver()[0] != "glibc":
        return
    os.environ[name] = value
    if start_again:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(device: torch.device, layout: str) -> dict[str, Any]:
    """What figures depend on besides the configuration: versions, hardware, and the layout of the
    work on it, as `gradshare.training.layout.Layout.describe` says it.
    """
    import torch  # noqa: PLC0415  # the program asks for this module before torch

    described: dict[str, Any] = {
        "gradshare": version("gradshare"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "device": str(device),
        "layout": layout,
    }
    if (checked_out := commit()) is not None:
        described["commit"] = checked_out
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


@functools.cache
def commit() -> str | None:
    """The commit that the package runs from, with a "+" if a file of the package differs from it;
    None where it is not run from a git checkout.

    Found when it is first asked for: a run asks as it starts, since by its end the checkout may
    have moved on.
    """
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=package,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )

    try:
        # Installed below somebody else's checkout it is no file of theirs.
        if git("ls-files", "--error-unmatch", __file__).returncode != 0:
            return None
        head = git("rev-parse", "HEAD").stdout.strip()
        same = git("diff", "--quiet", "HEAD", "--", ".").returncode == 0
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("" if same else "+") if head else None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
