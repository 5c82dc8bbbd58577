"""From a name to an opened store: what is opened, prepared, and said when it cannot be."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradshare.errors import DataError
from gradshare.tasks import ImageStore, datasets, glyphs, writing
from gradshare.tasks.datasets import (
    download_dataset,
    open_dataset,
    prepare_dataset,
    store_path,
)
from gradshare.tasks.download import OnProgress
from gradshare.tasks.readers.dataset import Archive, Dataset, FoundClass, Notes, Reader
from gradshare.tasks.registry import DATASETS, prepared
from gradshare.tasks.store import SPLITS
from tests.tasks.builders import make_classes, make_image, random_images, random_store

KNOWN = [
    *("glyphs", "omniglot", "omniglot-vinyals", "omniglot-vinyals-1200", "omniglot-lake"),
    *("mini-imagenet", "tiered-imagenet", "cifar-fs", "fc100", "cub", "cub-140"),
]

COUNTS = {"train": [3, 2], "val": [2], "test": [2]}


def read_noise(notes: Notes) -> list[FoundClass]:
    return [
        FoundClass(split, f"{split} class {number}", list(random_images(count)[:, 0]))
        for split, counts in COUNTS.items()
        for number, count in enumerate(counts)
    ]


class Failing:
    """Images of which the second fails when it is read."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 2

    def __getitem__(self, row: int) -> object:
        if row:
            raise self.error
        return random_images(1)[0, 0]


def noise(
    read: Reader = read_noise,
    archives: tuple[Archive, ...] = (Archive("https://example.org/noise.tar", "noise.tar", None),),
) -> Dataset:
    return Dataset("noise", "grey noise", 1, 12, True, read, archives=archives)


def failing(error: Exception) -> Dataset:
    return noise(lambda _: [FoundClass("train", "a", Failing(error))])  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def few_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dataset of noise beside the others, and few glyphs, to be quick."""
    monkeypatch.setitem(DATASETS, "noise", noise())
    few = glyphs.letters()[::100]
    monkeypatch.setattr(glyphs, "letters", lambda: few)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root that does not exist yet."""
    return tmp_path / "data"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "noise.tar"
    path.touch()
    return path


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    return make_classes(tmp_path / "birds", ["crow", "finch", "heron", "lark", "owl"])


def images_of(store: ImageStore) -> bytes:
    return (store.path / "images.npy").read_bytes()


