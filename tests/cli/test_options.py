"""Options that all commands share."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gradshare.cli.options import UserPath


@click.command()
@click.option("--out", type=UserPath(file_okay=False))
def command(out: Path) -> None:
    click.echo(repr(out))


def test_a_path_may_begin_with_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell replaces ~ at the start of a word alone, and not in --out=~/runs."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for given, expected in (
        ("~/runs", tmp_path / "runs"),
        ("~", tmp_path),
        ("a/~/b", Path("a/~/b")),
        ("runs", Path("runs")),
    ):
        result = CliRunner().invoke(command, [f"--out={given}"])
        assert result.output == f"{expected!r}\n"


def test_the_home_of_nobody_is_refused() -> None:
    result = CliRunner().invoke(command, ["--out=~nobody-here/runs"])
    assert result.exit_code == 2
    assert result.output.endswith(
        "Error: Invalid value for '--out': there is no user 'nobody-here'\n"
    )


def test_an_empty_path_is_not_the_current_folder() -> None:
    result = CliRunner().invoke(command, ["--out", ""])
    assert result.exit_code == 2
    assert "Invalid value for '--out': it is empty; name a file or folder" in result.output


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(command, ["--out", str(tmp_path / "file")])
    assert result.exit_code == 2
    assert "is a file" in result.output
