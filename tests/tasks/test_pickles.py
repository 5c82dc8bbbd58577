"""Pickles of arrays are read; nothing that a pickle says is executed."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshare.errors import DataError
from gradshare.tasks.readers.pickles import load_pickle
from tests.tasks.archive_builders import pixels

IMAGES = np.stack([pixels(i) for i in range(6)])


def write(folder: Path, data: bytes) -> Path:
    path = folder / "data.pkl"
    path.write_bytes(data)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as error:
        load_pickle(path)
    return str(error.value)


def cache() -> dict[str, Any]:
    """What mini-ImageNet's pickles hold."""
    return {
        "image_data": IMAGES,
        "class_dict": {"n01": [0, 1, 2], "n02": np.arange(3, 6), "n03": list(np.arange(2))},
    }


def check(found: Any) -> None:
    assert set(found) == {"image_data", "class_dict"}
    assert found["image_data"].dtype == np.uint8
    assert np.array_equal(found["image_data"], IMAGES)
    rows = {name: [int(row) for row in rows] for name, rows in found["class_dict"].items()}
    assert rows == {"n01": [0, 1, 2], "n02": [3, 4, 5], "n03": [0, 1]}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_reads_every_protocol(tmp_path: Path, protocol: int) -> None:
    check(load_pickle(write(tmp_path, pickle.dumps(cache(), protocol))))


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_reads_the_names_of_numpy_1_and_2(tmp_path: Path, core: bytes) -> None:
    data = pickle.dumps(cache(), 2)
    written = b"numpy._core" if b"numpy._core" in data else b"numpy.core"
    check(load_pickle(write(tmp_path, data.replace(written, core))))


def python2_string(data: bytes) -> bytes:
    """A `str` of Python 2."""
    return b"T" + struct.pack("<i", len(data)) + data


def test_reads_what_python_2_wrote(tmp_path: Path) -> None:
    # {"image_data": array, "class_dict": {"n01": [0, 5]}} as cPickle writes it in protocol 2
    data = (
        b"\x80\x02}q\x01(U\x0aimage_dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03"
        b"cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05("
        b"K\x01(K\x06K\x08K\x08K\x03tcnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + python2_string(IMAGES.tobytes())
        + b"tbU\x0aclass_dictq\x08}q\x09U\x03n01q\x0a]q\x0b(K\x00K\x05esu."
    )
    expected = pickle.loads(data, encoding="latin1")
    assert np.array_equal(expected["image_data"], IMAGES), "the pickle is what it claims to be"
    found = load_pickle(write(tmp_path, data))
    assert np.array_equal(found["image_data"], IMAGES)
    assert found["class_dict"] == {"n01": [0, 5]}


values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.binary(), inner)
    ),
    max_leaves=20,
)


