"""Import paths of a user's own files and packages, and what is wrong with them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradshare.config.names import call, load
from gradshare.errors import ConfigError


@pytest.fixture(autouse=True)
def _imports_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(sys.modules)
    yield
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a space in its name."""
    folder = tmp_path / "my work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_a_file_is_imported_once_and_may_import_the_files_beside_it(folder: Path) -> None:
    (folder / "sizes.py").write_text("WIDTH = 3\n")
    (folder / "my nets.py").write_text(
        "from sizes import WIDTH\n\nclass Net:\n    width = WIDTH\n\ndef make():\n    return Net\n"
    )
    found = load("model", f"{folder}/my nets.py:Net")
    assert found.width == 3
    assert load("model", f"{folder}/my nets.py:make")() is found


def test_files_of_one_name_are_different_files(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "json.py").write_text(f"WHO = {name!r}\n")
    assert load("model", f"{folder}/a/json.py:WHO") == "a"
    assert load("model", f"{folder}/b/json.py:WHO") == "b"
    assert not hasattr(sys.modules["json"], "WHO")


def test_a_package_is_looked_for_in_the_current_directory_last(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "nets.py").write_text("Net = 5\n")
    (folder / "colorsys.py").write_text("raise RuntimeError\n")  # the standard library's is first
    assert load("model", "mine.nets:Net") == 5
    assert callable(load("model", "colorsys:rgb_to_hsv"))


def test_a_function_gets_what_it_names_alone(folder: Path) -> None:
    (folder / "f.py").write_text(
        "def some(a, *, b=2): return a, b\ndef all(a, **more): return a, more\n"
    )
    given = {"a": 1, "b": 5, "c": 6}
    assert call("model", f"{folder}/f.py:some", {}, given) == (1, 5)
    assert call("model", f"{folder}/f.py:some", {"a": 7, "b": 8}, given) == (7, 8)
    assert call("model", f"{folder}/f.py:all", {"d": 9}, given) == (1, {"d": 9})
    assert call("model", f"{folder}/f.py:all", {}, given, more=["c"]) == (1, {"c": 6})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{}/absent.py:Net", "there is no file {}/absent.py; correct the path"),
        (
            "absent.nets:Net",
            "there is no module 'absent' here; install it, start gradshare in the folder that "
            "holds it, or give a file like my_file.py:Name",
        ),
        (
            "yaml.absent:Net",
            "there is no module 'yaml.absent' here; install it, start gradshare in the folder that "
            "holds it, or give a file like my_file.py:Name",
        ),
        ("{}/nets.py:Nett", "{}/nets.py has no 'Nett'; did you mean 'Net'?"),
        ("{}/nets.py:xyzzy", "{}/nets.py has no 'xyzzy'; correct the name"),
        (
            "{}/needs.py:Net",
            "ModuleNotFoundError: No module named 'absent' ({}/needs.py, line 2); correct the "
            "code, or the options that it is given",
        ),
        (
            "{}/reads.py:Net",
            "FileNotFoundError: [Errno 2] No such file or directory: 'absent.csv' ({}/reads.py, "
            "line 1); correct the code, or the options that it is given",
        ),
        (
            "{}/typo.py:Net",
            "SyntaxError: '(' was never closed (typo.py, line 1); correct the code, or the options "
            "that it is given",
        ),
        (
            "{}/program.py:Net",
            "SystemExit: 0 ({}/program.py, line 2); correct the code, or the options that it is "
            "given",
        ),
        ("{}/nets.py:WIDTH", "it is 3; name a class or a function"),
        (
            "{}/nets.py:Net",
            "ValueError: no layers ({}/nets.py, line 6); correct the code, or the options that it "
            "is given",
        ),
        (
            "{}/nets.py:Wide",
            "missing a required argument: 'width'; it takes width, as --model-option NAME=VALUE",
        ),
    ],
)
def test_what_cannot_be_imported_or_made_is_one_clear_error(
    name: str, message: str, folder: Path
) -> None:
    (folder / "nets.py").write_text(
        "WIDTH = 3\n"
        "class Wide:\n"
        "    def __init__(self, width): pass\n"
        "class Net:\n"
        "    def __init__(self):\n"
        "        raise ValueError('no layers')\n"
    )
    (folder / "needs.py").write_text("import yaml\nimport absent\n")
    (folder / "reads.py").write_text("open('absent.csv')\n")
    (folder / "typo.py").write_text("print(\n")
    (folder / "program.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ConfigError) as error:
        call("model", name.format(folder), {}, {})
    assert str(error.value) == f"--model {name.format(folder)!r}: {message.format(folder)}"


def test_an_error_inside_a_package_names_no_line_of_ours() -> None:
    options = {"in_channels": 3, "out_channels": 2, "kernel_size": 1, "groups": 2}
    with pytest.raises(ConfigError) as error:
        call("model", "torch.nn:Conv2d", options, {})
    assert str(error.value) == (
        "--model 'torch.nn:Conv2d': ValueError: in_channels must be divisible by groups; correct "
        "the code, or the options that it is given"
    )
