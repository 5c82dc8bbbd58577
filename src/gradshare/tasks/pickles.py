"""Reading a pickle of numbers and text without trusting it.

mini-ImageNet circulates as pickles, and unpickling executes whatever its author wrote.
`load_pickle` does not unpickle: it is an interpreter of its own for the few opcodes that containers
and numpy arrays need, and it can neither import a module nor call a function. The names of
functions that such pickles contain (`numpy.dtype`, `_codecs.encode`, …) are read as what they mean.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from gradshare.errors import DataError
from gradshare.tasks.web_page import is_web_page, web_page_error

# The types of number that an array may hold, by the code that numpy pickles.
_NUMBERS = frozenset(("b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"))


def load_pickle(path: Path) -> Any:
    """Read a pickle of dictionaries, lists, tuples, text, bytes, numbers and numpy arrays.

    Both what Python 2 wrote (protocols 1 and 2, byte strings read as latin-1) and what Python 3
    writes (protocols 1 to 5, numpy before and since 2.0) can be read. Arrays are read-only views
    of the pickle's bytes. At its peak, reading takes about twice the file's size in memory.

    Raises:
        DataError: no such file, or one that is a web page, truncated, damaged or not a pickle; or
            the pickle refers to a function or class other than those of numpy arrays (the error
            names it); nothing of it was executed.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; check the path")
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            # Python's decoder warns of odd escapes in damaged text; what is read decides.
            warnings.simplefilter("ignore")
            if is_web_page(file.read(512)):
                raise web_page_error(path, "a pickle")
            # Reading from a file makes room for as many bytes as are asked for, there or not.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
                return _Machine(path).run(pickletools.genops(cast(IO[bytes], whole)))
    except (_RefusedError, ValueError, LookupError, TypeError, OverflowError, EOFError) as error:
        raise DataError(
            f"{path} is not a complete pickle of arrays ({error}); download it again"
        ) from error
    except MemoryError as error:
        raise DataError(
            f"{path} is damaged, or needs more memory than there is; download it again, or use "
            "a machine with three times the file's size in memory"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the disk") from error


class _RefusedError(Exception):
    """A pickle that asks for something that arrays and containers do not need.

    Its text must not show a value of the pickle's other than text: a tuple that contains another
    one twice, and so on, takes a few hundred bytes of pickle and forever to print or to hash.
    """


class _Name:
    """A function or class that a pickle refers to. It stands for itself and cannot be called."""

    def __init__(self, name: str) -> None:
        self.name = name


class _DType:
    """A numpy dtype in the making: its byte order follows after its code."""

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or code not in _NUMBERS:
            said = code if isinstance(code, str) else type(code).__name__
            raise _RefusedError(f"an array of type {said!r}; arrays of numbers are read")
        self.dtype = np.dtype(code)


class _Array:
    """A numpy array in the making: its shape and contents follow after its creation."""

    value: npt.NDArray[Any] | None = None


def _finished(item: Any) -> Any:
    """An array once it has its contents; anything else as it is."""
    return item.value if isinstance(item, _Array) and item.value is not None else item


class _Machine:
    """The pickle machine: a stack, the marks on it, and the memo."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under the marks
        self.memo: dict[int, Any] = {}
        # Text that is turned into bytes takes new memory for two or three bytes of pickle; an
        # honest pickle does so once for each array.
        self.encodable = path.stat().st_size

    def run(self, opcodes: Iterator[tuple[pickletools.OpcodeInfo, Any, int | None]]) -> Any:
        for opcode, argument, _position in opcodes:
            if opcode.name == "STOP":
                return self.pop()
            action = _ACTIONS.get(opcode.name)
            if action is None:
                raise _RefusedError(f"the opcode {opcode.name}, which arrays do not need")
            action(self, argument)
        raise EOFError("it ends before its STOP")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return _finished(self.stack.pop())

    def pop_to_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.below.pop()
        return [_finished(item) for item in items]

    def mark(self, _argument: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    # Containers

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise _RefusedError(f"an item for {type(target).__name__}")
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(values) % 2:
            raise _RefusedError(f"keys and values for {type(target).__name__}")
        target.update(_pairs(values))

    # Memo

    def memoize(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def recall(self, index: int) -> None:
        self.push(self.memo[index])

    # Functions and objects

    def name(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full not in _NAMES:
            raise DataError(
                f"{self.path} refers to the Python object {full!r}, which has no place in a pickle "
                "of images and could execute anything; nothing of it was executed; do not load "
                "this file with Python's pickle, and get it from its publisher"
            )
        self.push(_Name(full))

    def name_from_stack(self, _argument: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise _RefusedError("a name that is not text")
        self.name(module, name)

    def reduce(self, _argument: Any) -> None:
        arguments, function = self.pop(), self.pop()
        if type(function) is not _Name or type(arguments) is not tuple:
            raise _RefusedError("a call of something that is not a function")
        self.push(_NAMES[function.name](self, *arguments))

    def build(self, _argument: Any) -> None:
        state, target = self.pop(), self.stack[-1]
        if type(target) is _DType:
            target.dtype = target.dtype.newbyteorder(state[1])
        elif type(target) is _Array:
            _version, shape, dtype, is_fortran, data = state
            target.value = self.array(data, dtype, shape, "F" if is_fortran else "C")
        else:
            raise _RefusedError(f"a state for {type(target).__name__}")

    # What the functions mean

    def encode(self, text: Any, encoding: Any = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise _RefusedError("text in another encoding than latin-1")
        self.encodable -= len(text)
        if self.encodable < 0:
            raise _RefusedError("more bytes than the file has")
        return text.encode("latin-1")

    def array(self, data: Any, dtype: Any, shape: Any, order: str) -> npt.NDArray[Any]:
        if isinstance(data, str):  # Python 2's bytes
            data = self.encode(data)
        if type(dtype) is not _DType or not isinstance(data, bytes | bytearray):
            raise _RefusedError(f"an array of {type(data).__name__}; arrays of numbers are read")
        if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
            raise _RefusedError("an array without a shape")
        if math.prod(shape) * dtype.dtype.itemsize != len(data):
            raise _RefusedError(f"{len(data)} bytes for an array of shape {shape}")
        array: npt.NDArray[Any] = np.ndarray(
            shape, dtype.dtype, buffer=data, order="F" if order == "F" else "C"
        )
        array.flags.writeable = False
        return array

    def scalar(self, dtype: Any, data: Any) -> Any:
        return self.array(data, dtype, (), "C").item()


def _pairs(values: list[Any]) -> dict[Any, Any]:
    keys = values[::2]
    if not all(isinstance(key, str | int | bytes) for key in keys):
        raise _RefusedError("a key that is neither text nor a number")
    return dict(zip(keys, values[1::2], strict=True))


def _unstarted_array(_machine: _Machine, _class: Any, _shape: Any, _type: Any) -> _Array:
    return _Array()


def _dtype(_machine: _Machine, code: Any, _align: Any, _copy: Any) -> _DType:
    return _DType(code)


def _from_buffer(machine: _Machine, data: Any, dtype: Any, shape: Any, order: Any) -> Any:
    return machine.array(data, dtype, shape, str(order))


def _no_bytes(_machine: _Machine) -> bytes:
    return b""  # how protocol 2 writes b""


def _not_callable(_machine: _Machine, *_arguments: Any) -> Any:
    raise _RefusedError("a call of numpy.ndarray")


_NAMES: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _not_callable,  # named as the class of an array, never called
    "numpy.dtype": _dtype,
    "_codecs.encode": _Machine.encode,  # how Python 3 writes bytes in protocol 2
    "__builtin__.bytes": _no_bytes,
    "builtins.bytes": _no_bytes,
}
for _core in ("numpy.core", "numpy._core"):  # until numpy 1, since numpy 2
    _NAMES[f"{_core}.multiarray._reconstruct"] = _unstarted_array
    _NAMES[f"{_core}.multiarray.scalar"] = _Machine.scalar
    _NAMES[f"{_core}.numeric._frombuffer"] = _from_buffer

_Action = Callable[[_Machine, Any], None]

# Opcodes whose decoded argument is the value that they push.
_VALUES = [
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
]

_ACTIONS: dict[str, _Action] = dict.fromkeys(_VALUES, _Machine.push) | {
    "PROTO": lambda _machine, _: None,
    "FRAME": lambda _machine, _: None,
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": _Machine.mark,
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "LIST": lambda machine, _: machine.push(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.push((machine.pop(),)),
    "TUPLE2": lambda machine, _: machine.push((machine.pop(), machine.pop())[::-1]),
    "TUPLE3": lambda machine, _: machine.push((machine.pop(), machine.pop(), machine.pop())[::-1]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "DICT": lambda machine, _: machine.push(_pairs(machine.pop_to_mark())),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "MEMOIZE": _Machine.memoize,
    "PUT": _Machine.memoize,
    "BINPUT": _Machine.memoize,
    "LONG_BINPUT": _Machine.memoize,
    "GET": _Machine.recall,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "GLOBAL": lambda machine, name: machine.name(*name.split(" ", 1)),
    "STACK_GLOBAL": _Machine.name_from_stack,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
