"""A tiny prepared dataset, and a configuration of seconds, for end-to-end tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

from gradshare.classifier.calibration import Answers, answers_to
from gradshare.classifier.trained import Trained
from gradshare.tasks import TaskSource, glyphs
from gradshare.tasks.writing import ClassImages, write_store

# The same examples in every run, so that a change is what makes a test fail; new ones, to search
# for what none has met yet, with `HYPOTHESIS_PROFILE=explore`.
hypothesis.settings.register_profile("repeat", derandomize=True)
hypothesis.settings.register_profile("explore")
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))

# The tensors of the tests are too small to be worth a second thread.
torch.set_num_threads(1)

# Of whoever runs the tests, and not of what they test: under a data root they would look for their
# data there; in git's hooks `git commit` would go into the repository of the hook; under torchrun
# every run would wait for others; and words in colour are not the words that are expected.
for name in list(os.environ):
    if name.startswith(("GIT_", "TORCHELASTIC_")) or name in (
        "GRADSHARE_DATA_ROOT",
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "FORCE_COLOR",
        "TTY_COMPATIBLE",
    ):
        del os.environ[name]

# Ray's workers are nicer than other processes, and would wait until all other tests have ended.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # as Ray spells it

TINY_SIZE = 16

gc.disable()  # while tests are imported; see `pytest_collection_finish`


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long tests, so that others compute while they wait."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    """Leave all that is imported out of garbage collections, each of half a second."""
    gc.collect()
    gc.freeze()
    gc.enable()


def tiny_classes(split: str, count: int, images: int = 10) -> list[ClassImages]:
    """Classes of noisy images of one pattern each, so that there is something to learn."""
    classes = []
    for index in range(count):
        random = np.random.default_rng([len(split), index])
        pattern = random.integers(0, 256, (1, 1, TINY_SIZE, TINY_SIZE))
        noise = random.normal(0, 60, (images, 1, TINY_SIZE, TINY_SIZE))
        pixels = np.clip(pattern + noise, 0, 255).astype(np.uint8)
        classes.append(ClassImages(split, f"{split}-{index}", pixels))
    return classes


def prepare_tiny(
    root: Path, train_classes: int = 12, source: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Prepare the dataset "tiny" in a data root."""
    classes = [*tiny_classes("train", train_classes), *tiny_classes("val", 5)]
    write_store(
        root / "tiny" / str(TINY_SIZE),
        [*classes, *tiny_classes("test", 5)],
        name="tiny",
        rotate_classes=False,
        source=dict(source),
    )


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with one dataset, "tiny": 16×16, grey."""
    root = tmp_path_factory.mktemp("data")
    prepare_tiny(root)
    return root


@pytest.fixture
def few_glyphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the glyphs a few are drawn, since all of them take ten seconds."""
    few = glyphs.letters()[::20]
    monkeypatch.setattr(glyphs, "letters", lambda: few)


@pytest.fixture
def few_calibration_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classifiers are calibrated on 20 tasks, the fewest that they take, and not on 100."""

    def fewer(trained: Trained, source: TaskSource, tasks: int) -> Answers:
        return answers_to(trained, source, min(tasks, 20))

    monkeypatch.setattr("gradshare.classifier.estimator.answers_to", fewer)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons train in this process, and not in one for each run, which imports torch again."""
    monkeypatch.setattr(
        "gradshare.comparison.compare.local_executor", lambda *_: ThreadPoolExecutor(1)
    )


@pytest.fixture
def without_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons draw no figures, which takes as long as to train some runs of the tests."""
    monkeypatch.setattr("gradshare.comparison.compare.Comparison.report", lambda self: None)


def tiny_settings(data_root: Path) -> dict[str, Any]:
    """Settings of a run on "tiny" that takes a second."""
    return {
        "dataset": "tiny",
        "data_root": str(data_root),
        "ways": 3,
        "queries": 4,
        "task_batch": 2,
        "inner_steps": 2,
        "filters": 4,
        "epochs": 3,
        "iterations_per_epoch": 3,
        "val_tasks": 6,
        "test_tasks": 8,
        "ensemble": 2,
        "device": "cpu",
        "threads": 1,
    }


@pytest.fixture
def tiny(data_root: Path) -> dict[str, Any]:
    """See `tiny_settings`."""
    return tiny_settings(data_root)
