"""Options that all commands share."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gradshare.cli import cli
from gradshare.cli.compare import compare_command
from gradshare.cli.data import data
from gradshare.cli.options import UserPath
from gradshare.cli.predict import predict_command


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


def test_a_sweep_without_values_is_quoted_as_it_was_given() -> None:
    result = CliRunner().invoke(compare_command, ["--out", "x", "--sweep", "inner-lr"])
    assert result.exit_code == 2
    assert "'inner-lr' is not of the form key=value" in result.output


def test_the_data_root_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(data, ["list", "--data-root", str(tmp_path / "file")])
    assert result.exit_code == 2
    assert "is a file" in result.output


def test_the_help_says_which_repeated_options_are_paths() -> None:
    output = CliRunner().invoke(predict_command, ["--help"]).output
    assert "--query PATH" in output and "--out PATH" in output


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("serve", "Port to listen at. [default: 7860] [at least 1, at most 65535]"),
        ("evaluate", "Inner steps. [default: the run's] [at least 0, at most 10000]"),
        ("predict", "such as 0.05. [above 0, below 1]"),
        ("train", "Query examples of each class. [default: 15] [at least 1]"),
    ],
)
def test_the_help_of_a_number_says_its_bounds(command: str, expected: str) -> None:
    output = CliRunner().invoke(cli, [command, "--help"]).output
    assert expected in " ".join(output.split())  # which is broken into lines


def test_the_help_of_every_number_of_every_command_says_its_bounds() -> None:
    context = click.Context(cli)
    commands = [cli.get_command(context, name) for name in cli.list_commands(context)]
    commands += data.commands.values()
    numbers = [
        parameter
        for command in commands
        for parameter in getattr(command, "params", ())
        if parameter.type in (click.INT, click.FLOAT)
    ]
    assert len(numbers) > 50
    for number in numbers:
        assert re.search(r"\[(at least|above) [\d.]+", number.help), number.name


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(command, ["--out", str(tmp_path / "file")])
    assert result.exit_code == 2
    assert "is a file" in result.output
