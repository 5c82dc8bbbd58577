"""`gradshare data`: prepare a dataset, and show what is in it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated

import click
import matplotlib as mpl
from pydantic import Field
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

from gradshare.backbones import Backbone, write_features
from gradshare.cli.contents import (
    contact_sheet,
    print_datasets,
    print_features,
    print_images,
    print_notes,
)
from gradshare.cli.options import UserPath, options_of
from gradshare.config.fields import Declared, HomePath, Options
from gradshare.errors import ConfigError, DataError, escaped, reason
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
    features_path,
    is_feature_store,
)
from gradshare.tasks.images import Resize
from gradshare.tasks.registry import DATASETS, DEFAULT_DATA_ROOT, prepared, require_new_name
from gradshare.tasks.store import splits_note

PICTURES = (".png", ".jpg", ".pdf", ".svg", ".webp")


class Root(Declared):
    """Where datasets are prepared."""

    data_root: HomePath = DEFAULT_DATA_ROOT
    """Folder of prepared datasets."""


class Stored(Root):
    """Which store of a dataset is meant."""

    image_size: Annotated[int, Field(ge=IMAGE_SIZES[0], le=IMAGE_SIZES[-1])] | None = None
    """Height and width in pixels.  [default: the dataset's usual size]"""
    resize: Resize = "stretch"
    """Stretch to the square, or resize the shorter side to 1.5 times it and cut its middle."""


class Prepare(Stored):
    """The options of `gradshare data prepare`."""

    download: bool = False
    """Download the dataset from its publisher."""
    seed: Annotated[int, Field(ge=0)] | None = None
    """Draws glyphs, or the splits of images of your own.  [default: 0]"""
    split: str | None = None
    """Shares of your classes for train, val and test, or a JSON file that names them.
    [default: 0.64,0.16,0.2]"""
    group: str | None = None
    """Regular expression that finds the group of an image, such as its recording, in its path below
    --from."""
    skip_bad: bool = False
    """Leave out images that cannot be read."""
    force: bool = False
    """Replace what was prepared before."""


class Features(Stored):
    """The options of `gradshare data features`."""

    backbone: str
    """An .onnx file; the import path of a function or class that returns a torch module; or
    timm:MODEL."""
    backbone_option: Options = Field({})
    """Argument of the function, class or model; repeat for more."""
    weights: HomePath | None = None
    """File with the module's state dictionary, from safetensors or torch.save."""
    preprocess: Options = Field({})
    """Change of the backbone's preprocessing: size, crop, interpolation, mean or std; repeat for
    more."""
    out: str | None = None
    """Name of the new dataset.  [default: DATASET-features]"""
    force: bool = False
    """Replace features of that name."""


@click.group()
def data() -> None:
    """Prepare datasets, list them and look at them."""


@data.command(
    epilog="Datasets: " + "; ".join(f"{item.name}: {item.summary}" for item in DATASETS.values())
)
@click.argument("name")
@click.option("--from", "path", type=UserPath(), help="Read a local archive or folder.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["folder"]),
    help="Read --from as images of your own, and call the dataset NAME.",
)
@options_of(Prepare)
def prepare(name: str, path: Path | None, form: str | None, asked: Prepare) -> None:
    """Turn the images of dataset NAME into a store that opens at once.

    Glyphs are drawn; other datasets need --download or --from. Images of your own are prepared
    under any new NAME with --format folder --from PATH: a folder of class folders, an archive of
    one, or a CSV file with the columns path, label and, if you like, split and group.
    """
    check_name(name, asked.data_root, folder=form == "folder")
    if asked.download and (path is not None or form is not None):
        raise click.UsageError("give either --download or --from PATH")
    place = asked.data_root, asked.image_size, asked.resize
    # What is prepared already is not read again, and so its archives need not be there.
    if asked.download and (asked.force or not is_prepared(name, *place)):
        with _bar(f"Downloading {name}", DownloadColumn(), TransferSpeedColumn()) as report:
            path = download_dataset(name, asked.data_root, report)
    how = asked.model_dump(exclude={"download", "split"})
    with _class_bar(f"Preparing {name}") as report:
        store, written = prepare_dataset(
            name,
            path=path,
            folder=form == "folder",
            split=asked.split and _shares_or_file(asked.split),
            progress=report,
            **how,
        )
    if written:
        note = splits_note(store.name, store.source)
        drawn = f", {store.source['splits']}" if note else ""
        counts = ", ".join(f"{len(s.class_names):,} {n}" for n, s in store.splits.items())
        click.echo(f"Prepared {escaped(store.path)}: {counts} classes{drawn}")
        print_notes(store)
    else:
        click.echo(f"{escaped(store.path)} is prepared already; replace it with --force")


@data.command(name="list")
@options_of(Root)
def list_datasets(asked: Root) -> None:
    """List the datasets that are prepared, and those that can be."""
    print_datasets(asked.data_root)


@data.command()
@click.argument("dataset")
@options_of(Features)
def features(dataset: str, asked: Features) -> None:
    """Put the images of DATASET through a frozen backbone, once, and prepare what comes out.

    The new dataset holds a row of features for each image, with the splits and groups of DATASET.
    """
    out, root = asked.out or f"{dataset}-features", asked.data_root
    require_new_name(out)
    if prepared(root).get(out, [FORM]) != [FORM]:
        raise DataError(f"{root / out} holds images; give the features another name with --out")
    store = open_dataset(dataset, root, asked.image_size, asked.resize)
    network = Backbone(
        asked.backbone,
        options=asked.backbone_option,
        weights=asked.weights,
        preprocessing=asked.preprocess,
    )
    with _class_bar(f"Features of {dataset}") as report:
        written = write_features(
            store,
            network,
            features_path(root, out),
            force=asked.force,
            progress=report,
        )
    click.echo(f"Wrote {escaped(written.path)}: {len(written.mean):,} features of each image")


@data.command()
@click.argument("name")
@click.option(
    "--out",
    type=UserPath(dir_okay=False),
    help=f"Contact sheet to write: {', '.join(PICTURES)}. In others than .svg, boxes stand for "
    "letters that matplotlib's font lacks.  [default: NAME-SIZE.png]",
)
@options_of(Stored)
def show(name: str, out: Path | None, asked: Stored) -> None:
    """Print what dataset NAME holds, and draw some images of it."""
    if is_feature_store(path := features_path(asked.data_root, name)):
        if out is not None:
            raise ConfigError(f"--out {out}: {name} holds features, not images; leave --out out")
        print_features(FeatureStore.open(path))
        return
    if out is not None and out.suffix.lower() not in PICTURES:
        raise ConfigError(f"--out {out} is not a picture; end it in {', '.join(PICTURES)}")
    with _class_bar(f"Drawing {name}") as report:
        store = open_dataset(name, **dict(asked), progress=report)
    print_images(store)
    out = out or Path(f"{name}-{store.path.name}.png")
    text_stays_text = mpl.rc_context({"svg.fonttype": "none"})  # with the reader's fonts
    with text_stays_text, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            contact_sheet(store).savefig(out, dpi=120, bbox_inches="tight")
        except OSError as error:
            raise DataError(
                f"cannot write the contact sheet to {out} ({reason(error)}); choose another --out"
            ) from error
    click.echo(f"Contact sheet: {escaped(out)}")


def _shares_or_file(text: str) -> tuple[float, ...] | Path:
    try:
        return tuple(float(share) for share in text.split(","))
    except ValueError:
        return Path(text)


def _class_bar(description: str) -> AbstractContextManager[OnProgress]:
    return _bar(description, MofNCompleteColumn(), TextColumn("classes"))


@contextmanager
def _bar(description: str, *columns: ProgressColumn) -> Iterator[OnProgress]:
    """A progress bar on the terminal, which appears when it is first told of progress, and leaves
    nothing behind.
    """
    console = Console(stderr=True)
    bar = ProgressBar(
        *(SpinnerColumn(), TextColumn("{task.description}"), BarColumn()),
        *(*columns, TimeRemainingColumn()),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(description, total=None, visible=False)
    with bar:
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
