"""`gradshare predict`, `export` and `check`: a run on images of your own."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import click
import numpy as np
from pydantic import Field

from gradshare.classifier import FewShotClassifier, check
from gradshare.classifier.export import require_ending
from gradshare.cli.options import UserPath, options_of
from gradshare.config.fields import Declared, HomePath, Paths
from gradshare.config.runs import open_run
from gradshare.errors import ConfigError, DataError, escaped
from gradshare.tasks import arrays
from gradshare.tasks.images import EXTENSIONS
from gradshare.tasks.readers.dataset import Notes
from gradshare.tasks.readers.folder import classes_in, groups_in
from gradshare.training.run import Run

OUTPUTS = (".csv", ".json")
NONE = "none of these"

Portion = Annotated[float, Field(gt=0, lt=1)]

run_argument = click.argument("run", type=UserPath())


class Classify(Declared):
    """The options of each command that makes a classifier of a run."""

    ensemble: Annotated[int, Field(ge=1)] | None = None
    """How many of the best checkpoints are averaged.  [default: all that the run kept]"""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


class Predict(Classify):
    """The options of `gradshare predict`."""

    support: HomePath
    """Folder with a folder of example images for each class."""
    query: Paths = ()
    """Image to classify, or a folder of images, with those in its folders. It may be repeated, and
    --query *.jpg works."""
    out: Paths = ()
    """New file for all probabilities, as .csv or .json. It may be repeated."""
    coverage: Portion | None = None
    """Also give the classes that an image may be of: these sets hold the true one for this share of
    images, such as 0.9."""
    reject: Portion | None = None
    """Answer none where an image looks like no class, at the price of this share of images of the
    known classes, such as 0.05."""


class Export(Classify):
    """The options of `gradshare export`."""

    support: HomePath
    """Folder with a folder of example images for each class."""
    out: HomePath
    """New file, .onnx or .pt2 (torch.export)."""


class Check(Classify):
    """The options of `gradshare check`."""

    group: str | None = None
    """Regular expression that finds the group of an image, such as a recording, in its path below
    FOLDER: what is in its parentheses, or all of it, as (\\d+)_. Images of one group are never in
    both the examples and the queries."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Parts that the images are dealt to; fewer if a class has fewer images or groups."""


@click.command(name="predict")
@run_argument
@click.argument("files", nargs=-1, type=UserPath())
@options_of(Predict)
def predict_command(run: Path, files: tuple[Path, ...], asked: Predict) -> None:
    """Classify images with a RUN, from a few examples of each class.

    Probabilities are calibrated on the validation tasks of the run.
    """
    for path in asked.out:
        if path.suffix.lower() not in OUTPUTS:
            raise ConfigError(f"--out {path} has another ending than {' or '.join(OUTPUTS)}")
        if path.exists():
            raise ConfigError(f"--out {path} exists; name a new file")
    images = [image for query in (*asked.query, *files) for image in _images_of(query)]
    if not images:
        raise ConfigError("--query is missing; name an image or a folder of images")
    with _warnings_as_lines():
        classifier = _classifier(run, asked).fit(*_labelled(asked.support))
        probabilities = classifier.predict_proba(images)
        best = classifier.classes_[probabilities.argmax(1)]
        if asked.reject is not None:
            best = classifier.predict(images, reject=asked.reject)
        if asked.coverage is not None:
            sets = classifier.predict_set(images, coverage=asked.coverage)
    names = classifier.classes_.tolist()
    rows: list[dict[str, Any]] = [
        {"file": str(image), "class": name, "probabilities": dict(zip(names, p, strict=True))}
        for image, name, p in zip(images, best.tolist(), probabilities.tolist(), strict=True)
    ]
    if asked.coverage is not None:
        for row, found in zip(rows, sets, strict=True):
            row["set"] = found
    _print(rows)  # first, so that a file that cannot be written loses nothing
    for path in asked.out:
        _write(rows, path)


@click.command(name="export")
@run_argument
@options_of(Export)
def export_command(run: Path, asked: Export) -> None:
    """Write a classifier of the classes in a folder as one file, for use without gradshare.

    The file has the backbone, the normalisation of images and the calibration of probabilities in
    it. Its answers are compared with those of the RUN before it is written.
    """
    if asked.out.exists():
        raise ConfigError(f"--out {asked.out} exists; name a new file")
    require_ending(asked.out)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with _warnings_as_lines():
        classifier = _classifier(run, asked).fit(*_labelled(asked.support))
        classifier.export(asked.out)
    names = escaped(", ".join(classifier.classes_.tolist()))
    click.echo(f"{escaped(asked.out)} answers as the run does, for {names}")


