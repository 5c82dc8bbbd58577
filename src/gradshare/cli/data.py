"""`gradshare data`: prepare a dataset, and show what is in it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import yaml
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as ProgressBar
from rich.table import Table
from rich.text import Text

from gradshare.backbones import Backbone, write_features
from gradshare.cli.options import DATA_ROOT_VARIABLE, UserPath, pairs
from gradshare.errors import ConfigError, DataError, escaped
from gradshare.tasks.contact_sheet import contact_sheet
from gradshare.tasks.datasets import (
    IMAGE_SIZES,
    check_name,
    download_dataset,
    is_prepared,
    open_dataset,
    prepare_dataset,
)
from gradshare.tasks.download import OnProgress
from gradshare.tasks.features import (
    FORM,
    FeatureStore,
    Preprocessing,
    features_path,
    is_feature_store,
)
from gradshare.tasks.images import Resize
from gradshare.tasks.registry import DATASETS, DEFAULT_DATA_ROOT, prepared, require_new_name
from gradshare.tasks.store import SPLITS, ImageStore

PICTURES = (".png", ".jpg", ".pdf", ".svg", ".webp")

WIDE = 200
"""Columns for a table, of which a narrow terminal breaks the lines instead of hiding numbers."""

Option = Callable[[Callable[..., None]], Callable[..., None]]

data_root_option: Option = click.option(
    "--data-root",
    type=UserPath(file_okay=False),
    default=DEFAULT_DATA_ROOT,
    show_default=True,
    envvar=DATA_ROOT_VARIABLE,
    show_envvar=True,
    help="Folder of prepared datasets.",
)
image_size_option: Option = click.option(
    "--image-size",
    type=click.IntRange(IMAGE_SIZES[0], IMAGE_SIZES[-1]),
    help="Height and width in pixels.  [default: the dataset's usual size]",
)
resize_option: Option = click.option(
    "--resize",
    type=click.Choice(["stretch", "center-crop"]),
    default="stretch",
    show_default=True,
    help="Stretch to the square, or resize the shorter side to 1.5 times it and cut its middle.",
)


@click.group()
def data() -> None:
    """Prepare datasets and look at them."""


@data.command(
    epilog="Datasets: " + "; ".join(f"{item.name}: {item.summary}" for item in DATASETS.values())
)
@click.argument("name")
@click.option("--download", is_flag=True, help="Download the dataset from its publisher.")
@click.option(
    "--from",
    "path",
    type=UserPath(),
    help="Read a local archive or folder.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["folder"]),
    help="Read --from as a folder of class folders, and call the dataset NAME.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    help="Draws glyphs, or the splits of a folder of class folders.  [default: 0]",
)
@click.option("--force", is_flag=True, help="Replace what was prepared before.")
@image_size_option
@resize_option
@data_root_option
def prepare(
    name: str,
    download: bool,
    path: Path | None,
    form: str | None,
    seed: int | None,
    force: bool,
    image_size: int | None,
    resize: Resize,
    data_root: Path,
) -> None:
    """Turn the images of dataset NAME into a store that opens at once.

    Glyphs are drawn; other datasets need --download or --from. Images of your own, in one folder
    a class, are prepared under any new NAME with --format folder --from FOLDER.
    """
    check_name(name, data_root, folder=form == "folder")
    if download and (path is not None or form is not None):
        raise click.UsageError("give either --download or --from PATH")
    # What is prepared already is not read again, and so its archives need not be there.
    if download and (force or not is_prepared(name, data_root, image_size, resize)):
        with _progress_bar(DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as bar:
            path = download_dataset(name, data_root, _reporter(bar, f"Downloading {name}"))
    with _class_bar() as bar:
        store, written = prepare_dataset(
            name,
            data_root,
            path=path,
            folder=form == "folder",
            image_size=image_size,
            resize=resize,
            seed=seed,
            force=force,
            progress=_reporter(bar, f"Preparing {name}"),
        )
    if written:
        counts = ", ".join(
            f"{len(split.class_names):,} {split.name}" for split in store.splits.values()
        )
        drawn = f", {store.drawn}" if store.drawn else ""
        click.echo(f"Prepared {escaped(store.path)}: {counts} classes{drawn}")
    else:
        click.echo(f"{escaped(store.path)} is prepared already; replace it with --force")


@data.command()
@click.argument("dataset")
@click.option(
    "--backbone",
    required=True,
    help="An .onnx file; the import path of a function or class that returns a torch module; or "
    "timm:MODEL.",
)
@click.option(
    "--backbone-option",
    "options",
    callback=pairs,
    metavar="KEY=VALUE",
    multiple=True,
    help="Argument of the function, class or model; repeat for more.",
)
@click.option(
    "--weights",
    type=UserPath(dir_okay=False),
    help="File with the module's state dictionary, from safetensors or torch.save.",
)
@click.option(
    "--preprocess",
    "preprocessing",
    callback=pairs,
    metavar="KEY=VALUE",
    multiple=True,
    help=f"Change of the backbone's preprocessing: {', '.join(Preprocessing.model_fields)}; repeat "
    "for more.",
)
@click.option("--out", help="Name of the new dataset.  [default: DATASET-features]")
@click.option("--force", is_flag=True, help="Replace features of that name.")
@image_size_option
@resize_option
@data_root_option
def features(
    dataset: str,
    backbone: str,
    options: dict[str, Any] | None,
    weights: Path | None,
    preprocessing: dict[str, Any] | None,
    out: str | None,
    force: bool,
    image_size: int | None,
    resize: Resize,
    data_root: Path,
) -> None:
    """Put the images of DATASET through a frozen backbone, once, and prepare what comes out.

    The new dataset holds a row of features for each image, with the splits and groups of DATASET.
    """
    out = out or f"{dataset}-features"
    require_new_name(out)
    if prepared(data_root).get(out, [FORM]) != [FORM]:
        raise DataError(
            f"{data_root / out} holds images; give the features another name with --out"
        )
    store = open_dataset(dataset, data_root, image_size, resize)
    network = Backbone(backbone, options=options, weights=weights, preprocessing=preprocessing)
    with _class_bar() as bar:
        written = write_features(
            store,
            network,
            features_path(data_root, out),
            force=force,
            progress=_reporter(bar, f"Features of {dataset}"),
        )
    click.echo(f"Wrote {escaped(written.path)}: {len(written.mean):,} features of each image")


@data.command()
@click.argument("name")
@click.option(
    "--out",
    type=UserPath(dir_okay=False),
    help=f"Contact sheet to write: {', '.join(PICTURES)}.  [default: NAME-SIZE.png]",
)
@image_size_option
@resize_option
@data_root_option
def show(
    name: str,
    out: Path | None,
    image_size: int | None,
    resize: Resize,
    data_root: Path,
) -> None:
    """Print what dataset NAME holds, and draw some images of it."""
    if is_feature_store(path := features_path(data_root, name)):
        _print_features(FeatureStore.open(path))
        return
    if out is not None and out.suffix.lower() not in PICTURES:
        raise ConfigError(f"--out {out} is not a picture; end it in {', '.join(PICTURES)}")
    with _class_bar() as bar:
        store = open_dataset(
            name, data_root, image_size, resize, progress=_reporter(bar, f"Drawing {name}")
        )
    _print_contents(store)
    out = out or Path(f"{name}-{store.path.name}.png")
    text_stays_text = mpl.rc_context({"svg.fonttype": "none"})  # with the reader's fonts
    with text_stays_text, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            contact_sheet(store).savefig(out, dpi=120, bbox_inches="tight")
        except OSError as error:
            raise DataError(
                f"cannot write the contact sheet to {out} ({error}); choose another --out"
            ) from error
    click.echo(f"Contact sheet: {escaped(out)}")
    if out.suffix.lower() != ".svg" and any("missing from font" in str(w.message) for w in warned):
        click.echo(
            "Boxes in it stand for letters that matplotlib's font lacks; an .svg has all of them"
        )


def _print_features(store: FeatureStore) -> None:
    counts = {
        name: np.unique(np.load(store.path / name / "y.npy"), return_counts=True)[1]
        for name in SPLITS
    }
    _print_table(f"{len(store.mean)} features of {store.name}", counts)
    record = {"backbone": store.backbone.model_dump(mode="json"), **store.source}
    click.echo(yaml.safe_dump(record, sort_keys=False, allow_unicode=True).rstrip())


def _print_contents(store: ImageStore) -> None:
    channels, height, width = store.image_shape
    counts = {name: split.counts for name, split in store.splits.items()}
    _print_table(f"{store.name}, {channels}×{height}×{width}", counts)
    mean, std = (" ".join(f"{value:.4f}" for value in values) for values in (store.mean, store.std))
    click.echo(f"Pixels of train, in [0, 1]: mean {mean}, standard deviation {std}")
    if store.rotate_classes:
        click.echo("Training episodes turn each class by a random multiple of 90°")
    click.echo(yaml.safe_dump(dict(store.source), sort_keys=False, allow_unicode=True).rstrip())


def _print_table(title: str, counts: Mapping[str, npt.NDArray[np.int64]]) -> None:
    """Print the number of images of each class of each split as a table of the splits."""
    table = Table(title=Text(escaped(title)), title_justify="left")
    table.add_column("split")
    for column in ("classes", "images", "images a class"):
        table.add_column(column, justify="right")
    for name, of_split in counts.items():
        least, most = of_split.min(), of_split.max()
        table.add_row(
            name,
            f"{len(of_split):,}",
            f"{of_split.sum():,}",
            f"{least:,}" if least == most else f"{least:,} to {most:,}",
        )
    Console(width=WIDE).print(table)


@contextlib.contextmanager
def _progress_bar(*columns: ProgressColumn) -> Iterator[ProgressBar]:
    """A progress bar on the terminal, which leaves nothing behind when it is done."""
    console = Console(stderr=True)
    description = TextColumn("{task.description}")
    bar = ProgressBar(
        *(SpinnerColumn(), description, BarColumn(), *columns),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        yield bar


def _class_bar() -> contextlib.AbstractContextManager[ProgressBar]:
    return _progress_bar(MofNCompleteColumn(), TextColumn("classes"), TimeRemainingColumn())


def _reporter(bar: ProgressBar, description: str) -> OnProgress:
    """A callback that shows progress; nothing appears before its first call."""
    task = bar.add_task(description, total=None, visible=False)

    def report(done: int, total: int | None) -> None:
        bar.update(task, completed=done, total=total, visible=True)

    return report
