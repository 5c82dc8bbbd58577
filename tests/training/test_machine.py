"""What programs ask of the C library, each in a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from gradshare.training.machine import TUNABLES

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not Path("/proc/self/environ").exists(),
    reason="glibc on Linux",
)

NAME, VALUE = TUNABLES

# A process's environment as it was when it started, and as it hands it on.
START = f"""
import os, sys
from pathlib import Path
from gradshare.training.machine import join_freed_memory

join_freed_memory(start_again=sys.argv[1] == "again")
started = dict(v.split("=", 1) for v in Path("/proc/self/environ").read_text().split("\\0") if v)
print(started.get("{NAME}"), os.environ["{NAME}"], sys.argv[1:])
"""


def run(code: str, *arguments: str, tunables: str | None = None) -> str:
    """What a process prints that starts with glibc's tunables, or without."""
    variables = {name: value for name, value in os.environ.items() if name != NAME}
    if tunables is not None:
        variables[NAME] = tunables
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=variables
    ).stdout.strip()


def test_what_trains_starts_again_with_what_glibc_reads_at_the_start() -> None:
    assert run(START, "again", "--out", "a b") == f"{VALUE} {VALUE} ['again', '--out', 'a b']"


def test_what_only_starts_others_hands_it_on() -> None:
    assert run(START, "others") == f"None {VALUE} ['others']"


def test_the_users_own_tunables_stand() -> None:
    own = "glibc.malloc.check=0"
    assert run(START, "again", tunables=own) == f"{own} {own} ['again']"
