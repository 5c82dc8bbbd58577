"""The commit that a run's environment names."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gradshare.training import machine


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """git in a folder with a package in it, whose module `machine` believes to be."""
    module = tmp_path / "gradshare" / "training" / "machine.py"
    module.parent.mkdir(parents=True)
    module.write_text("", encoding="utf-8")
    monkeypatch.setattr(machine, "__file__", str(module))
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")

    def git(*arguments: str) -> str:
        command = ["git", *identity, *arguments]
        process = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        return process.stdout.strip()

    return git


def commit() -> str | None:
    return machine.commit.__wrapped__()


def test_a_checkout_is_named_with_its_changes(package: Callable[..., str], tmp_path: Path) -> None:
    assert commit() is None
    package("init", "-q")
    package("commit", "-q", "--allow-empty", "-m", "none of it")
    assert commit() is None  # the package is no part of it
    package("add", ".")
    package("commit", "-q", "-m", "it")
    assert commit() == package("rev-parse", "HEAD")
    (tmp_path / "gradshare" / "training" / "machine.py").write_text("x", encoding="utf-8")
    assert commit() == package("rev-parse", "HEAD") + "+"


def test_without_git_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert commit() is None


@pytest.mark.parametrize("found", [None, "abc+"])
def test_the_environment_has_it_where_there_is_one(
    found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "commit", lambda: found)
    assert machine.environment(torch.device("cpu"), "as it is").get("commit") == found
