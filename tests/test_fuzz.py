"""Whatever the bytes, a reader returns something valid or says what is wrong with them.

Every kind of file that gradshare reads is damaged in the ways that chance and malice damage files:
its bytes, and where it has a structure, its values, with checksums made right again. A reader may
answer with a GradshareError and with nothing else, within bounded memory. For a longer search:

    HYPOTHESIS_PROFILE=explore FUZZ_EXAMPLES=20000 pytest tests/test_fuzz.py
"""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

import gradshare as gs
from gradshare.comparison.results import load_results, save_results
from gradshare.config import RunConfig
from gradshare.errors import GradshareError
from gradshare.models.weights import digest
from gradshare.tasks import ImageStore, ImageTasks
from gradshare.tasks.images import ImageFormat, read_image
from gradshare.tasks.readers.archives import unpacked
from gradshare.tasks.readers.dataset import FoundClass, Notes
from gradshare.tasks.readers.folder import find_classes
from gradshare.tasks.readers.labelled import read_arrays, read_hdf5
from gradshare.tasks.readers.lists import classes_in_lists, read_list
from gradshare.tasks.store import SPLITS
from gradshare.training.run import Run
from tests.comparison.builders import classification
from tests.tasks.archive_builders import (
    COMPRESSORS,
    cache_files,
    encoded,
    make_tar,
    make_zip,
    pixels,
)
from tests.tasks.builders import random_store
from tests.training.small import Arguments, rows

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
FORM = ImageFormat(size=8, channels=3)
# Of Python and numpy, over what the file itself has; a bomb asks for gigabytes.
MEMORY = 64 << 20

fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
randoms = st.randoms(use_true_random=False)


# Damage

INTERESTING = (
    *(b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"),
    *(b"\x00\x00\x00\x80", b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\n", b'"', b"'", b"\\", b"0" * 11),
)


def damaged(data: bytes, random: Random) -> bytes:
    """Some of what happens to bytes: flips, cuts, gaps, repeats, and values at limits."""
    buffer = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randrange(len(buffer) + 1)
        # The structure of most formats is at their beginnings and ends.
        if random.random() < 0.5:
            at = min(at, random.randrange(128))
        elif random.random() < 0.3:
            at = max(0, len(buffer) - random.randrange(1, 128))
        match random.randrange(7):
            case 0 if at < len(buffer):
                buffer[at] ^= 1 << random.randrange(8)
            case 1 if at < len(buffer):
                buffer[at] = random.randrange(256)
            case 2:
                del buffer[at:]
            case 3:
                del buffer[at : at + random.choice((1, 2, 4, 8, 100))]
            case 4:
                value = random.choice(INTERESTING)
                buffer[at : at + len(value)] = value
            case 5:
                buffer[at:at] = random.choice(INTERESTING)
            case 6:
                start = random.randrange(len(buffer) + 1)
                buffer[at:at] = buffer[start : start + random.choice((1, 16, 600))]
    return bytes(buffer)


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 5, 10**6, 2**31, 2**63, 2**64, 10**30, -(2**63)),
    *(0.5, -0.0, 1e308, 1e-308, float("nan"), float("inf"), float("-inf")),
    *("", "x", "0", "nan", "../..", "/etc/passwd", "a\0b", "\n", "\ud800", "é" * 40, "x" * 3000),
    *([], {}, [[]], [None], {"": None}, [0] * 3, [0.5] * 5000),
)


def twisted(value: Any, random: Random) -> Any:
    """A JSON value with one or a few of its parts replaced, removed, doubled or swapped."""
    value = json.loads(json.dumps(value))
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        places = list(_places(value))
        if not places:
            return copy.deepcopy(random.choice(ODD))
        home, key = random.choice(places)
        match random.randrange(5):
            case 0 | 1:
                home[key] = copy.deepcopy(random.choice(ODD))
            case 2:
                del home[key]
            case 3 if isinstance(home, dict):
                home[random.choice(("", "x", "format_version", str(key) + "s"))] = home[key]
            case 3:
                home.insert(key, home[key])
            case 4:
                other, place = random.choice(places)
                home[key] = json.loads(json.dumps(other[place])) if _has(other, place) else None
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys: Any = ()
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = range(min(len(value), 20))
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _has(home: Any, key: Any) -> bool:
    return key in home if isinstance(home, dict) else key < len(home)


