"""What the tests call in other processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def variables(*names: str) -> list[str | None]:
    return [os.environ.get(name) for name in names]


def threads() -> int:
    import torch  # noqa: PLC0415

    return torch.get_num_threads()


def fail() -> None:
    raise ValueError("unforeseen")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def meet(folder: Path, own: str, other: str) -> bool:
    """Leave a file, and wait a moment for the other's."""
    (folder / own).touch()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if (folder / other).exists():
            return True
        time.sleep(0.05)
    return False


def sleep_unless_asked_to_end(file: Path) -> None:
    """Write this process's number to a file, and what it is asked to end with behind it."""

    def note(number: int, _: object) -> None:
        file.write_text(f"{os.getpid()} {number}")
        raise SystemExit

    signal.signal(signal.SIGTERM, note)
    file.write_text(str(os.getpid()))
    time.sleep(60)


def ray_resources() -> dict[str, float]:
    import ray  # noqa: PLC0415

    context: Any = ray.get_runtime_context()
    return dict(context.get_assigned_resources())


def ending_after(seconds: float) -> tuple[str, None]:
    time.sleep(seconds)
    return "done", None
