"""Weights from a file to start from, and weights that stay as they are."""

from __future__ import annotations

import hashlib
import re
import reprlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor, nn

from gradshare.errors import ConfigError, reason

# Where programs put the state dictionary in what they save.
KEYS = ("state_dict", "model", "params", "network")
# The names of the MAML++ code, whose linear layer has `weights`.
REFERENCE = (
    (r"^classifier\.(?:module\.)?layer_dict\.conv(\d)\.(conv|norm)(?:_layer)?\.", r"blocks.\1.\2."),
    (r"^classifier\.(?:module\.)?layer_dict\.linear\.(weight|bias)s?$", r"linear.\1"),
)
# Numbers of numpy, such as accuracies beside the weights. Reading them executes nothing.
SCALAR = np.float64(0).__reduce__()[0]
NUMBERS: list[Any] = [(SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
NUMBERS += [np.dtype, *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64"))]
RATES = "inner_loop_optimizer.names_learning_rates_dict."
# What `nn.DataParallel` and a checkpoint of gradshare put before the names.
PREFIX = re.compile(r"^(module\.|meta/model\.)")


def load_weights(model: nn.Module, path: Path) -> dict[str, Tensor]:
    """Load the weights of a network of the same kind. Nothing in the file is executed.

    A checkpoint of the MAML++ code (AntreasAntoniou/HowToTrainYourMAMLPytorch) is one of `Conv4`.

    The last linear layer keeps its own weights if those of the file have another shape, as in a
    classifier of other classes.

    Args:
        model: is changed.
        path: a safetensors file, or a state dictionary that `torch.save` wrote, also under a key
            such as "state_dict".

    Returns:
        From a checkpoint of the MAML++ code, the γ and β (K, C) and the rates (K + 1,) of the K
        inner steps, by the names of the meta-parameters. The network gets the first step's γ and β.

    Raises:
        ConfigError: the file cannot be read, or lacks a weight of the network.
    """
    own = model.state_dict()
    found = {name if name in own else PREFIX.sub("", name): t for name, t in _read(path).items()}
    rows = _rows(found, own)
    found |= {n: rows[f"model.{n}"][0] for n in own if f"model.{n}" in rows}
    fitting = {
        n: t
        for n, t in found.items()
        if n in own
        and t.shape == own[n].shape
        and t.is_floating_point() == own[n].is_floating_point()
    }
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    head = tuple(f"{name}.{key}".lstrip(".") for name in linear[-1:] for key in ("weight", "bias"))
    body = [name for name, _ in model.named_parameters() if name not in head]
    missing = [name for name in body if name not in fitting]
    if missing or not fitting:
        name = missing[0] if missing else next(iter(own))
        t = found.get(name)
        has = "missing" if t is None else f"of shape {tuple(t.shape)} and type {t.dtype}"
        raise ConfigError(
            f"{path} does not fit {type(model).__name__}: {name!r} is {has}, and the network has "
            f"{tuple(own[name].shape)} ({len(missing)} of {len(body)} tensors do not fit); give "
            "weights of the same network, or choose the network of the weights"
        )
    for name, tensor in fitting.items():
        if not tensor.to(own[name].dtype).isfinite().all():
            raise ConfigError(
                f"{path}: {name!r} is not finite (NaN or infinite); give weights of a training "
                "that did not diverge"
            )
    model.load_state_dict(fitting, strict=False)
    return rows


def _rows(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `load_weights` returns."""
    rows = {}
    for name, tensor in found.items():
        norm = ".norm." in name and name in own and tensor.numel() > 0
        if norm and tensor.ndim > 0 and tensor.shape[1:] == own[name].shape:
            rows[f"model.{name}"] = tensor
        if name.startswith(RATES):
            layer = name.removeprefix(RATES).replace("-", ".")
            rows[f"lslr.rate.{_ours(f'classifier.{layer}')}"] = tensor
    return rows


def _ours(name: str) -> str:
    """A name, with those of the MAML++ code replaced by those of `Conv4`."""
    for theirs, ours in REFERENCE:
        name = re.sub(theirs, ours, name)
    return name


def read_weights(path: Path) -> Any:
    """What a safetensors file, or one that `torch.save` wrote, holds. Nothing in it is executed.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with path.open("rb") as file, torch.serialization.safe_globals(NUMBERS):
            if path.suffix.lower() == ".safetensors":
                return load(file.read())
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles raise nearly anything
        cause = reason(error).partition("\n")[0]
        raise ConfigError(
            f"{path} cannot be read as weights ({type(error).__name__}: {cause:.100}); give a "
            "safetensors file, or one that torch.save(model.state_dict(), …) wrote"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    loaded = read_weights(path)
    for key in KEYS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    named = loaded.items() if isinstance(loaded, Mapping) else ()
    return {_ours(str(name)): t.to_dense() for name, t in named if isinstance(t, Tensor)}


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze parts of a network: neither the inner nor the outer loop changes them.

    Batch norms of a frozen part use their running statistics, and its dropout is off.

    Args:
        model: is changed.
        patterns: names of parts or parameters, such as "features", in which `*`, `?` and `[1-3]`
            stand for other characters.

    Raises:
        ConfigError: a pattern fits no parameter.
    """
    parameters = dict(model.named_parameters())
    for pattern in patterns:
        found = [n for n in parameters if any(fnmatchcase(n, p) for p in (pattern, f"{pattern}.*"))]
        if not found:
            raise ConfigError(
                f"freeze {pattern!r} fits no parameter of {type(model).__name__}; its parameters "
                f"are {reprlib.repr(list(parameters))}"
            )
        for name in found:
            parameters[name].requires_grad_(False)
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(p.requires_grad for p in own):
            module.eval()


def digest(tensors: Mapping[str, Any], text: str = "") -> str:
    """The SHA-256 of a text and of tensors, with their names, types and shapes, in their order."""
    sha256 = hashlib.sha256(text.encode())
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor):
            sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            data = tensor.detach().cpu().contiguous().flatten()
            sha256.update(data.view(torch.uint8).numpy().tobytes())
    return sha256.hexdigest()
