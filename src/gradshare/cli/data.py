"""`gradshare data`: prepare a dataset, and show what is in it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import matplotlib as mpl
import numpy as np
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

from gradshare.cli.options import DATA_ROOT_VARIABLE, UserPath
from gradshare.errors import ConfigError, DataError, escaped
from gradshare.tasks.class_splits import SHARES
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
from gradshare.tasks.image_tasks import image_splits
from gradshare.tasks.images import Resize
from gradshare.tasks.notes import some
from gradshare.tasks.registry import DATASETS, DEFAULT_DATA_ROOT, prepared
from gradshare.tasks.store import ImageStore

PICTURES = (".png", ".jpg", ".pdf", ".svg", ".webp")

MOST_FILES = 10
"""So many files are printed by name."""

_NOTES = {"Left out": "skipped", "Duplicates": "duplicates"}
"""What a store's source has of the images that were read."""

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
    """Prepare datasets, list them and look at them."""


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
        drawn = f", {store.drawn}" if store.drawn else ""
        counts = ", ".join(f"{count:,} {split}" for split, count in _class_counts(store).items())
        click.echo(f"Prepared {escaped(store.path)}: {counts} classes{drawn}")
        _print_notes(store)
    else:
        click.echo(f"{escaped(store.path)} is prepared already; replace it with --force")


@data.command(name="list")
@data_root_option
def list_datasets(data_root: Path) -> None:
    """List the datasets that are prepared, and those that can be."""
    table = Table()
    for column in ("dataset", "prepared as", "classes: train / val / test", "images"):
        table.add_column(column)
    there = prepared(data_root)
    for name, forms in there.items():
        for form in forms:
            try:
                store = ImageStore.open(data_root / name / form)
            except DataError as error:
                click.echo(str(error), err=True)
                continue
            classes = " / ".join(f"{count:,}" for count in _class_counts(store).values())
            images = sum(int(split.counts.sum()) for split in store.splits.values())
            table.add_row(escaped(name), escaped(form), classes, f"{images:,}")
    for name in DATASETS:
        if name not in there:
            table.add_row(name, "not prepared")
    Console(width=WIDE).print(table)


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


def _print_contents(store: ImageStore) -> None:
    channels, height, width = store.image_shape
    title = Text(escaped(f"{store.name}, {channels}×{height}×{width}"))
    table = Table(title=title, title_justify="left")
    table.add_column("split")
    for column in ("classes", "images", "images a class"):
        table.add_column(column, justify="right")
    for split in store.splits.values():
        least, most = split.counts.min(), split.counts.max()
        table.add_row(
            split.name,
            f"{len(split.class_names):,}",
            f"{split.counts.sum():,}",
            f"{least:,}" if least == most else f"{least:,} to {most:,}",
        )
    Console(width=WIDE).print(table)
    mean, std = (" ".join(f"{value:.4f}" for value in values) for values in (store.mean, store.std))
    click.echo(f"Pixels of train, in [0, 1]: mean {mean}, standard deviation {std}")
    if store.rotate_classes:
        click.echo("Training episodes turn each class by a random multiple of 90°")
    source = {name: value for name, value in store.source.items() if name not in _NOTES.values()}
    click.echo(yaml.safe_dump(source, sort_keys=False, allow_unicode=True).rstrip())
    _print_notes(store)


def _class_counts(store: ImageStore) -> dict[str, int]:
    return {name: len(split.class_names) for name, split in store.splits.items()}


def _print_notes(store: ImageStore) -> None:
    """Print how much was read, what was left out, and which tasks it is enough for."""
    splits = store.splits.values()
    counts = np.concatenate([split.counts for split in splits])
    groups = store.splits["train"].groups
    of_groups = "" if groups is None else f" and {len(np.unique(groups)):,} groups"
    click.echo(f"Read {counts.sum():,} images of {len(counts):,} classes{of_groups}")
    for title, kind in _NOTES.items():
        notes = [
            f"{len(files):,} {reason} ({some(files, MOST_FILES)})"
            for reason, files in store.source.get(kind, {}).items()
        ]
        if notes:
            click.echo(escaped(f"{title}: {', '.join(notes)}"))
    fewest = min(splits, key=lambda split: len(split.class_names))
    smallest = [name for split in splits for name in split.class_names][counts.argmin()]
    limits = (
        f"Tasks can be up to {len(fewest.class_names)}-way (the classes of {fewest.name!r}), with "
        f"up to {counts.min()} shots + queries (the images of {smallest!r})"
    )
    click.echo(escaped(limits))
    try:
        image_splits(store)
    except DataError as error:
        click.echo(f"The default tasks do not fit: {error}")


def _shares_or_file(text: str) -> tuple[float, ...] | Path:
    try:
        return tuple(float(share) for share in text.split(","))
    except ValueError:
        return Path(text)


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