@given(value=values, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_reads_whatever_python_would(value: Any, protocol: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        assert load_pickle(write(Path(folder), pickle.dumps(value, protocol))) == value


@pytest.mark.parametrize("dtype", ["?", "u1", ">i4", "<i8", ">f8", "<f4"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_reads_arrays_of_numbers(
    tmp_path: Path, dtype: str, order: Any, protocol: int, shape: tuple[int, ...]
) -> None:
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype, order=order)
    found = load_pickle(write(tmp_path, pickle.dumps([array, array], protocol)))
    for copy in found:
        assert copy.dtype == array.dtype.newbyteorder(copy.dtype.byteorder)
        assert np.array_equal(copy, array)
        assert not copy.flags.writeable


class Touch:
    """Pickles to a call that creates a file."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("function", "argument", "name"),
    [
        (os.system, "touch {}", "posix.system"),
        (subprocess.getoutput, "touch {}", "getoutput"),  # a module of another name in Python 2
        (eval, "open('{}', 'w')", "eval"),
        (open, "{}", "open"),
        (np.load, "{}", "numpy.load"),
        (os.mkdir, "{}", "posix.mkdir"),
    ],
)
def test_executes_nothing(
    tmp_path: Path, protocol: int, function: Callable[..., Any], argument: str, name: str
) -> None:
    victim = tmp_path / "victim"
    call = Touch(function, argument.format(victim))
    path = write(tmp_path, pickle.dumps([IMAGES, call], protocol))
    message = refusal(path)
    assert not victim.exists()
    assert f"{path} refers to the Python object '" in message
    assert f"{name}', which has no place in a pickle of images" in message
    assert "it was not called; do not load this file with Python's pickle" in message


def test_the_malicious_pickle_of_these_tests_is_one(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    pickle.loads(pickle.dumps(Touch(os.system, f"touch {victim}")))
    assert victim.exists()


@pytest.mark.parametrize("value", [Counter(a=1), Path("x"), 1j, np.array(["text"])])
def test_refuses_other_objects(tmp_path: Path, value: Any) -> None:
    message = refusal(write(tmp_path, pickle.dumps(value)))
    assert "refers to the Python object" in message or "is not a complete pickle" in message


def test_refuses_arrays_of_objects(tmp_path: Path) -> None:
    path = write(tmp_path, pickle.dumps(np.array([{}], dtype=object)))
    assert "an array of type 'O8'; arrays of numbers are read" in refusal(path)


def test_a_type_of_numbers_stays_one_whatever_its_state_says(tmp_path: Path) -> None:
    """numpy's own dtype would believe the flags of objects, and take the numbers for addresses."""
    data = pickle.dumps(IMAGES, 2)
    flags, of_objects = b"\xffK\x00t", b"\xffK\x3ft"
    assert flags in data
    found = load_pickle(write(tmp_path, data.replace(flags, of_objects)))
    assert np.array_equal(found, IMAGES)


def test_refuses_an_array_of_another_size_than_its_bytes(tmp_path: Path) -> None:
    data = pickle.dumps(IMAGES, 2)
    shape = b"K\x06K\x08K\x08K\x03"
    assert shape in data
    path = write(tmp_path, data.replace(shape, b"K\x07K\x08K\x08K\x03"))
    assert "buffer size does not match array size" in refusal(path)


HOSTILE = {
    "a length beyond the file": b"\x80\x04\x8e" + (1 << 62).to_bytes(8, "little"),
    "an impossible length": b"\x80\x04\x8e" + b"\xff" * 8,
    "state for a list": b"\x80\x02]}b.",
    "a million bytes that are not there": b"cbuiltins\nbytes\nJ\x40\x42\x0f\x00\x85R.",
    "a call of a list": b"\x80\x02])R.",
    "a call of ndarray": b"\x80\x02cnumpy\nndarray\n)R.",
    "an unmatched mark": b"\x80\x02e.",
    "an empty stack": b".",
    "a state for a function": b"c_codecs\nencode\n}X\x01\0\0\0aK\x01sb.",
    "a missing memo": b"h\x05.",
    "an item for a number": b"K\x01K\x02a.",
    "a persistent id": b"Pid\n.",
    "an extension": b"\x82\x01.",
    "an instance": b"(ios\nsystem\n.",
    "another codec": b"c_codecs\nencode\n(X\x01\0\0\0aX\x03\0\0\0hextR.",
    "the codec of a number": b"c_codecs\nencode\n(K\x01tR.",
    "the arguments of a dtype": b"cnumpy\ndtype\n)R.",
    "a dtype that does not exist": b"cnumpy\ndtype\n(X\x02\0\0\0ZZNNtR.",
    "a state without a shape": (
        b"cnumpy.core.multiarray\n_reconstruct\n(NNNtR(K\x01NNNC\x01xtb."
    ),
    "text that is no number": b"Iabc\n.",
}  # fmt: skip


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_refuses_what_no_pickler_writes(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path, data)
    message = refusal(path)
    assert str(path) in message
    assert "download it again" in message or "it was not called" in message


def test_a_memo_index_takes_no_memory(tmp_path: Path) -> None:
    # Python's own unpickler makes room for as many objects as the index says: here 32 GB.
    assert load_pickle(write(tmp_path, b"\x80\x02]r\xff\xff\xff\xff.")) == []


def test_names_a_truncated_pickle_at_every_length(tmp_path: Path) -> None:
    data = pickle.dumps(cache(), 2)
    for length in range(0, len(data) - 1, 23):
        path = write(tmp_path, data[:length])
        message = refusal(path)
        # A name that is cut off after a full stop is the name of something else.
        if data[length - 1 : length] != b".":
            assert message.startswith(f"{path} is not a complete pickle of arrays (")
            assert message.endswith("; download it again")


def test_names_a_web_page_and_a_missing_file(tmp_path: Path) -> None:
    path = write(tmp_path, b"<!doctype html><html>Google Drive - Virus scan warning")
    assert f"{path} is a web page, not a pickle: the server answered" in refusal(path)
    assert "pass --from PATH" in refusal(path)
    assert f"there is no file {tmp_path / 'x'}; check the path" == refusal(tmp_path / "x")


@settings(max_examples=100, deadline=None)
@given(random=st.randoms(use_true_random=False), protocol=st.integers(0, 5))
def test_damage_never_shows_as_anything_but_a_data_error(random: Random, protocol: int) -> None:
    data = bytearray(pickle.dumps({"image_data": IMAGES[:1], "class_dict": {"a": [0]}}, protocol))
    for _ in range(random.randint(1, 4)):
        data[random.randrange(len(data))] = random.randrange(256)
    with tempfile.TemporaryDirectory() as folder:
        try:
            load_pickle(write(Path(folder), bytes(data)))
        except DataError as error:
            assert "data.pkl" in str(error)


@pytest.mark.parametrize("head", [b"X", b"B", b"T", b"\x8b"])  # text, bytes, a string, a number
def test_a_length_that_is_not_there_takes_no_memory(tmp_path: Path, head: bytes) -> None:
    path = write(tmp_path, b"\x80\x02" + head + struct.pack("<i", 2**31 - 1) + b"x.")
    tracemalloc.start()
    try:
        assert "is not a complete pickle of arrays" in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