def message_of(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    return str(caught.value)


# Opening


def test_the_registry_knows_every_dataset_by_its_name() -> None:
    assert list(DATASETS) == [*KNOWN, "noise"]
    for name, dataset in DATASETS.items():
        assert dataset.name == name
        assert dataset.summary
        assert (dataset.read is None) == (name == "glyphs")


def test_glyphs_are_drawn_when_they_are_opened_first(root: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    number = len(glyphs.letters())
    store = open_dataset("glyphs", root, progress=lambda *call: calls.append(call))
    assert calls == [(done, number) for done in range(1, number + 1)]
    assert store.path == root / "glyphs" / "28"
    assert store.image_shape == (1, 28, 28)
    assert not store.rotate_classes
    assert store.source["seed"] == 0
    assert store.source["gradshare"]
    again = open_dataset("glyphs", root, progress=lambda *call: calls.append(call))
    assert len(calls) == number
    assert images_of(again) == images_of(store)


def test_glyphs_at_another_size(root: Path) -> None:
    assert open_dataset("glyphs", root, image_size=16).image_shape == (1, 16, 16)
    assert prepared(root) == {"glyphs": ["16"]}


def test_a_prepared_dataset_is_opened_at_its_usual_size(root: Path, archive: Path) -> None:
    written = prepare_dataset("noise", root, path=archive).store
    store = open_dataset("noise", root)
    assert store.path == written.path == root / "noise" / "12"
    assert store.rotate_classes
    assert store.source["from"] == str(archive)
    assert store.source["resize"] == "stretch"


def test_paths_may_be_text(root: Path, archive: Path) -> None:
    written = prepare_dataset("noise", str(root), path=str(archive)).store
    assert open_dataset("noise", str(root)).path == written.path == root / "noise" / "12"


def test_an_unknown_name_is_answered_with_the_nearest(root: Path) -> None:
    own = "prepare images of your own with `gradshare data prepare NAME --format folder --from "
    assert message_of(lambda: open_dataset("omniglott", root)) == (
        "there is no dataset 'omniglott'; did you mean 'omniglot'? there are "
        f"{', '.join(KNOWN)}, noise, and prepared in {root}: nothing else; {own}FOLDER`"
    )
    assert message_of(lambda: open_dataset("zzz", root)) == (
        f"there is no dataset 'zzz'; there are {', '.join(KNOWN)}, noise, and prepared in "
        f"{root}: nothing else; {own}FOLDER`"
    )


def test_an_unknown_name_is_answered_with_the_users_own_datasets(root: Path, birds: Path) -> None:
    prepare_dataset("my-birds", root, path=birds, folder=True, image_size=8)
    message = message_of(lambda: open_dataset("my-bird", root))
    assert "did you mean 'my-birds'? " in message
    assert f"cub-140, noise, and prepared in {root}: my-birds; " in message


@pytest.mark.parametrize("name", ["../secret", "", ".", "noise/12"])
def test_a_name_that_is_a_path_opens_nothing(root: Path, archive: Path, name: str) -> None:
    prepare_dataset("noise", root, path=archive)
    assert f"there is no dataset {name!r}" in message_of(lambda: open_dataset(name, root))


def test_a_dataset_not_prepared_is_answered_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(DATASETS, "unpublished", noise(archives=()))
    assert message_of(lambda: open_dataset("omniglot", Path("data"), 32)) == (
        "dataset 'omniglot' is not prepared in data; run "
        "`gradshare data prepare omniglot --download --image-size 32`"
    )
    assert message_of(lambda: open_dataset("cub", Path("my data"), resize="center-crop")) == (
        "dataset 'cub' is not prepared in my data; run `gradshare data prepare cub --download "
        "--image-size 84 --resize center-crop --data-root 'my data'`"
    )
    assert message_of(lambda: open_dataset("unpublished", Path("data"))) == (
        "dataset 'unpublished' is not prepared in data; run "
        "`gradshare data prepare unpublished --from PATH --image-size 12`"
    )


def test_a_dataset_prepared_otherwise_is_answered_with_what_there_is(
    root: Path, archive: Path
) -> None:
    prepare_dataset("noise", root, path=archive, image_size=8)
    prepare_dataset("noise", root, path=archive, image_size=9, resize="center-crop")
    assert message_of(lambda: open_dataset("noise", root)) == (
        f"dataset 'noise' is prepared in {root} at 8 and 9-center-crop, not at 12; use what there "
        f"is, or run `gradshare data prepare noise --download --image-size 12 --data-root {root}`"
    )
    assert open_dataset("noise", root, 9, "center-crop").image_shape == (1, 9, 9)


def test_a_store_of_another_size_than_its_folders_name_is_refused(root: Path) -> None:
    random_store(root / "mine" / "16", {split: [1] for split in SPLITS}, size=8)
    opened = message_of(lambda: open_dataset("mine", root))
    prepared_again = message_of(
        lambda: prepare_dataset("mine", root, path=root, folder=True, image_size=16)
    )
    assert opened == prepared_again
    assert opened == (
        f"the images in {root / 'mine' / '16'} are of 8 pixels, not 16; name the folder by their "
        "size"
    )


def test_a_folder_dataset_is_opened_at_the_one_size_it_has(root: Path, birds: Path) -> None:
    prepare_dataset("my-birds", root, path=birds, folder=True, image_size=9)
    assert open_dataset("my-birds", root).image_shape == (3, 9, 9)
    prepare_dataset("my-birds", root, path=birds, folder=True, image_size=8, resize="center-crop")
    assert open_dataset("my-birds", root, resize="center-crop").image_shape == (3, 8, 8)
    assert open_dataset("my-birds", root).image_shape == (3, 9, 9)
    prepare_dataset("my-birds", root, path=birds, folder=True, image_size=10)
    assert message_of(lambda: open_dataset("my-birds", root)) == (
        f"dataset 'my-birds' is prepared in {root} at 10 and 8-center-crop and 9; say which with "
        "--image-size and --resize"
    )
    assert message_of(lambda: open_dataset("my-birds", root, 11)).endswith(
        f"run `gradshare data prepare my-birds --format folder --from FOLDER --image-size 11 "
        f"--data-root {root}`"
    )


def test_a_damaged_store_is_not_prepared_again_by_itself(root: Path) -> None:
    path = open_dataset("glyphs", root).path
    (path / "index.json").write_text("{", encoding="utf-8")
    message = message_of(lambda: open_dataset("glyphs", root))
    assert message.endswith(f"delete {path} and run `gradshare data prepare` again")


# Preparing


def test_what_is_prepared_already_is_left_as_it_is(root: Path, archive: Path) -> None:
    def unexpected(notes: Notes) -> list[FoundClass]:
        pytest.fail("the dataset was read again")

    store, written = prepare_dataset("noise", root, path=archive)
    assert written
    DATASETS["noise"] = noise(unexpected)
    again, written = prepare_dataset("noise", root, path=archive)
    assert not written
    assert again.path == store.path


def test_a_store_that_other_options_wrote_is_not_taken_for_the_one_that_is_asked_for(
    root: Path, birds: Path, tmp_path: Path
) -> None:
    def again(path: Path = birds, **changed: Any) -> str:
        return message_of(lambda: prepare_dataset("own", root, path=path, folder=True, **changed))

    prepare_dataset("own", root, path=birds, folder=True, group="(.*)_|(.*)", seed=3)
    remedy = "prepare it anew with --force, or choose another name or --data-root"
    assert again(group="(.*)_|(.*)") == (
        f"{root / 'own' / '84'} was prepared with --seed 3, now 0: {remedy}"
    )
    assert "--group (.*)_|(.*), now not given; --skip-bad not given, now given: " in again(
        seed=3, skip_bad=True
    )
    assert "--split not given, now 0.6,0.2,0.2; " in again(split=(0.6, 0.2, 0.2))
    assert f"--from {birds}, now {tmp_path}; " in again(tmp_path)
    with pytest.raises(DataError, match="was prepared with --seed 0, now 1: prepare it anew with"):
        prepare_dataset("glyphs", root)
        prepare_dataset("glyphs", root, seed=1)


def test_changes_of_own_images_are_noticed(root: Path, birds: Path) -> None:
    def prepare() -> bool:
        return prepare_dataset("own", root, path=birds, folder=True, image_size=8).written

    assert prepare()
    (birds / ".DS_Store").touch()
    assert not prepare()
    make_image(birds / "owl" / "new.png")
    assert message_of(prepare).startswith(
        f"what {root / 'own' / '8'} was prepared from has changed since: prepare it anew with"
    )


def test_changes_of_images_in_a_table_are_noticed(root: Path, birds: Path) -> None:
    table = birds.parent / "birds.csv"
    rows = [f"{image.relative_to(table.parent)},{image.parent.name}" for image in birds.glob("*/*")]
    table.write_text("\n".join(["path,label", *rows]), encoding="utf-8")

    def prepare() -> bool:
        return prepare_dataset("own", root, path=table, folder=True, image_size=8).written

    assert prepare()
    assert not prepare()
    make_image(birds / "owl" / "0.png", shade=200)
    assert "was prepared from has changed since" in message_of(prepare)


def test_force_replaces_a_store(root: Path) -> None:
    first = prepare_dataset("glyphs", root, seed=0).store
    before = images_of(first)
    second, written = prepare_dataset("glyphs", root, seed=1, force=True)
    assert written
    assert second.source["seed"] == 1
    assert images_of(second) != before
    assert images_of(prepare_dataset("glyphs", root, seed=0, force=True).store) == before
    assert [path.name for path in (root / "glyphs").iterdir()] == ["28"]


def test_force_that_fails_keeps_the_old_store(root: Path, archive: Path) -> None:
    before = images_of(prepare_dataset("noise", root, path=archive).store)
    DATASETS["noise"] = failing(DataError("the archive is damaged"))
    message = message_of(lambda: prepare_dataset("noise", root, path=archive, force=True))
    assert message == "the archive is damaged"
    assert images_of(open_dataset("noise", root)) == before
    assert [path.name for path in (root / "noise").iterdir()] == ["12"]


def test_an_opened_store_outlives_its_replacement(root: Path) -> None:
    first = prepare_dataset("glyphs", root, seed=0).store
    before = np.array(first.splits["train"].images)
    prepare_dataset("glyphs", root, seed=1, force=True)
    np.testing.assert_array_equal(first.splits["train"].images, before)


def test_a_store_can_be_read_by_whoever_can_read_its_data_root(root: Path, archive: Path) -> None:
    store = prepare_dataset("noise", root, path=archive).store
    plain = root / "noise" / "plain"
    plain.mkdir()
    assert store.path.stat().st_mode == plain.stat().st_mode


def test_of_two_that_prepare_at_once_the_second_waits_for_the_first(
    root: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_reads, second_waits = threading.Event(), threading.Event()
    reads, said = [], []

    def warn(message: str, *values: object) -> None:
        said.append(message % values)
        second_waits.set()

    def read(notes: Notes) -> list[FoundClass]:
        reads.append(notes.path)
        first_reads.set()
        assert second_waits.wait(30)
        return read_noise(notes)

    monkeypatch.setattr(writing.log, "warning", warn)
    DATASETS["noise"] = noise(read)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(prepare_dataset, "noise", root, path=archive)
        assert first_reads.wait(30)
        second = pool.submit(prepare_dataset, "noise", root, path=archive)
        assert first.result(60).written
        assert not second.result(60).written
    assert len(reads) == 1
    folder = root / "noise"
    assert said == [
        f"another process is preparing {folder / '12'}; waiting for it (if it was killed, delete "
        f"{folder / '.12.lock'})"
    ]
    assert [path.name for path in folder.iterdir()] == ["12"]


def test_what_a_killed_process_left_is_cleared_by_the_next(root: Path, tmp_path: Path) -> None:
    birds = make_classes(tmp_path / "birds", ["crow", "finch", "owl"])
    code = (
        "import gradshare as gs\n"
        f"gs.prepare_dataset('glyphs', {str(root)!r}, progress=lambda *_: print('!', flush=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"!\n"
        process.kill()
        process.wait()
    assert (root / "glyphs" / ".28.partial").is_dir()
    with writing.writing(root / "glyphs" / "9") as living:
        prepare_dataset("own", root, path=birds, folder=True, image_size=8)
        assert [path.name for path in (root / "own").iterdir()] == ["8"]
        assert sorted((root / "glyphs").iterdir()) == [root / "glyphs" / ".9.lock", living]


@pytest.mark.parametrize("error", [DataError("no"), OSError("no"), KeyboardInterrupt()])
def test_a_preparation_that_fails_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def read(notes: Notes) -> list[FoundClass]:
        raise error

    monkeypatch.setitem(DATASETS, "noise", noise(read))
    with pytest.raises((DataError, KeyboardInterrupt)):
        prepare_dataset("noise", tmp_path / "new" / "root", path=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("force", [False, True])
def test_files_that_are_no_store_are_not_overwritten(
    root: Path, archive: Path, force: bool
) -> None:
    target = store_path(root, "noise", 12)
    target.mkdir(parents=True)
    (target / "precious.txt").write_text("mine", encoding="utf-8")
    message = message_of(lambda: prepare_dataset("noise", root, path=archive, force=force))
    assert message == (
        f"{target} is in the way: it holds files but no prepared dataset; move it elsewhere"
    )
    assert [path.name for path in target.iterdir()] == ["precious.txt"]


def test_a_folder_of_images(root: Path, birds: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    store, _ = prepare_dataset(
        "my-birds", root, path=birds, folder=True, progress=lambda *call: calls.append(call)
    )
    assert store.path == root / "my-birds" / "84"
    assert store.image_shape == (3, 84, 84)
    assert not store.rotate_classes
    assert store.source["from"] == str(birds)
    assert (store.source["splits"], store.source["seed"]) == ("drawn with seed 0", 0)
    assert calls == [(done, 5) for done in range(1, 6)]
    names = [name for split in store.splits.values() for name in split.class_names]
    assert sorted(names) == ["crow", "finch", "heron", "lark", "owl"]


def test_split_folders_with_a_class_in_common_are_refused(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "birds"
    for split, name in (("train", "owl"), ("val", "lark"), ("test", "owl")):
        make_classes(folder / split, [name])
    assert message_of(lambda: prepare_dataset("mine", root, path=folder, folder=True)) == (
        f"class 'owl' of {folder} is in 'test' and in 'train': splits must not overlap; give it to "
        "one of them"
    )


def test_a_folder_of_grey_images_has_one_channel(root: Path, tmp_path: Path) -> None:
    folder = make_classes(tmp_path / "shapes", ["circle", "square", "star"], mode="L")
    store, _ = prepare_dataset("shapes", root, path=folder, folder=True, image_size=8)
    assert store.image_shape == (1, 8, 8)


@pytest.mark.parametrize("name", ["my/birds", "..", ".hidden", "-birds", "two birds", ""])
def test_a_name_that_cannot_be_a_folder_is_refused(root: Path, birds: Path, name: str) -> None:
    assert message_of(lambda: prepare_dataset(name, root, path=birds, folder=True)) == (
        f"{name!r} cannot name a dataset, since it names its folder; use letters, digits, '.', "
        "'_' and '-', the first a letter or digit"
    )
    assert not root.exists()


@pytest.mark.parametrize("name", ["cub", "CUB", "mini_ImageNet", "miniimagenet"])
def test_a_folder_cannot_take_a_published_name(root: Path, birds: Path, name: str) -> None:
    assert message_of(lambda: prepare_dataset(name, root, path=birds, folder=True)) == (
        f"{name!r} is the name of a dataset with a format of its own; leave out --format folder, "
        "or give your images another name"
    )


def test_a_new_name_without_the_folder_format_is_unknown(root: Path, birds: Path) -> None:
    message = message_of(lambda: prepare_dataset("my-birds", root, path=birds))
    assert message.startswith("there is no dataset 'my-birds'; ")
    assert "`gradshare data prepare NAME --format folder --from FOLDER`" in message


@pytest.mark.parametrize("size", [0, 7, 1025, -28])
def test_a_size_out_of_range_is_named(root: Path, archive: Path, size: int) -> None:
    message = message_of(lambda: prepare_dataset("noise", root, path=archive, image_size=size))
    assert message == f"image size {size} is out of range; use 8 to 1024 pixels"


def test_arguments_that_would_change_nothing_are_refused(root: Path, archive: Path) -> None:
    assert message_of(lambda: prepare_dataset("noise", root, path=archive, seed=3)) == (
        "--seed changes nothing about dataset 'noise', which is read in its published split; leave "
        "it out"
    )
    assert message_of(lambda: prepare_dataset("noise", root, path=archive, group="_")) == (
        "--group changes nothing about dataset 'noise', which is read in its published split; "
        "leave it out"
    )
    assert message_of(lambda: prepare_dataset("glyphs", root, path=archive)) == (
        "--from changes nothing about dataset 'glyphs', which is drawn; leave it out"
    )
    assert message_of(lambda: prepare_dataset("glyphs", root, resize="center-crop")) == (
        "--resize changes nothing about dataset 'glyphs', which is drawn; leave it out"
    )


def test_a_data_root_within_the_images_is_refused(birds: Path) -> None:
    root = birds / "data"
    assert message_of(lambda: prepare_dataset("own", root, path=birds, folder=True)) == (
        f"{birds} is to be read, and the data root {root} is in it; give another --data-root"
    )
    assert not root.exists()


def test_a_path_is_needed_and_must_exist(root: Path, tmp_path: Path) -> None:
    assert message_of(lambda: prepare_dataset("noise", root)) == (
        "dataset 'noise' is read from a file or folder; give its path (--from PATH), or --download "
        "if it is published"
    )
    missing = tmp_path / "none.tar"
    assert message_of(lambda: prepare_dataset("noise", root, path=missing)) == (
        f"there is no {missing}; give the archive or folder of 'noise'"
    )


def test_too_little_room_is_noticed_before_writing(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9, 10**5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    need = len(glyphs.letters()) * 20 * 84 * 84 / 1e9
    assert message_of(lambda: prepare_dataset("glyphs", root, image_size=84)) == (
        f"{root / 'glyphs' / '84'} needs {need:.1f} GB, {root / 'glyphs'} has 0.0 GB free; free "
        "some, choose a smaller --image-size, or another --data-root"
    )
    assert not (root / "glyphs").exists()


def test_a_disk_that_fills_up_is_named(root: Path, archive: Path) -> None:
    DATASETS["noise"] = failing(OSError(errno.ENOSPC, "No space left on device"))
    assert message_of(lambda: prepare_dataset("noise", root, path=archive)) == (
        f"cannot prepare 'noise' in {root / 'noise' / '12'} ([Errno 28] No space left on device); "
        "free space there, or choose a folder you may write to with --data-root"
    )
    assert not (root / "noise").exists()


def test_a_source_that_fails_is_named_and_not_the_store(root: Path, archive: Path) -> None:
    DATASETS["noise"] = failing(OSError(errno.EIO, "Input/output error"))
    assert message_of(lambda: prepare_dataset("noise", root, path=archive)) == (
        f"{archive} cannot be read (Input/output error); mend its permissions, or give a copy that "
        "can be read"
    )
    assert not (root / "noise").exists()


def test_an_image_that_cannot_be_read_is_named(root: Path, birds: Path) -> None:
    path = birds / "owl" / "1.png"
    path.write_bytes(path.read_bytes()[:40])
    message = message_of(lambda: prepare_dataset("my-birds", root, path=birds, folder=True))
    assert message.startswith(f"{path} is not a readable image (")
    assert message.endswith("; replace or remove it, or leave it out with --skip-bad")


@pytest.mark.parametrize("closed", [".", "owl"])
def test_a_folder_that_may_not_be_read_is_named(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    # Not by its permissions: they do not bind an administrator, who may run the tests.
    birds = make_classes(tmp_path / "birds", ["crow", "lark", "owl"])
    iterdir = Path.iterdir

    def guarded(path: Path) -> Iterator[Path]:
        if path == birds / closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", guarded)
    assert message_of(lambda: prepare_dataset("my-birds", root, path=birds, folder=True)) == (
        f"{birds / closed} cannot be read (Permission denied); mend its permissions, or give a "
        "copy that can be read"
    )


def test_a_data_root_that_is_a_file_is_named(root: Path, archive: Path) -> None:
    root.write_text("", encoding="utf-8")
    message = message_of(lambda: prepare_dataset("noise", root, path=archive))
    assert message.startswith(f"cannot prepare 'noise' in {root / 'noise' / '12'} (")
    assert message.endswith("choose a folder you may write to with --data-root")


# Downloading


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was downloaded, without a network."""
    urls: list[str] = []

    def download(archive: Archive, folder: Path, progress: OnProgress | None) -> Path:
        urls.append(archive.url)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / archive.filename).touch()
        if progress is not None:
            progress(1, 1)
        return folder / archive.filename

    monkeypatch.setattr(datasets, "download", download)
    return urls


def test_one_archive_is_handed_on_itself(root: Path, downloads: list[str]) -> None:
    path = download_dataset("noise", root)
    assert path == root / "noise" / "archives" / "noise.tar"
    assert downloads == ["https://example.org/noise.tar"]
    prepare_dataset("noise", root, path=path)
    assert prepared(root) == {"noise": ["12"]}


def test_several_archives_are_handed_on_as_their_folder(root: Path, downloads: list[str]) -> None:
    calls: list[tuple[int, int | None]] = []
    path = download_dataset("omniglot", root, progress=lambda *call: calls.append(call))
    assert path == root / "omniglot" / "archives"
    assert sorted(entry.name for entry in path.iterdir()) == [
        "images_background.zip",
        "images_evaluation.zip",
    ]
    assert len(downloads) == len(calls) == 2


def test_what_is_not_published_is_not_downloaded(root: Path) -> None:
    DATASETS["noise"] = noise(archives=())
    assert message_of(lambda: download_dataset("noise", root)) == (
        "dataset 'noise' is not published for download; leave out --download"
    )
    assert message_of(lambda: download_dataset("glyphs", root)) == (
        "dataset 'glyphs' is not published for download; leave out --download"
    )
    assert message_of(lambda: download_dataset("nois", root)).startswith(
        "there is no dataset 'nois'; did you mean 'noise'?"
    )
