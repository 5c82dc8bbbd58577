"""`gradshare data` as its users see it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from gradshare.cli.contents import contact_sheet
from gradshare.cli.data import data
from gradshare.errors import DataError, GradshareError
from gradshare.tasks import datasets, glyphs
from gradshare.tasks.datasets import open_dataset
from gradshare.tasks.download import OnProgress
from gradshare.tasks.readers.dataset import Archive
from gradshare.tasks.registry import DATASETS, prepare_command
from tests.tasks.builders import make_classes, random_store
from tests.tasks.download_server import Server

BIRDS = ["crow", "finch", "heron", "lark", "owl"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in a folder of its own, with few glyphs, to be quick."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    few = glyphs.letters()[::100]
    monkeypatch.setattr(glyphs, "letters", lambda: few)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(data, arguments)


def output(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exception is None, result.output
    assert result.exit_code == 0
    return result.stdout


def usage_error(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 2
    return " ".join(result.stderr.partition("Error: ")[2].split())


def error(*arguments: str) -> str:
    """The text of an error that `gradshare` turns into one line."""
    result = run(*arguments)
    assert isinstance(result.exception, GradshareError), result.output
    return str(result.exception)


def test_a_folder_from_images_to_contact_sheet() -> None:
    make_classes(Path("birds"), BIRDS, images=3)
    Path("birds/owl/notes.txt").write_text("an owl")
    prepared = output(
        *("prepare", "my-birds", "--format", "folder", "--from", "birds"),
        *("--image-size", "16", "--seed", "5"),
    )
    said = (
        "Read 15 images of 5 classes\n"
        "Left out: 1 not an image (owl/notes.txt)\n"
        "Duplicates: 6 in two classes (crow/0.png = finch/0.png, crow/1.png = finch/1.png, "
    )
    assert prepared.startswith(
        f"Prepared data/my-birds/16: 3 train, 1 val, 1 test classes, drawn with seed 5\n{said}"
    )
    limits = (
        "Tasks can be up to 1-way (the classes of 'val'), with up to 3 shots + queries (the images "
        "of 'crow')\nThe default tasks do not fit: 5-way tasks need 5 classes, split "
        "'train' of my-birds has 3; lower ways, or give it more classes\n"
    )
    assert prepared.endswith(limits)
    shown = output("show", "my-birds")
    assert "my-birds, 3×16×16" in shown
    rows = [line.split() for line in shown.splitlines() if line.startswith("│")]
    assert [[cell for cell in row if cell != "│"] for row in rows] == [
        ["train", "3", "9", "3"],
        ["val", "1", "3", "3"],
        ["test", "1", "3", "3"],
    ]
    # Images of the shades 0, 40 and 80.
    assert "mean 0.1569 0.1569 0.1569, standard deviation 0.1281 0.1281 0.1281" in shown
    assert f"from: {Path('birds').absolute()}" in shown
    assert said in shown
    assert limits in shown
    assert "splits: drawn with seed 5\n" in shown
    assert shown.endswith("Contact sheet: my-birds-16.png\n")
    with Image.open("my-birds-16.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 16 * 12


def test_preparing_again_says_that_it_is_there() -> None:
    make_classes(Path("birds"), BIRDS)
    arguments = ["prepare", "my-birds", "--format", "folder", "--from", "birds"]
    arguments += ["--image-size", "8"]
    assert output(*arguments).startswith("Prepared data/my-birds/8: ")
    assert output(*arguments) == "data/my-birds/8 is prepared already; replace it with --force\n"
    assert output(*arguments, "--force").startswith("Prepared data/my-birds/8: ")


def test_shares_groups_and_unreadable_images_from_the_command_line() -> None:
    make_classes(Path("birds"), BIRDS, images=3)
    Path("birds/owl/3.png").touch()
    command = ["prepare", "my-birds", "--format", "folder", "--from", "birds", "--group", r"\d"]
    assert "leave it out with --skip-bad" in error(*command)
    assert error(*command, "--split", "0.6,0.4").startswith("the shares of the splits are 0.6, 0.4")
    assert error(*command, "--split", "none.json").startswith("none.json is not readable as JSON")
    prepared = output(*command, "--split", "0.4,0.3,0.3", "--skip-bad")
    assert (
        "1 train, 2 val, 2 test classes, drawn with seed 0 and shares 0.4, 0.3, 0.3\n" in prepared
    )
    assert "Read 15 images of 5 classes and 3 groups\n" in prepared
    assert "Left out: 1 unreadable (owl/3.png)\n" in prepared
    source = open_dataset("my-birds", "data").source
    assert prepare_command("my-birds", Path("data"), 84, "stretch", source) == (
        "gradshare data prepare my-birds --format folder --from FOLDER --image-size 84 --seed 0 "
        "--split 0.4,0.3,0.3 --group '\\d' --skip-bad"
    )


def test_the_list_has_what_is_prepared_and_what_can_be() -> None:
    random_store(Path("data/mine/4"), {"train": [2, 1], "val": [2], "test": [2]})
    Path("data/cut/8").mkdir(parents=True)
    Path("data/cut/8/index.json").write_text("{")
    result = run("list")
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("│")]
    cells = [[cell for cell in row if cell not in "│/"] for row in rows]
    assert cells[0] == ["mine", "4", "2", "1", "1", "7"]
    assert cells[1:] == [[name, "not", "prepared"] for name in DATASETS]
    assert result.stderr.startswith("the prepared dataset in data/cut/8 is damaged (")


def test_glyphs_are_drawn_without_a_path() -> None:
    assert output("prepare", "glyphs", "--image-size", "16", "--seed", "3").startswith(
        "Prepared data/glyphs/16: "
    )
    assert open_dataset("glyphs", Path("data"), 16).source["seed"] == 3
    shown = output("show", "glyphs", "--image-size", "16", "--out", "sheets/glyphs.png")
    assert "seed: 3" in shown
    assert shown.endswith("Contact sheet: sheets/glyphs.png\n")
    assert Path("sheets/glyphs.png").is_file()


def test_glyphs_are_drawn_when_they_are_shown() -> None:
    assert "glyphs, 1×28×28" in output("show", "glyphs")
    assert Path("data/glyphs/28/index.json").is_file()


def test_the_data_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADSHARE_DATA_ROOT", "elsewhere")
    output("prepare", "glyphs")
    assert Path("elsewhere/glyphs/28/index.json").is_file()
    output("prepare", "glyphs", "--data-root", "here")
    assert Path("here/glyphs/28/index.json").is_file()


def test_exactly_one_of_download_and_from() -> None:
    message = "give either --download or --from PATH"
    assert usage_error("prepare", "omniglot", "--download", "--from", "omniglot.zip") == message
    assert usage_error("prepare", "my-birds", "--format", "folder", "--download") == message
    missing = "is read from a file or folder; give its path (--from PATH), or --download if"
    assert missing in error("prepare", "omniglot")
    assert missing in error("prepare", "my-birds", "--format", "folder")
    assert error("prepare", "glyphs", "--from", ".") == (
        "--from changes nothing about dataset 'glyphs', which is drawn; leave it out"
    )
    assert error("prepare", "glyphs", "--download") == (
        "dataset 'glyphs' is not published for download; leave out --download"
    )


def test_an_unknown_name_is_said_before_what_it_lacks() -> None:
    assert error("prepare", "omniglott").startswith(
        "there is no dataset 'omniglott'; did you mean 'omniglot'?"
    )
    assert error("show", "omniglott").startswith(
        "there is no dataset 'omniglott'; did you mean 'omniglot'?"
    )


def test_showing_what_is_not_prepared_names_the_command() -> None:
    assert error("show", "cub") == (
        "dataset 'cub' is not prepared in data; run "
        "`gradshare data prepare cub --download --image-size 84`"
    )


def test_the_command_of_an_error_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    make_classes(Path("birds"), BIRDS)
    command = ["prepare", "my-birds", "--format", "folder", "--from", "birds"]
    output(*command, "--image-size", "8")
    message = error("show", "my-birds", "--image-size", "9")
    said = message.partition("`gradshare data ")[2].partition("`")[0]
    output(*said.replace("FOLDER", "birds").split())
    assert "my-birds, 3×9×9" in output("show", "my-birds", "--image-size", "9")


def test_download_asks_for_the_datasets_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(archive: Archive, folder: Path, progress: OnProgress) -> Path:
        progress(5, 10)
        raise DataError(f"{archive.filename} was asked for in {folder}")

    monkeypatch.setattr(datasets, "download", download)
    assert error("prepare", "cub", "--download") == (
        "CUB_200_2011.tgz was asked for in data/cub/archives"
    )


@pytest.mark.parametrize(
    ("options", "there"),
    [((), "84"), (("--image-size", "28", "--resize", "center-crop"), "28-center-crop")],
)
def test_nothing_is_downloaded_for_what_is_prepared(
    server: Server, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], there: str
) -> None:
    published = dataclasses.replace(DATASETS["cub"], archives=(server.archive(),))
    monkeypatch.setitem(DATASETS, "cub", published)
    classes = {"train": [2], "val": [2], "test": [2]}
    random_store(Path("data") / "cub" / there, classes, size=int(there[:2]))
    assert output("prepare", "cub", "--download", *options) == (
        f"data/cub/{there} is prepared already; replace it with --force\n"
    )
    assert server.requests == 0
    # What cannot be an archive of CUB, since the download is what is looked for.
    assert "a.zip" in error("prepare", "cub", "--download", *options, "--force")
    assert "a.zip" in error("prepare", "cub", "--download", "--image-size", "32")
    assert server.requests == 1


def test_a_sheet_that_cannot_be_written_is_named() -> None:
    Path("file").touch()
    message = error("show", "glyphs", "--out", "file/sheet.png")
    assert message.startswith("cannot write the contact sheet to file/sheet.png (")
    assert message.endswith("; choose another --out")


def test_help_lists_the_datasets() -> None:
    text = " ".join(output("prepare", "--help").split())
    for name in ("glyphs: ", "omniglot: ", "mini-imagenet: ", "cub: "):
        assert name in text
    assert "GRADSHARE_DATA_ROOT" in text


def test_a_contact_sheet_shows_the_stores_images(tmp_path: Path) -> None:
    store = random_store(
        tmp_path / "28", {"train": [3] * 9, "val": [2], "test": [1, 4]}, channels=3, size=28
    )

    def sheets(seed: int) -> list[npt.NDArray[np.uint8]]:
        figure = contact_sheet(store, classes=4, images=5, seed=seed)
        return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]

    # Four rows of train, one of val, two of test, with a white line after each image.
    assert [sheet.shape for sheet in sheets(1)] == [(29 * rows, 29 * 5, 3) for rows in (4, 1, 2)]
    image = store.splits["test"].images[store.splits["test"].starts[0]]
    assert np.array_equal(sheets(1)[2][:28, :28], image.transpose(1, 2, 0))
    assert np.array_equal(sheets(1)[0], sheets(1)[0])
    assert not np.array_equal(sheets(1)[0], sheets(2)[0])


def test_long_and_odd_class_names_are_shown_as_they_are(tmp_path: Path) -> None:
    names = ["[bold]", "a" * 200, "cost $3 to $4", "red\x1b[31m", "two\nlines", "比較🦊"]
    make_classes(tmp_path / "odd", names, images=1)
    output("prepare", "odd", "--format", "folder", "--from", str(tmp_path / "odd"))
    figure = contact_sheet(open_dataset("odd", Path("data")))
    shown = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    expected = ["[bold]", "a" * 39 + "…", "cost $3 to $4", "red\\x1b[31m", "two\nlines", "比較🦊"]
    assert sorted(shown) == expected


def test_letters_that_no_font_has_disturb_nobody_and_are_whole_in_an_svg(tmp_path: Path) -> None:
    make_classes(tmp_path / "odd", ["crow", "owl", "比較🦊"], images=1)
    output("prepare", "odd", "--format", "folder", "--from", str(tmp_path / "odd"))
    assert output("show", "odd").endswith("Contact sheet: odd-84.png\n")
    assert output("show", "odd", "--out", "odd.svg").endswith("Contact sheet: odd.svg\n")
    assert ">比較🦊</text>" in Path("odd.svg").read_text(encoding="utf-8")


def test_the_suffix_of_a_contact_sheet_decides_its_format_and_no_other_file_is_written() -> None:
    output("show", "glyphs", "--out", "sheet.JPG")
    with Image.open("sheet.JPG") as sheet:
        assert sheet.format == "JPEG"
    Path("results.json").write_text("{}")
    for name in ("results.json", "report.html", "none"):
        assert error("show", "glyphs", "--out", name) == (
            f"--out {name} is not a picture; end it in .png, .jpg, .pdf, .svg, .webp"
        )
    assert Path("results.json").read_text() == "{}"
    assert not Path("none").exists()


@pytest.mark.parametrize("columns", ["0", "20"])
def test_a_narrow_terminal_hides_no_numbers(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    wide = output("show", "glyphs")
    monkeypatch.setenv("COLUMNS", columns)
    assert output("show", "glyphs") == wide


def test_a_stores_name_is_neither_markup_nor_a_command_to_the_terminal() -> None:
    random_store(Path("data/odd/4"), {"train": [2], "val": [2], "test": [2]})
    index = Path("data/odd/4/index.json")
    index.write_text(index.read_text().replace('"noise"', '"[/x]\\u001b[31m"'))
    assert "[/x]\\x1b[31m, 1×4×4" in output("show", "odd")
