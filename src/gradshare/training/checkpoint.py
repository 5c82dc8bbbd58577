"""Checkpoints: one safetensors file with the whole state, which runs no code when it is loaded.

Tensors are named `meta/NAME`, `carried/NAME` and `optimizer/N`. The header has the format version,
the rest of the state as JSON, and a SHA-256 of everything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from gradshare.errors import RunError, reason
from gradshare.inner_loop import Tensors
from gradshare.models.weights import digest
from gradshare.training.files import write_atomically

FORMAT_VERSION = 2


class DamagedError(RunError):
    """A file that is not a whole checkpoint of the run."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run.

    Attributes:
        meta: the meta-parameters.
        carried: the rules' carried tensors (ĝ).
        progress: JSON: the run's identity and, unless it is an epoch's model alone, its status.
        optimizer: the optimiser's state_dict; None in the model of an epoch.
    """

    meta: Tensors
    carried: Tensors
    progress: dict[str, Any]
    optimizer: dict[str, Any] | None = None

    def model(self, device: torch.device) -> tuple[Tensors, Tensors]:
        """The meta-parameters and carried tensors on a device."""
        return on_device(self.meta, device), on_device(self.carried, device)


def on_device(tensors: Tensors, device: torch.device) -> dict[str, Tensor]:
    """The same tensors on a device."""
    return {name: tensor.detach().to(device) for name, tensor in tensors.items()}


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all. Its tensors may be on any device."""
    tensors = {
        f"{part}/{name}": tensor
        for part in ("meta", "carried")
        for name, tensor in getattr(checkpoint, part).items()
    }
    optimizer = _pack(checkpoint.optimizer, tensors)
    # Copies, since a rule may carry one tensor under two names, which safetensors refuses.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    progress = json.dumps({"progress": checkpoint.progress, "optimizer": optimizer})
    metadata = {
        "format_version": str(FORMAT_VERSION),
        "gradshare": package_version("gradshare"),
        "progress": progress,
        "sha256": digest(dict(sorted(tensors.items())), progress),
    }
    write_atomically(path, save(tensors, metadata))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint. Its tensors are on the CPU.

    Raises:
        DamagedError: it is not a whole checkpoint.
        RunError: it cannot be opened, or is of another format version.
    """
    try:
        # Not by its path, which safetensors takes in UTF-8 alone.
        data = path.read_bytes()
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = header.get("__metadata__", {})
        _require_format(path, metadata)
        if digest(dict(sorted(tensors.items())), metadata["progress"]) != metadata["sha256"]:
            raise DamagedError(
                f"{path} is damaged: its checksum does not match; use another checkpoint"
            )
        stored = json.loads(metadata["progress"])
        parts: dict[str, dict[str, Tensor]] = {"meta": {}, "carried": {}}
        for full_name, tensor in tensors.items():
            part, _, name = full_name.partition("/")
            if part in parts:
                parts[part][name] = tensor
        optimizer = _unpack(stored["optimizer"], tensors)
        return Checkpoint(**parts, progress=dict(stored["progress"]), optimizer=optimizer)
    except OSError as error:
        raise RunError(f"{path} cannot be read as a checkpoint: {reason(error)}") from error
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read as a checkpoint: {error}") from error


def _require_format(path: Path, metadata: Mapping[str, str]) -> None:
    version = metadata.get("format_version")
    if version is None:
        raise RunError(f"{path} is not a checkpoint of gradshare; give the folder of a run")
    if version != str(FORMAT_VERSION):
        author = f"gradshare {metadata.get('gradshare', 'of a later version')}"
        raise RunError(
            f"{path} has checkpoint format {version:.20}, this gradshare reads {FORMAT_VERSION}; "
            f"use {author:.60}, which wrote it"
        )


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A state_dict as JSON. Its tensors are added to `tensors` and named by number."""
    if isinstance(value, Tensor):
        name = f"optimizer/{len(tensors)}"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"items": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_pack(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise RunError(
        f"the optimiser's state holds a {type(value).__name__}, which a checkpoint can't store; "
        "use an optimiser whose state is tensors and numbers"
    )


def _unpack(packed: Any, tensors: Tensors) -> Any:
    match packed:
        case {"tensor": name}:
            return tensors[name]
        case {"items": items}:
            return {key: _unpack(item, tensors) for key, item in items}
        case {"list": items}:
            return [_unpack(item, tensors) for item in items]
        case {"value": value}:
            return value
        case _:
            raise ValueError(f"{packed!r:.50} is not part of a state_dict")
