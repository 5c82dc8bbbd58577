"""Settings and facts of the machine."""

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
"""An environment variable, read when a process starts, that makes glibc join freed memory to larger
pieces, and its value.

glibc keeps small freed pieces in a cache where they count as in use, among them those that it cuts
off each tensor to align it (32 to 96 bytes). They lie between the large ones, which then are not
joined, and so the memory that an inner step frees does not suffice for the next one.
"""


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory instead of giving it back to the kernel.

    By default glibc gives the memory of every large tensor back, and the next tensor costs page
    faults again: over half of the time of a meta-step at 84×84. This setting is the whole
    process's, so programs make it when they start; importing the library does not. See also
    `join_freed_memory`.

    Returns:
        Whether the C library did so: False if it is not glibc.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def join_freed_memory(*, start_again: bool) -> None:
    """Set `TUNABLES` in the environment for child processes, or for this one too, which then starts
    again with the same command line. An existing GLIBC_TUNABLES is kept.
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
    """Versions, hardware and layout, as `Layout.describe` returns it: what numbers depend on
    besides the configuration.
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
    """The git commit that the package runs from, with a "+" if a file of the package differs from
    it; None outside a git checkout.

    A run asks for it as it starts, since by its end the checkout may have moved on.
    """
    package = Path(__file__).parents[1]

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["git", "--no-optional-locks", *arguments]
        return subprocess.run(
            command, cwd=package, capture_output=True, text=True, timeout=10, check=False
        )

    try:
        # The package may be installed inside another project's checkout, which does not track it.
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
