"""What is checked before a run's first step, so that a run that cannot end well does not begin."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gradshare.errors import RunError
from gradshare.training.memory import available

log = logging.getLogger(__name__)

# The estimate of memory errs by up to a third.
SURELY = 0.7  # of the estimate is needed for certain
CLOSE = 0.8  # of the available memory is a reason to warn

LESS_MEMORY = (
    "lower the task batch, the inner steps, the queries or the size of the model or its inputs, or "
    "use memory='recompute' (--memory recompute) or the first order"
)


@contextmanager
def memory_errors(remedy: str = LESS_MEMORY) -> Iterator[None]:
    """Say what to do when memory runs out.

    Raises:
        RunError: it did.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        words = str(error) or type(error).__name__
        signs = ("can't allocate memory", "could not create a primitive", "not enough memory")
        out = isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)
        if out or any(sign in words for sign in signs):
            raise RunError(f"memory ran out ({words.splitlines()[0]}); {remedy}") from error
        raise


def require_memory(need: int, device: torch.device) -> None:
    """Raise if what the processes of this machine need surely does not fit into its memory, and
    warn if it hardly does. On a GPU, where the estimate is not calibrated, only warn.

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


def require_disk(need: int, folder: Path) -> None:
    """Raise if a run's checkpoints and records will not fit on the disk.

    Args:
        need: bytes of the whole run.
        folder: its own; what it already holds there is counted.

    Raises:
        RunError: they will not.
    """
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if need - held > free:
        raise RunError(
            f"the run needs {amount(need - held)} of disk space in {folder} for its checkpoints "
            f"and records; {amount(free)} are free: free some, choose another output folder, keep "
            "fewer models (ensemble) or take a smaller model"
        )


def amount(size: float) -> str:
    """A number of bytes in words."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
