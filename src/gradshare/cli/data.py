"""`gradshare data`: prepare a dataset, and show what is in it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
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
from gradshare.cli.contact_sheet import contact_sheet
from gradshare.cli.contents import print_datasets, print_features, print_images, print_notes
from gradshare.cli.options import DATA_ROOT_VARIABLE, UserPath, pairs
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
    Preprocessing,
    features_path,
    is_feature_store,
)
from gradshare.tasks.images import Resize
from gradshare.tasks.readers.class_splits import SHARES
from gradshare.tasks.registry import DATASETS, DEFAULT_DATA_ROOT, prepared, require_new_name
from gradshare.tasks.store import splits_note

PICTURES = (".png", ".jpg", ".pdf", ".svg", ".webp")

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
    """Prepare datasets, list them and look at them."""


@data.command(
    epilog="Datasets: " + "; ".join(f"{item.name}: {item.summary}" for item in DATASETS.values())
)
@click.argument("name")
@click.option("--download", is_flag=True, help="Download the dataset from its publisher.")
@click.option("--from", "path", type=UserPath(), help="Read a local archive or folder.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["folder"]),
    help="Read --from as images of your own, and call the dataset NAME.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    help="Draws glyphs, or the splits of images of your own.  [default: 0]",
)
@click.option(
    "--split",
    metavar="SHARES|FILE",
    help="Shares of your classes for train, val and test, or a JSON file that names them.  "
    f"[default: {','.join(f'{share:g}' for share in SHARES)}]",
)
@click.option(
    "--group",
    metavar="REGEX",
    help="Finds the group of an image, such as its recording, in its path below --from.",
)
@click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be read.")
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
    split: str | None,
    group: str | None,
    skip_bad: bool,
    force: bool,
    image_size: int | None,
    resize: Resize,
    data_root: Path,
) -> None:
    """Turn the images of dataset NAME into a store that opens at once.

    Glyphs are drawn; other datasets need --download or --from. Images of your own are prepared
    under any new NAME with --format folder --from PATH: a folder of class folders, an archive of
    one, or a CSV file with the columns path, label and, if you like, split and group.
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
            split=split and _shares_or_file(split),
            group=group,
            skip_bad=skip_bad,
            force=force,
            progress=_reporter(bar, f"Preparing {name}"),
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
@data_root_option
def list_datasets(data_root: Path) -> None:
    """List the datasets that are prepared, and those that can be."""
    print_datasets(data_root)


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
    name: str, out: Path | None, image_size: int | None, resize: Resize, data_root: Path
) -> None:
    """Print what dataset NAME holds, and draw some images of it."""
    if is_feature_store(path := features_path(data_root, name)):
        if out is not None:
            raise ConfigError(f"--out {out}: {name} holds features, not images; leave --out out")
        print_features(FeatureStore.open(path))
        return
    if out is not None and out.suffix.lower() not in PICTURES:
        raise ConfigError(f"--out {out} is not a picture; end it in {', '.join(PICTURES)}")
    with _class_bar() as bar:
        store = open_dataset(
            name, data_root, image_size, resize, progress=_reporter(bar, f"Drawing {name}")
        )
    print_images(store)
    out = out or Path(f"{name}-{store.path.name}.png")
    text_stays_text = mpl.rc_context({"svg.fonttype": "none"})  # with the reader's fonts
    with text_stays_text, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            contact_sheet(store).savefig(out, dpi=120, bbox_inches="tight")
        except OSError as error:
            raise DataError(
                f"cannot write the contact sheet to {out} ({reason(error)}); choose another --out"
            ) from error
    click.echo(f"Contact sheet: {escaped(out)}")
    if out.suffix.lower() != ".svg" and any("missing from font" in str(w.message) for w in warned):
        click.echo(
            "Boxes in it stand for letters that matplotlib's font lacks; an .svg has all of them"
        )


def _shares_or_file(text: str) -> tuple[float, ...] | Path:
    try:
        return tuple(float(share) for share in text.split(","))
    except ValueError:
        return Path(text)


def _progress_bar(*columns: ProgressColumn) -> ProgressBar:
    """A progress bar on the terminal, which leaves nothing behind when it is done."""
    console = Console(stderr=True)
    return ProgressBar(
        *(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), *columns),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _class_bar() -> ProgressBar:
    return _progress_bar(MofNCompleteColumn(), TextColumn("classes"), TimeRemainingColumn())


def _reporter(bar: ProgressBar, description: str) -> OnProgress:
    """A callback that shows progress; nothing appears before its first call."""
    task = bar.add_task(description, total=None, visible=False)

    def report(done: int, total: int | None) -> None:
        bar.update(task, completed=done, total=total, visible=True)

    return report
