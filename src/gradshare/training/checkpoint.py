"""Checkpoints: one safetensors file that holds everything there is, and executes nothing.

Tensors are named `learned/NAME`, `state/NAME` and `optimizer/NAME/KEY`. The header carries the
format version, the progress of the run as JSON, and a SHA-256 of all the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gradshare.errors import RunError
from gradshare.inner_loop import Tensors
from gradshare.training.files import write_atomically

FORMAT_VERSION = 1


class DamagedError(RunError):
    """A file that is no whole checkpoint of the run."""


@dataclass(frozen=True)
class Checkpoint:
    """A moment of a run.

    Attributes:
        learned: the outer parameters.
        state: the rules' state (ĝ).
        optimizer: Adam's tensors as `NAME/KEY`; empty where a run cannot be continued from here.
        progress: what else the run needs to continue; JSON.
    """

    learned: dict[str, Tensor]
    state: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    progress: dict[str, Any]

    def to(self, device: torch.device) -> Checkpoint:
        """The same moment on a device."""
        return Checkpoint(
            on_device(self.learned, device),
            on_device(self.state, device),
            # Adam counts its steps on the CPU, wherever its other tensors are: it reads the number
            # at every step, and would wait for a GPU each time.
            {
                name: tensor if name.endswith("/step") else tensor.to(device)
                for name, tensor in self.optimizer.items()
            },
            self.progress,
        )


def on_device(tensors: Tensors, device: torch.device) -> dict[str, Tensor]:
    """The same tensors on a device."""
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        RunError: it cannot be written.
    """
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous()
        for part in ("learned", "state", "optimizer")
        for name, tensor in getattr(checkpoint, part).items()
    }
    progress = json.dumps(checkpoint.progress)
    metadata = {
        "format_version": str(FORMAT_VERSION),
        "gradshare": package_version("gradshare"),
        "progress": progress,
        "sha256": _digest(tensors, progress),
    }
    write_atomically(path, save(tensors, metadata))


def load_checkpoint(path: Path, device: torch.device) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        DamagedError: it is no whole checkpoint.
        RunError: it cannot be opened, or is of another format version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            version = metadata.get("format_version")
            if version is None:
                raise RunError(f"{path} is no checkpoint of gradshare; give the folder of a run")
            if version != str(FORMAT_VERSION):
                author = f"gradshare {metadata.get('gradshare', 'of a later version')}"
                raise RunError(
                    f"{path} has checkpoint format {version:.20}, this gradshare reads "
                    f"{FORMAT_VERSION}; use {author:.60}, which wrote it"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if _digest(tensors, metadata["progress"]) != metadata["sha256"]:
            raise DamagedError(
                f"{path} is damaged: its checksum does not match; use another checkpoint"
            )
        progress = dict(json.loads(metadata["progress"]))
        parts: dict[str, dict[str, Tensor]] = {"learned": {}, "state": {}, "optimizer": {}}
        for full_name, tensor in tensors.items():
            part, _, name = full_name.partition("/")
            parts[part][name] = tensor
    except OSError as error:
        raise RunError(f"{path} cannot be read as a checkpoint: {error}") from error
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read as a checkpoint: {error}") from error
    return Checkpoint(**parts, progress=progress).to(device)


def require_fit(path: Path, checkpoint: Checkpoint, learned: Tensors, state: Tensors) -> None:
    """Refuse a checkpoint of another run.

    Args:
        path: where the checkpoint is from, for the error.
        checkpoint: as it was read.
        learned: outer parameters like those it should hold.
        state: likewise.

    Raises:
        DamagedError: a tensor is missing, or too many, or of another shape or type.
    """
    optimizer = {
        f"{name}/{key}": like
        for name, tensor in learned.items()
        for key, like in (("step", torch.zeros(())), ("exp_avg", tensor), ("exp_avg_sq", tensor))
        if f"{name}/{key}" in checkpoint.optimizer  # none before the first step
    }
    for held, like in (
        (checkpoint.learned, learned),
        (checkpoint.state, state),
        (checkpoint.optimizer, optimizer),
    ):
        for name in sorted(held.keys() ^ like.keys()):
            whose = "this run has none" if name in held else "it has none"
            raise DamagedError(f"{path} is of another run: {name}: {whose}; use the run's own")
        for name, tensor in held.items():
            has, wants = (f"{t.dtype} {tuple(t.shape)}" for t in (tensor, like[name]))
            if has != wants:
                raise DamagedError(
                    f"{path} is of another run: {name} is {has}, this run has {wants}; use the "
                    "run's own"
                )


def optimizer_tensors(optimizer: torch.optim.Optimizer, learned: Tensors) -> dict[str, Tensor]:
    """An optimiser's state by the name of the outer parameter."""
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, tensor in learned.items()
        for key, value in optimizer.state[tensor].items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, learned: Tensors, tensors: Mapping[str, Tensor]
) -> None:
    """Give an optimiser the state that `optimizer_tensors` took from another."""
    for name, tensor in learned.items():
        prefix = f"{name}/"
        optimizer.state[tensor] = {
            key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix) and "/" not in key.removeprefix(prefix)
        }


def _digest(tensors: Tensors, progress: str) -> str:
    digest = hashlib.sha256(progress.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
