"""Reading pickles of arrays without executing what is in them."""

from __future__ import annotations

import mmap
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from gradshare.errors import DataError
from gradshare.tasks.readers.files import refuse_web_page

_NUMBERS = frozenset(("b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"))


def load_pickle(path: Path) -> Any:
    """Read a pickle of containers, text, bytes, numbers and numpy arrays.

    Pickles of Python 2 and 3 can be read, and arrays of numpy 1 and 2. Arrays are read-only.
    Reading takes about three times the file's size in memory.

    Raises:
        DataError: the file is missing, damaged or not a pickle, or refers to any other function or
            class. The error names it; it was not called.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; check the path")
    refuse_web_page(path, "a pickle")
    try:
        return _load(path)
    except _ForbiddenError as error:
        raise DataError(
            f"{path} refers to the Python object {str(error)!r}, which has no place in a pickle of "
            "images and could execute anything; it was not called; do not load this file with "
            "Python's pickle, and get it from its publisher"
        ) from error
    except MemoryError as error:
        raise DataError(
            f"{path} is damaged, or needs more memory than there is; download it again, or use a "
            "machine with three times the file's size in memory"
        ) from error
    except Exception as error:  # damaged pickles raise nearly anything
        raise DataError(
            f"{path} is not a complete pickle of arrays ({error}); download it again"
        ) from error


class _ForbiddenError(Exception):
    """A function or class that arrays and containers do not need."""


# numpy's own dtype takes its whole state from the pickle and believes it: with the state of another
# type, numbers become addresses. The two classes below take an array's state only.
class _DType:
    """A type of numbers: its code, and later its byte order."""

    def __init__(self, code: str, _align: object, _copy: object) -> None:
        if code not in _NUMBERS:
            raise ValueError(f"an array of type {code!r}; arrays of numbers are read")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray[Any, Any]):
    """An array whose state is checked before numpy gets it."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, kind, is_fortran, data = state
        if not isinstance(kind, _DType) or not isinstance(data, bytes | str):
            raise TypeError("an array without a type or bytes")
        super().__setstate__((version, shape, kind.dtype, is_fortran, data))  # type: ignore[arg-type]
        self.flags.writeable = False


def _start_array(_class: object, _shape: object, _code: object) -> _Array:
    return np.empty(0, np.uint8).view(_Array)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("text in another encoding than latin-1")
    return text.encode("latin-1")


def _from_buffer(
    data: bytes | bytearray, kind: _DType, shape: tuple[int, ...], order: Any
) -> npt.NDArray[Any]:
    array = np.frombuffer(data, kind.dtype).reshape(shape, order=order)
    array.flags.writeable = False
    return array


def _scalar(kind: _DType, data: bytes | str) -> Any:
    return np.frombuffer(_encode(data) if isinstance(data, str) else data, kind.dtype)[0]


_ALLOWED: dict[str, Callable[..., Any] | None] = {
    "numpy.ndarray": None,  # named as an array's class, never called
    "numpy.dtype": _DType,
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,  # how Python 3 writes bytes in protocol 2
    "__builtin__.bytes": lambda: b"",  # how it writes b"" in protocol 2
    "builtins.bytes": lambda: b"",
}
for _core in ("numpy.core", "numpy._core"):  # until numpy 1, since numpy 2
    _ALLOWED[f"{_core}.multiarray._reconstruct"] = _start_array
    _ALLOWED[f"{_core}.multiarray.scalar"] = _scalar
    _ALLOWED[f"{_core}.numeric._frombuffer"] = _from_buffer


def _checked_build(unpickler: Any) -> None:
    """Set the state of an array or its type; that of a function would outlive the pickle."""
    if not isinstance(unpickler.stack[-2], _DType | _Array):
        raise TypeError("a state for what has none")
    pickle._Unpickler.dispatch[pickle.BUILD[0]](unpickler)


# Python's unpickler in C keeps what it has read in an array, for which a damaged index takes
# gigabytes. This one, in Python, keeps a dictionary.
class _ArrayUnpickler(pickle._Unpickler):
    """An unpickler that knows the names in `_ALLOWED` and imports nothing."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: _checked_build,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[f"{module}.{name}"]
        except KeyError:
            raise _ForbiddenError(f"{module}.{name}") from None


def _load(path: Path) -> Any:
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd escapes in damaged text
        # A file would make room for as many bytes as a damaged length asks for; a map does not.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[-1:] != pickle.STOP:
                raise EOFError("it ends too early")
            return _ArrayUnpickler(content, encoding="latin1").load()
