"""Seeding of the global random generators, so that a resumed run draws the same numbers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """Put torch's, numpy's and Python's global generators back afterwards."""
    python, array = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)  # noqa: NPY002


@contextmanager
def isolated(device: torch.device) -> Iterator[None]:
    """Compute alike whatever the caller has set (no_grad, inference_mode, autocast, a default
    device, less precise matrix products), and keep its generators.
    """
    autocast = torch.autocast(device.type, enabled=False)
    precision = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))  # which slows each call down
        for context in (torch.inference_mode(mode=False), torch.enable_grad(), autocast):
            stack.enter_context(context)
        stack.enter_context(generators_kept(device))
        stack.callback(torch.set_float32_matmul_precision, precision)
        torch.set_float32_matmul_precision("highest")
        yield


def seed_generators(number: int, device: torch.device | None = None) -> None:
    """Seed them all from a number of up to 64 bits, for a user's code that draws from them.

    Args:
        device: where the code draws; None for all devices. For "cpu" alone it takes a tenth of the
            time: `torch.manual_seed` formats a stack trace for each kind of GPU that is not in use.
    """
    if device is not None and device.type == "cpu":
        torch.default_generator.manual_seed(number)
    else:
        torch.manual_seed(number)
    np.random.seed([number % 2**32, number >> 32])  # noqa: NPY002
    random.seed(number)


def touches_generators(function: Callable[[], object]) -> bool:
    """Whether calling a function changes torch's, numpy's or Python's global generator."""

    def states() -> tuple[object, ...]:
        array = np.random.get_state()  # noqa: NPY002
        return torch.get_rng_state().numpy().tobytes(), str(array), random.getstate()

    before = states()
    function()
    return states() != before