@click.command(name="check")
@run_argument
@click.argument("folder", type=UserPath())
@options_of(Check)
def check_command(run: Path, folder: Path, asked: Check) -> None:
    """Say what accuracy to expect of a RUN on the classes of a FOLDER.

    FOLDER has a folder of images for each class; for a run on other inputs it is a file or folder
    of arrays, as `gradshare.ClassTasks.load` reads it. The images are cross-validated, beside
    classifiers that need no meta-training: the nearest class mean, and logistic regression.
    """
    x: Any
    y: Any
    groups: Any = None
    if folder.suffix.lower() != ".npz" and not list(folder.glob("*.npy")):
        x, y = _labelled(folder)
        if asked.group is not None:
            paths = (path.relative_to(folder).as_posix() for path in x)
            groups = groups_in(paths, asked.group, folder)
    else:
        x, y, groups = arrays.load(folder)
        x = x.take(np.arange(len(x)), axis=0)
        if asked.group is not None:
            raise ConfigError("--group is for images; name the groups of arrays in groups.npy")
    classifier = _made(run, asked)
    with _warnings_as_lines():
        found = check(classifier, x, y, groups=groups, folds=asked.folds)
    click.echo(escaped(found))


def _made(run: Run | Path, asked: Classify, **options: Any) -> FewShotClassifier:
    return FewShotClassifier(run, ensemble=asked.ensemble, device=asked.device, **options)


def _classifier(run: Path, asked: Classify) -> FewShotClassifier:
    """The classifier of a run. A warning says if its probabilities cannot be calibrated."""
    opened = open_run(run, device=asked.device)
    if opened.source is None or opened.validation is not None:
        return _made(opened, asked)
    warnings.warn(
        f"the dataset of {run} is not on this machine, so the probabilities are not calibrated",
        stacklevel=2,
    )
    return _made(opened, asked, calibration_tasks=0)


def _labelled(folder: Path) -> tuple[list[Path], list[str]]:
    """The images of a folder of class folders, and their classes."""
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder; give one with a folder of images for each class"
        )
    notes = Notes(folder, folder)
    found = classes_in(folder, "", notes)
    if notes.unreadable:
        raise DataError(notes.unreadable[0])
    if len(found) < 2:
        raise DataError(
            f"{folder} has {len(found)} class folders; give a folder with a folder of images for "
            "each of at least 2 classes"
        )
    pairs = [(path, item.name) for item in found for path in item.images]
    return [path for path, _ in pairs], [name for _, name in pairs]


def _images_of(query: Path) -> list[Path]:
    """An image, or the images in a folder and its folders, by name."""
    if not query.is_dir():
        return [query]
    found = sorted(path for path in query.rglob("[!.]*") if path.suffix.lower() in EXTENSIONS)
    if not found:
        raise DataError(f"{query} has no images ({', '.join(EXTENSIONS)}); name another folder")
    return found


def _write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix.lower() == ".json":
            json.dump(rows, file, ensure_ascii=False, indent=1)
            return
        writer = csv.writer(file)
        names = list(rows[0]["probabilities"])
        extra = ["set"] if "set" in rows[0] else []
        # A class may have the name of another column.
        prefix = "class " if {"file", "class", *extra} & {*names} else ""
        writer.writerow(["file", "class", *(prefix + name for name in names), *extra])
        for row in rows:
            cells = [", ".join(row["set"])] if extra else []
            writer.writerow([row["file"], row["class"], *row["probabilities"].values(), *cells])


def _print(rows: Sequence[dict[str, Any]]) -> None:
    """A line for each image: its file, class and probability, and perhaps its set."""
    table = [
        (
            escaped(row["file"]),
            escaped(row["class"] or NONE),
            f"{max(row['probabilities'].values()):.1%}",
            escaped(", ".join(row.get("set", ()))),
        )
        for row in rows
    ]
    file, name = (max(len(cells[column]) for cells in table) for column in (0, 1))
    for cells in table:
        line = f"{cells[0]:<{file}}  {cells[1]:<{name}}  {cells[2]:>6}  {cells[3]}"
        click.echo(line.rstrip())


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Print warnings as one line each, without the place in the program."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        yield
    for text in dict.fromkeys(str(warning.message) for warning in found):
        click.echo(f"warning: {escaped(text)}", err=True)
