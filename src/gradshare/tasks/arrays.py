"""Arrays of examples: checking them, reading rows of them, and finding them in files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gradshare.errors import DataError, reason
from gradshare.tasks.batch import Tree, leaves, tree_map
from gradshare.tasks.store import MappedFile, memory_map

Array = npt.NDArray[Any]

_DIGEST_BYTES = 2**24  # read at a time


class NpyFiles:
    """The rows of `.npy` files, one file after the other, read from disk when they are used. A
    pickle of it holds the paths, not the data.

    Raises:
        DataError: a file cannot be read, or the rows of two differ in shape or type.
    """

    def __init__(self, *paths: Path) -> None:
        self.paths = tuple(path.absolute() for path in paths)
        self.parts = [_map_file(path) for path in paths]
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.dtype = self.parts[0].dtype
        self.shape: tuple[int, ...] = (int(self.ends[-1]), *self.parts[0].shape[1:])
        for path, part in zip(paths, self.parts, strict=True):
            if part.dtype != self.dtype or part.shape[1:] != self.shape[1:]:
                raise DataError(
                    f"{path} has examples of {part.dtype} {part.shape[1:]}, {paths[0]} of "
                    f"{self.dtype} {self.shape[1:]}; bring them to one shape and type"
                )

    def __len__(self) -> int:
        return self.shape[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return NpyFiles, self.paths

    def take(self, rows: Array, axis: int) -> Array:
        """The rows of the given numbers, as `numpy.take` along the first axis."""
        taken = np.empty((*rows.shape, *self.shape[1:]), dtype=self.dtype)
        files = np.searchsorted(self.ends, rows, side="right")
        for file in np.unique(files):
            part, inside = self.parts[file], files == file
            start = self.ends[file] - len(part)
            taken[inside] = part.take(rows[inside] - start, axis=axis)
        return taken


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs (n, …) with their targets (n, …) and groups (n,): the data that copies of a source
    share. Raise DataError if they do not have the same length.
    """

    x: Tree
    y: Array
    groups: Array | None

    def __post_init__(self) -> None:
        first = {len(array): path for path, array in reversed(self._arrays().items())}
        if len(first) > 1:
            found = ", ".join(f"{path} {length}" for length, path in first.items())
            raise DataError(
                f"the arrays have unequal lengths: {found}; give each one entry for each example "
                "(each item of a tuple is one input of the model, for all examples)"
            )

    @cached_property
    def digest(self) -> str:
        """A digest of all values."""
        return digest(self._arrays())

    def _arrays(self) -> dict[str, Any]:
        groups = {} if self.groups is None else {"groups": self.groups}
        return {**dict(leaves(self.x, "x")), "y": self.y, **groups}


def inputs(x: Any, name: str = "x") -> Tree:
    """Arrays, tensors or lists as arrays. Raise DataError if one does not hold numbers."""
    if isinstance(x, Mapping):
        return {key: inputs(value, f"{name}[{key!r}]") for key, value in x.items()}
    if isinstance(x, tuple):
        return tuple(inputs(value, f"{name}[{key}]") for key, value in enumerate(x))
    array = x if isinstance(x, NpyFiles) else as_array(x)
    if array.dtype.kind not in "biuf":
        raise DataError(
            f"{name} holds {array.dtype}, not numbers; give an array of numbers in which all "
            "examples have one shape: pad sequences, encode texts as token ids"
        )
    return array


