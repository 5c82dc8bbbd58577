"""`gradshare predict`, `check` and `export`: a run on images of your own."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

from gradshare.classifier import FewShotClassifier, check
from gradshare.classifier.export import require_ending
from gradshare.cli.options import Command, UserPath
from gradshare.config.runs import open_run
from gradshare.errors import ConfigError, DataError, escaped
from gradshare.tasks import arrays
from gradshare.tasks.images import EXTENSIONS
from gradshare.tasks.readers.folder import groups_in, in_folder

OUTPUTS = (".csv", ".json")
NONE = "none of these"

support_option = click.option(
    "--support",
    type=UserPath(),
    required=True,
    help="Folder with a folder of example images for each class.",
)


def classifier_options(command: Command) -> Command:
    """Give a command RUN, --ensemble and --device."""
    command = click.argument("run", type=UserPath())(command)
    command = click.option(
        "--ensemble",
        type=click.IntRange(1),
        help="How many of the best checkpoints are averaged.  [default: all that the run kept]",
    )(command)
    return click.option(
        "--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."
    )(command)


@click.command(name="predict")
@classifier_options
@click.argument("files", nargs=-1, type=UserPath())
@support_option
@click.option(
    "--query",
    "queries",
    type=UserPath(),
    multiple=True,
    help="Image to classify, or a folder of images, with those in its folders. It may be repeated, "
    "and --query *.jpg works.",
)
@click.option(
    "--out",
    type=UserPath(dir_okay=False),
    multiple=True,
    help="New file for all probabilities, as .csv or .json. It may be repeated.",
)
@click.option(
    "--coverage",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Also give the classes that an image may be of: these sets hold the true one for this "
    "share of images, such as 0.9.",
)
@click.option(
    "--reject",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Answer none where an image looks like no class, at the price of this share of images of "
    "the known classes, such as 0.05.",
)
def predict_command(
    run: Path,
    files: tuple[Path, ...],
    support: Path,
    queries: tuple[Path, ...],
    out: tuple[Path, ...],
    coverage: float | None,
    reject: float | None,
    **options: Any,
) -> None:
    """Classify images with a RUN, from a few examples of each class.

    Probabilities are calibrated on the validation tasks of the run.
    """
    for path in out:
        if path.suffix.lower() not in OUTPUTS:
            raise ConfigError(f"--out {path} has another ending than {' or '.join(OUTPUTS)}")
        if path.exists():
            raise ConfigError(f"--out {path} exists; name a new file")
    images = [image for query in (*queries, *files) for image in _images_of(query)]
    if not images:
        raise ConfigError("--query is missing; name an image or a folder of images")
    with _warnings_as_lines():
        classifier = _classifier(run, **options).fit(*_labelled(support))
        probabilities = classifier.predict_proba(images).tolist()
        best = classifier.predict(images, reject=reject).tolist()
        sets = classifier.predict_set(images, coverage=coverage) if coverage is not None else None
    names = classifier.classes_.tolist()
    rows: list[dict[str, Any]] = [
        {"file": str(image), "class": name, "probabilities": dict(zip(names, p, strict=True))}
        for image, name, p in zip(images, best, probabilities, strict=True)
    ]
    for row, found in zip(rows, sets or (), strict=False):
        row["set"] = found
    _print(rows)  # first, so that a file that cannot be written loses nothing
    for path in out:
        _write(rows, path)


@click.command(name="export")
@classifier_options
@support_option
@click.option(
    "--out",
    type=UserPath(dir_okay=False),
    required=True,
    help="New file, .onnx or .pt2 (torch.export).",
)
def export_command(run: Path, support: Path, out: Path, **options: Any) -> None:
    """Write a classifier of the classes in a folder as one file, for use without gradshare.

    The file has the backbone, the normalisation of images and the calibration of probabilities in
    it. Its answers are compared with those of the RUN before it is written.
    """
    if out.exists():
        raise ConfigError(f"--out {out} exists; name a new file")
    require_ending(out)
    with _warnings_as_lines():
        classifier = FewShotClassifier(run, **options).fit(*_labelled(support))
        classifier.export(out)
    names = escaped(", ".join(classifier.classes_.tolist()))
    click.echo(f"{escaped(out)} answers as the run does, for {names}")


@click.command(name="check")
@classifier_options
@click.argument("folder", type=UserPath())
@click.option(
    "--group",
    help="Regular expression that finds the group of an image, such as a recording, in its path "
    r"below FOLDER: what is in its parentheses, or all of it, as (\d+)_. Images of one group are "
    "never in both the examples and the queries.",
)
@click.option(
    "--folds",
    type=click.IntRange(2),
    default=5,
    show_default=True,
    help="Parts that the images are dealt to; fewer if a class has fewer images or groups.",
)
def check_command(run: Path, folder: Path, group: str | None, folds: int, **options: Any) -> None:
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
        if group is not None:
            paths = (path.relative_to(folder).as_posix() for path in x)
            groups = groups_in(paths, group, folder)
    else:
        x, y, groups = arrays.load(folder)
        x = x.take(np.arange(len(x)), axis=0)
        if group is not None:
            raise ConfigError("--group is for images; name the groups of arrays in groups.npy")
    classifier = FewShotClassifier(run, **options)
    with _warnings_as_lines():
        found = check(classifier, x, y, groups=groups, folds=folds)
    click.echo(escaped(found))


def _classifier(run: Path, **options: Any) -> FewShotClassifier:
    """The classifier of a run. A warning says if its probabilities cannot be calibrated."""
    opened = open_run(run, device=options["device"])
    if opened.source is not None and opened.validation is None:
        options["calibration_tasks"] = 0
        warnings.warn(
            f"the dataset of {run} is not on this machine, so the probabilities are not calibrated",
            stacklevel=2,
        )
    return FewShotClassifier(opened, **options)


def _labelled(folder: Path) -> tuple[list[Path], list[str]]:
    """The images of a folder of class folders, and their classes."""
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder; give one with a folder of images for each class"
        )
    found = in_folder("", folder)
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