def as_text(value: Any, random: Random, *, depth: int = 200_000) -> bytes:
    """JSON, sometimes with its text damaged too, or below as many open brackets as `depth`."""
    data = json.dumps(value).encode()
    if random.random() < 0.3:
        data = damaged(data, random)
    if random.random() < 0.03:
        data = b"[" * depth + data
    if random.random() < 0.03:
        data = data.replace(b"1", b"1" * 5000, 1)
    return data


@contextmanager
def refusing() -> Iterator[None]:
    """Let an error through that is one of gradshare's and says something; bound the memory."""
    tracemalloc.start()
    try:
        yield
    except GradshareError as error:
        message = str(error)
        assert len(message) > 20
        assert len(message) < 10_000
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MEMORY


# Archives and images

FILES = {"a/1.png": encoded(pixels(1)), "a/b/2.png": b"two" * 300, "c.txt": b""}


@pytest.mark.parametrize("kind", [*COMPRESSORS, "zip"])
@fuzzed
@given(random=randoms)
def test_archives(kind: str, random: Random, tmp_path: Path) -> None:
    maker = make_zip if kind == "zip" else make_tar
    path = maker(tmp_path / f"a.{kind}", FILES)
    if kind in ("tar.gz", "tar.bz2", "tar.xz") and random.random() < 0.7:
        # What is inside the compression is damaged.
        plain = make_tar(tmp_path / "a.tar", FILES).read_bytes()
        path.write_bytes(COMPRESSORS[kind](damaged(plain, random)))
    else:
        path.write_bytes(damaged(path.read_bytes(), random))
    with tempfile.TemporaryDirectory() as outside, refusing():
        try:
            unpacked(path, Path(outside) / "scratch")
        except OSError as error:  # of the disk, such as a name that is too long for it
            assert error.filename
        assert len(list(Path(outside).iterdir())) == 1


IMAGE_KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")


