"""Reading an HDF5 dataset of byte strings without the HDF5 library.

HDF5 keeps items of variable length in "global heaps": blocks of objects, each with its size. Where
a size is damaged the library can walk a heap for ever, in C, where Ctrl-C does not reach. The
format is small enough to be read here with every step checked (HDF5 File Format Specification,
version 3.0, III.E and IV.B.1).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO

# Of what a dataset holds for an item: its length, its heap's address, its number in the heap.
_REFERENCE = struct.Struct("<IQI")
_HEAP = struct.Struct("<4sB3xQ")  # signature, version, size with this header
_OBJECT = struct.Struct("<HH4xQ")  # number, reference count, size without padding


def heap_items(file: IO[bytes], offset: int, count: int, limit: int) -> Iterator[bytes]:
    """Iterate over the items of a contiguous dataset of variable-length uint8.

    Args:
        file: an HDF5 file with addresses and lengths of 8 bytes, as h5py writes it.
        offset: where the dataset's references begin.
        count: how many there are.
        limit: bytes that an item may have.

    Raises:
        ValueError: something does not fit: a reference, a heap, an object or the limit.
    """
    end = file.seek(0, 2)
    heap_at: int | None = None
    objects: dict[int, tuple[int, int]] = {}
    for index in range(count):
        length, address, number = _REFERENCE.unpack(_read(file, offset + 16 * index, 16, end))
        if address != heap_at:  # items of a dataset mostly follow each other
            objects = _objects(file, address, end)
            heap_at = address
        if number not in objects:
            raise ValueError(f"item {index} is not where the dataset says")
        start, size = objects[number]
        if length > min(size, limit):
            raise ValueError(f"item {index} claims {length:,} bytes")
        yield _read(file, start, length, end)


def _objects(file: IO[bytes], address: int, end: int) -> dict[int, tuple[int, int]]:
    """Where each object of a heap begins, and its size, by its number."""
    signature, version, size = _HEAP.unpack(_read(file, address, _HEAP.size, end))
    if signature != b"GCOL" or version != 1 or size > end - address:
        raise ValueError(f"there is no heap at {address}")
    found: dict[int, tuple[int, int]] = {}
    position = address + _HEAP.size
    while position + _OBJECT.size <= address + size:
        number, _references, length = _OBJECT.unpack(_read(file, position, _OBJECT.size, end))
        if number == 0:  # the free space at the end
            break
        position += _OBJECT.size
        if length > address + size - position:
            raise ValueError(f"an object of {length:,} bytes does not fit into its heap")
        found[number] = position, length
        position += -(-length // 8) * 8
    return found


def _read(file: IO[bytes], start: int, size: int, end: int) -> bytes:
    if start + size > end:
        raise ValueError("it ends too early")
    file.seek(start)
    return file.read(size)
