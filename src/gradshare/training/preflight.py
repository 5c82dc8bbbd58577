"""What is checked before a run's first step, besides what opening its data and its folder shows.

A run that cannot end well should not begin: a full disk or a process killed for its memory would
otherwise show after hours. What memory does run out all the same is said here as well, with the
same remedies.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gradshare.config import RunConfig
from gradshare.errors import RunError
from gradshare.inner_loop import Tensors
from gradshare.training.folder import KEPT_LATEST
from gradshare.training.memory import available, estimate, tensor_bytes
from gradshare.training.setup import Setup

log = logging.getLogger(__name__)

# The estimate of memory errs by up to a fifth where it was calibrated.
SURELY = 0.7  # of the estimate is needed for certain
CLOSE = 0.8  # of the available memory is a reason to warn

# Of an epoch, as a line of JSON: in metrics.jsonl, in TensorBoard's file, and in every checkpoint
# that a run can be continued from.
RECORD_BYTES = 2000


@contextmanager
def memory_errors(remedy: str) -> Iterator[None]:
    """Say what to do when memory runs out.

    Args:
        remedy: that; see `less_memory` for a run that trains.

    Raises:
        RunError: it did.
    """
    try:
        yield
    except RuntimeError as error:
        words = str(error)
        if isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in words:
            raise RunError(f"memory ran out ({words.splitlines()[0]}); {remedy}") from error
        raise


def less_memory(config: RunConfig, *, recomputes: bool) -> str:
    """How a run can be made to take less memory.

    Args:
        config: of the run.
        recomputes: whether it keeps no graphs as it is.
    """
    lean = (("--memory recompute", recomputes), ("--order first", config.order == "first"))
    left = " or ".join(option for option, taken in lean if not taken)
    return (
        f"lower --task-batch {config.task_batch}, --queries {config.queries}, --filters "
        f"{config.filters}, --inner-steps {config.inner_steps} or --image-size"
        f"{f', or use {left}' if left else ''}"
    )


def require_memory(config: RunConfig, setup: Setup, *, at_a_time: int = 1) -> None:
    """Refuse a run that surely does not fit into memory, and warn of one that hardly does.

    On a GPU, where the estimate is not calibrated, it only warns. Of a run that is shared out, the
    shares on this machine count.

    Args:
        config: of the run.
        setup: its parts.
        at_a_time: how many such runs go side by side.

    Raises:
        RunError: it does not fit.
    """
    there = available(setup.device)
    if there is None:
        return
    size = max(setup.processes.size, config.workers)
    here = at_a_time * max(setup.processes.local_size, config.workers)
    tasks = math.ceil(config.task_batch / size)
    share = config.model_copy(update={"task_batch": tasks, "workers": 1})
    need = here * estimate(share, setup.learner, setup.image_shape)
    runs = "the run needs" if at_a_time == 1 else f"{at_a_time} runs at a time need"
    words = (
        f"{runs} about {amount(need)} of memory, {amount(there)} are available; "
        + less_memory(config, recomputes=setup.layout.recompute)
        + (", or lower --jobs" if at_a_time > 1 else "")
    )
    if SURELY * need > there and setup.device.type == "cpu":
        raise RunError(words)
    if need > CLOSE * there:
        log.warning("%s", words)


def require_disk(config: RunConfig, learned: Tensors, state: Tensors, folder: Path) -> None:
    """Refuse a run whose checkpoints and records will not fit on the disk.

    Args:
        config: of the run.
        learned: its outer parameters.
        state: its rules' state.
        folder: its own; what it already holds there is counted.

    Raises:
        RunError: they will not.
    """
    model, moment = _saved(learned, state)
    need = disk_bytes(config, learned, state)
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if need - held > free:
        raise RunError(
            f"the run needs {amount(need - held)} of disk space in {folder}, for its last "
            f"{KEPT_LATEST} moments of {amount(moment)} each, its best {config.ensemble} models of "
            f"{amount(model)} each, the one being written and the records of {config.epochs} "
            f"epochs; {amount(free)} are free: free some, choose another --out, or lower "
            f"--ensemble {config.ensemble} or --filters {config.filters}"
        )


def disk_bytes(config: RunConfig, learned: Tensors, state: Tensors) -> int:
    """What a run's checkpoints and records take at most; arguments as of `require_disk`."""
    model, moment = _saved(learned, state)
    latest, best = KEPT_LATEST + 1, config.ensemble + 1  # each has one more while it is written
    return latest * moment + best * model + RECORD_BYTES * config.epochs * (2 + latest)


def _saved(learned: Tensors, state: Tensors) -> tuple[int, int]:
    """The bytes of a model, and of a moment to continue from: that and Adam's two moments."""
    model = tensor_bytes(learned) + tensor_bytes(state)
    return model, model + 2 * tensor_bytes(learned)


def amount(size: float) -> str:
    """A number of bytes in words."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
