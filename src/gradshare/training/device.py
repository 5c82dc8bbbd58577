"""The device that a run computes on."""

from __future__ import annotations

import re

import torch

from gradshare.errors import ConfigError
from gradshare.training.distributed import OneProcess


def choose_device(name: str) -> torch.device:
    """The device with a name, which this machine must have; "auto" is CUDA if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,4})?", name):
        raise ConfigError(f"device {name!r:.40} is unknown; use auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used here ({reason}); use another") from error
    return device


def device_of_process(name: str, processes: OneProcess) -> torch.device:
    """The device of one process of a run: each process of a machine takes its own GPU."""
    device = processes.agree(lambda: _own_device(choose_device(name), processes))
    processes.require_alike({"the kind of device": device.type})
    return device


def keep_float32(device: torch.device) -> None:
    """Turn TF32 off for the whole process.

    On newer GPUs PyTorch lets cuDNN round float32 to TF32 in convolutions, with 10 bits after the
    point.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def _own_device(device: torch.device, processes: OneProcess) -> torch.device:
    if device.type == "cpu" or processes.local_size == 1:
        return device
    count = torch.cuda.device_count()
    if device.index is not None or processes.local_size > count:
        raise ConfigError(
            f"{processes.local_size} processes on this machine need a GPU each, and device "
            f"{device} has {count if device.index is None else 1}; start fewer processes, or use "
            "device='cpu' (--device cpu)"
        )
    return torch.device("cuda", processes.local_rank)