@pytest.mark.parametrize("kind", IMAGE_KINDS)
@pytest.mark.parametrize("resize", ["stretch", "center-crop"])
@fuzzed
@given(random=randoms)
def test_images(kind: str, resize: Any, random: Random, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradshare.tasks.images.MAX_PIXELS", 10**6)  # more take seconds
    mode = random.choice(("RGB", "L", "1") if kind != "JPEG" else ("RGB", "L"))
    buffer = io.BytesIO()
    size = random.choice(((16, 16), (1, 40), (33, 2)))
    Image.fromarray(pixels(3, size=40)).resize(size).convert(mode).save(buffer, kind)
    form = ImageFormat(size=8, channels=random.choice((1, 3)), resize=resize)
    with refusing():
        image = read_image(damaged(buffer.getvalue(), random), "a.png", form)
        assert image.shape == (form.channels, 8, 8)
        assert image.dtype == np.uint8


# Caches and tables


def make_cache(folder: Path) -> None:
    for split in SPLITS:
        data, labels = cache_files(folder, split)
        labels.write_text(json.dumps([split]), encoding="utf-8")
        with h5py.File(data, "w") as file:
            images = np.stack([pixels(i) for i in range(3)])
            file.create_group("datasets").create_dataset(split, data=images)


@fuzzed
@given(random=randoms)
def test_torchmetas_lists(random: Random, tmp_path: Path) -> None:
    """Not the HDF5 files beside them: what they hold is read by the HDF5 library, in C."""
    make_cache(tmp_path)
    data, labels = cache_files(tmp_path, "train")
    labels.write_bytes(as_text(twisted(["train"], random), random))
    with refusing():
        for item in read_hdf5("train", data, labels):
            assert read_image(item.images[0], "", FORM).shape == (3, 8, 8)


@fuzzed
@given(random=randoms)
def test_pickles(random: Random, tmp_path: Path) -> None:
    images = np.stack([pixels(i) for i in range(6)])
    cache: Any = {"image_data": images, "class_dict": {"n01": [0, 1, 2], "n02": np.arange(3, 6)}}
    cache["class_dict"] = random.choice(
        (cache["class_dict"], twisted({"n01": [0, 1, 2], "n02": [3, 4, 5]}, random))
    )
    cache["image_data"] = random.choice(
        (images, images[0], images.astype(float), images[:0], images.tolist(), None)
    )
    data = pickle.dumps(cache, random.randrange(pickle.HIGHEST_PROTOCOL + 1))
    path = tmp_path / "mini-imagenet-cache-train.pkl"
    path.write_bytes(damaged(data, random) if random.random() < 0.8 else data)
    with refusing():
        read_arrays("train", path)


@fuzzed
@given(random=randoms)
def test_labelled_pickles(random: Random, tmp_path: Path) -> None:
    images = np.stack([pixels(i) for i in range(6)])
    files = [np.frombuffer(encoded(image), np.uint8) for image in images]
    content = twisted({"labels": [0, 0, 1, 1, 2, 2], "catname2label": {"a": 0, "b": 1}}, random)
    if isinstance(content, dict):
        content["data"] = random.choice((images, images[..., 0], files, images.tolist(), None))
    data = pickle.dumps(content, random.randrange(pickle.HIGHEST_PROTOCOL + 1))
    path = tmp_path / "CIFAR_FS_train.pickle"
    path.write_bytes(damaged(data, random) if random.random() < 0.5 else data)
    with refusing():
        for item in read_arrays("train", path):
            assert len(item.images) > 0


@fuzzed
@given(random=randoms)
def test_lists(random: Random, tmp_path: Path) -> None:
    files = [f"n{i % 3}/n{i:08d}.jpg" for i in range(20)]
    texts = {
        ".csv": ("filename,label\n" + "".join(f"{f},{f[:2]}\n" for f in files)).encode(),
        ".txt": "".join(f"{file} 0\n" for file in files).encode(),
        ".json": as_text(
            twisted(
                {"image_names": files, "image_labels": [0] * 20, "label_names": ["n0"]}, random
            ),
            random,
        ),
    }
    suffix = random.choice(list(texts))
    path = tmp_path / f"train{suffix}"
    path.write_bytes(damaged(texts[suffix], random))
    images = FoundClass("", "images", [tmp_path / file for file in files])
    notes = Notes(tmp_path, tmp_path / "unpacked")
    with refusing():
        listing = read_list(path)
        found = classes_in_lists([images], dict.fromkeys(SPLITS, listing), notes)
        assert all(item.images for item in found)


@fuzzed
@given(random=randoms)
def test_splits_files(random: Random, tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "1.png").write_bytes(b"")
    splits = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    (tmp_path / "splits.json").write_bytes(as_text(twisted(splits, random), random))
    with refusing():
        find_classes(Notes(tmp_path, tmp_path / "unpacked"))


@fuzzed
@given(random=randoms)
def test_tables_of_own_images(random: Random, tmp_path: Path) -> None:
    path = tmp_path / "birds.csv"
    rows = "".join(f"{i}.png,bird {i % 3},{SPLITS[i % 3]},{i // 3}\n" for i in range(12))
    path.write_bytes(damaged(b"path,label,split,group\n" + rows.encode(), random))
    with refusing():
        for item in find_classes(Notes(path, tmp_path / "unpacked")):
            assert item.split in SPLITS
            assert len(item.images) > 0
            assert item.groups is None or len(item.groups) == len(item.images)


@fuzzed
@given(random=randoms)
def test_stores(random: Random, tmp_path: Path) -> None:
    path = tmp_path / "4"
    if not path.exists():
        random_store(path, {"train": (3, 2), "val": (2,), "test": (3,)})
        (tmp_path / "index.json").write_bytes((path / "index.json").read_bytes())
        (tmp_path / "images.npy").write_bytes((path / "images.npy").read_bytes())
    index = json.loads((tmp_path / "index.json").read_bytes())
    array = (tmp_path / "images.npy").read_bytes()
    if random.random() < 0.6:
        index = twisted(index, random)
    else:
        array = damaged(array, random)
    (path / "index.json").write_bytes(as_text(index, random))
    (path / "images.npy").write_bytes(array)
    with refusing():
        store = ImageStore.open(path)
        assert len(store.image_shape) == 3
        for split in store.splits.values():
            tasks = ImageTasks(split, ways=2, shots=1, queries=1)
            assert tasks.batch(range(2)).support_x.shape[2:] == store.image_shape


# What gradshare itself wrote


@fuzzed
@given(random=randoms)
def test_configurations(random: Random, tmp_path: Path) -> None:
    config = json.loads(RunConfig(method="maml++").model_dump_json())
    path = tmp_path / "config.yaml"
    # With more brackets PyYAML takes minutes while memory is traced; test_config.py has more.
    text = as_text(twisted(config, random), random, depth=100)
    if random.random() < 0.5:
        text = RunConfig(method="maml++").to_yaml().encode()
        tags = (b"!!int ", b"!!bool ", b"!!float ", b"!!timestamp ", b"&a [*a]", b"*a", b"<<: ")
        at = random.choice([i + 2 for i in range(len(text) - 1) if text[i : i + 2] == b": "])
        text = text[:at] + random.choice(tags) + text[at:]
        text = damaged(text, random) if random.random() < 0.5 else text
    path.write_bytes(text)
    with refusing():
        again = RunConfig.from_yaml(path)
        path.write_text(again.to_yaml(), encoding="utf-8")
        assert RunConfig.from_yaml(path) == again


@fuzzed
@given(random=randoms)
def test_results(random: Random, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    save_results(classification("original", "sharing", tasks=3), path)
    value = json.loads(path.read_bytes())
    path.write_bytes(as_text(twisted(value, random), random))
    with refusing():
        save_results(load_results(path), path)
        load_results(path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a fraction of a second."""
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    gs.fit(**tiny_run(), out=folder)
    return folder


def tiny_run() -> Arguments:
    sizes = {"epochs": 2, "iterations": 1, "val_tasks": 2, "test_tasks": 2, "ensemble": 1}
    return rows(**sizes, tasks="loop", memory="keep")


def resume(folder: Path) -> Run:
    return gs.fit(**tiny_run(), out=folder, resume="auto")


@contextmanager
def put_back(*paths: Path) -> Iterator[None]:
    """Leave a folder's files as they were."""
    before = {path: path.read_bytes() for path in paths}
    try:
        yield
    finally:
        for path, data in before.items():
            path.write_bytes(data)


def rewritten(data: bytes, random: Random) -> bytes:
    """A checkpoint whose content is changed and whose checksum is right all the same."""
    with_header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = dict(with_header["__metadata__"])
    tensors = load_tensors(data)
    progress = json.loads(metadata["progress"])
    if random.random() < 0.5:
        progress = twisted(progress, random)
    else:
        name = random.choice(sorted(tensors))
        tensor = tensors[name]
        changes: tuple[Callable[[], Any], ...] = (
            lambda: tensors.pop(name),
            lambda: tensors.update({name: tensor.flatten().clone()}),
            lambda: tensors.update({name: tensor.double()}),
            lambda: tensors.update({name: torch.full_like(tensor.float(), float("nan"))}),
            lambda: tensors.update({name + "x": tensor.clone()}),
            lambda: tensors.update({"x": torch.zeros(0)}),
            lambda: tensors.update({name.replace("/", "."): tensor.clone()}),
        )
        random.choice(changes)()
    metadata["progress"] = json.dumps(progress)
    metadata["sha256"] = digest(dict(sorted(tensors.items())), metadata["progress"])
    metadata["format_version"] = random.choice(("2", "2", "2", "2", "1", "x" * 50))
    return save_tensors(tensors, metadata)


@fuzzed
@given(random=randoms, whole=st.booleans())
def test_checkpoints(random: Random, whole: bool, finished: Path) -> None:
    """What they hold is used too: a run is continued from them."""
    paths = sorted((finished / "checkpoints").iterdir())
    others = [path for path in finished.rglob("*") if path.is_file()]
    with put_back(*paths, *others):
        for path in paths:
            if path.name.startswith("latest") or random.random() < 0.5:
                data = path.read_bytes()
                path.write_bytes(rewritten(data, random) if whole else damaged(data, random))
        with refusing():
            run = resume(finished)
            assert (run.test is not None) == bool(run.history)
    # `put_back` cannot know of files that this run added.
    for path in set((finished / "checkpoints").iterdir()) - set(paths):
        path.unlink()