def labels(y: Any, name: str = "y") -> Array:
    """Labels (n,) as an array that numpy can sort: of integers, strings or booleans.

    Raises:
        DataError: a label is missing or not a whole number, or there is not one for each example.
    """
    # As text, a missing label in a list of strings would be a class "nan".
    array = as_array(y, dtype=None if hasattr(y, "dtype") else object)
    if array.ndim != 1:
        raise DataError(
            f"{name} has the shape {array.shape}; give one label for each example, of the shape "
            "(n,): argmax(-1) makes it of one-hot labels"
        )
    if array.dtype.kind in "Of":
        # NaN is not equal to itself, and pandas' NA neither is nor is not.
        missing = [
            row
            for row, label in enumerate(array)
            if label is None or str(label == label) != "True"  # noqa: PLR0124
        ]
        if missing:
            raise DataError(
                f"{name}[{missing[0]}] is {array[missing[0]]}: {len(missing)} of {len(array)} "
                "entries are missing; leave those examples out"
            )
    if array.dtype == object:
        kinds = {isinstance(label, str): label for label in array.tolist()}
        if len(kinds) > 1:  # as an array, numbers beside texts would be texts
            raise DataError(
                f"{name} holds {kinds[True]!r} and {kinds[False]!r}; give labels of one type"
            )
        array = np.array(array.tolist())
    if array.dtype.kind == "f":
        fractions = array[array % 1 != 0]
        if len(fractions):
            raise DataError(
                f"{name} holds {fractions[0]}, which is not a class label; for real-valued "
                "targets use GroupTasks or a source of your own"
            )
        array = array.astype(np.int64)
    return array


def as_array(values: Any, dtype: Any = None) -> Array:
    """An array of the values of an array, a tensor or a list."""
    if isinstance(values, np.memmap):
        return values.view(MappedFile)
    if isinstance(values, Tensor):
        values = values.detach().cpu()
    if isinstance(values, Dataset):  # numpy may read it without an end
        code = "x, y = next(iter(DataLoader(dataset, batch_size=len(dataset))))"
        raise DataError(f"a torch Dataset is not an array; read its arrays: `{code}`")
    if np.ma.is_masked(values):  # numpy would give what lies under the mask
        raise DataError(
            "an array has masked entries; leave those examples out, or fill them: x.filled(0)"
        )
    return np.asarray(values, dtype=dtype)


def take(x: Tree, rows: Array) -> Tree:
    """The examples of some rows, as tensors of the shape (*rows.shape, …).

    Floats and uint8 become float32, booleans stay, other integers become int64.
    """

    def tensor(array: Any) -> Tensor:
        is_float = array.dtype.kind == "f" or array.dtype == np.uint8
        dtype = np.float32 if is_float else np.bool_ if array.dtype.kind == "b" else np.int64
        return torch.from_numpy(np.asarray(array.take(rows, axis=0)).astype(dtype, copy=False))

    return tree_map(tensor, x)


def digest(tree: Tree) -> str:
    """The SHA-256 of the values, types and shapes of the arrays of a tree."""
    sha256 = hashlib.sha256()
    for path, array in leaves(tree):
        sha256.update(f"{path} {array.dtype.str} {array.shape}".encode())
        row_bytes = array.dtype.itemsize * int(np.prod(array.shape[1:]))
        step = max(1, _DIGEST_BYTES // max(1, row_bytes))
        for start in range(0, len(array), step):
            rows = np.arange(start, min(start + step, len(array)))
            sha256.update(array.take(rows, axis=0).tobytes())
    return sha256.hexdigest()


def fingerprint(*parts: object) -> str:
    """The SHA-256 of the `repr` of some values."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def load(path: str | Path) -> tuple[Any, Array, Array | None]:
    """Read x, y and groups from a file or a folder; see `ClassTasks.load`.

    Raises:
        DataError: they are not there, or cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        files = {file.stem: file for file in sorted(path.glob("*.npy"))}
        if "x" in files and "y" in files:
            groups = _map_file(files["groups"]) if "groups" in files else None
            return NpyFiles(files["x"]), _map_file(files["y"]), groups
        if files:
            x = NpyFiles(*files.values())
            return x, np.repeat(list(files), [len(part) for part in x.parts]), None
    elif path.suffix.lower() == ".npz" and path.is_file():
        try:
            with path.open("rb") as file:
                arrays = dict(np.load(file))
        except (OSError, ValueError, TypeError, EOFError, BadZipFile) as error:
            raise DataError(f"{path} cannot be read: {reason(error)}") from error
        if "x" in arrays and "y" in arrays:
            return arrays["x"], arrays["y"], arrays.get("groups")
    raise DataError(
        f"there are no examples in {path}; give an .npz file with the arrays x, y and perhaps "
        "groups, a folder with x.npy, y.npy and perhaps groups.npy, or a folder with one NAME.npy "
        "for each class"
    )


def _map_file(path: Path) -> Array:
    try:
        return memory_map(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from error
