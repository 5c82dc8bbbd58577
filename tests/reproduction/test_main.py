"""`gradshare paper` as its users meet it, on a plan of seconds."""

from __future__ import annotations

import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from reproduction.plan import Plan
from tests.cli.test_runs import Program, program
from tests.conftest import TINY_SIZE

__all__ = ["program"]  # a fixture

MACHINE = ("data_root", "device", "threads")


@pytest.fixture
def toy(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A plan of four runs in the place of every scale's; the options of the machine."""
    settings = {n: v for n, v in tiny.items() if n not in MACHINE} | {"image_size": TINY_SIZE}
    plan = Plan.model_validate(
        {
            "settings": settings,
            "studies": {
                "rates": {
                    "title": "rates",
                    "sweep": "inner_lr",
                    "curves": False,
                    "axes": {
                        "rate": {"rate-0.1": {"inner_lr": 0.1}, "rate-0.5": {"inner_lr": 0.5}},
                        "arm": {"original": {"sharing": False}, "gradient-sharing": {}},
                    },
                },
            },
        }
    )
    # By its name: the package has a command of that name in the module's place.
    monkeypatch.setattr(import_module("gradshare.cli.paper"), "load_plan", lambda scale: plan)
    here = {"data-root": tiny["data_root"], "device": "cpu", "threads": 1, "jobs": 2}
    return [word for name, value in here.items() for word in (f"--{name}", str(value))]


def test_run_status_table_and_figures(program: Program, toy: list[str], tmp_path: Path) -> None:
    here = ["--scale", "cpu", "--out", str(tmp_path)]
    status, out, err = program("paper", "run", *here, "--only", "rate-0.1", *toy)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == (
        f"Training 2 cells, 2 at a time with 1 thread each; everything goes to {tmp_path}."
    )
    assert lines[-1] == "2 cells finished, 0 not."
    status, out, err = program("paper", "status", *here, "--cells")
    assert (status, err) == (0, "")
    assert "rates/rate-0.1/original" in out
    assert "9 of 9" in out
    assert "0 of 9" in out
    assert re.search(r"^  2 of 4 done, 2 left; \d+\.\d s so far, about \d+\.\d s left$", out, re.M)

    # What is committed of a cell is enough for the rest.
    for folder in tmp_path.glob("rates/*/*"):
        shutil.rmtree(folder / "checkpoints")
        shutil.rmtree(folder / "tensorboard")
    status, out, err = program("paper", "run", *here, *toy)
    assert (status, err) == (0, "")
    assert out.startswith("2 cells already finished.\nTraining 2 cells, ")
    assert "rates/rate-0.5/original: epoch 1" in out
    assert "rates/rate-0.1/original: epoch" not in out
    assert program("paper", "run", *here, *toy) == (0, "4 cells already finished.\n", "")
    status, out, err = program("paper", "table", *here)
    assert (status, err) == (0, "")
    assert "| rate | arm | seeds | outcome | test accuracy |" in out
    assert f"Written: {tmp_path / 'tables.md'}" in out
    status, out, err = program("paper", "figures", *here)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        f"Written: {tmp_path / 'figures' / name}" for name in ("rates.png", "rates.svg")
    ]


def test_cells_are_not_run_on_other_images_than_those_that_are_not_picked(
    program: Program, toy: list[str], tmp_path: Path
) -> None:
    here = ["--scale", "cpu", "--out", str(tmp_path)]
    done = "rates/rate-0.1/original"
    assert program("paper", "run", *here, "--only", done, *toy)[0] == 0
    path = tmp_path / done / "results.json"
    text = re.sub(r'"images_sha256": "\w+"', f'"images_sha256": "{"0" * 64}"', path.read_text())
    path.write_text(text, encoding="utf-8")
    status, out, err = program("paper", "run", *here, "--only", "rate-0.5", *toy)
    assert (status, out.count(": epoch")) == (1, 0)
    assert f"than those of the finished cell {done} (000000000000…)" in err
    assert not (tmp_path / "rates/rate-0.5").exists()


@pytest.mark.parametrize("command", ["table", "figures"])
def test_nothing_to_show_is_said(
    program: Program, toy: list[str], tmp_path: Path, command: str
) -> None:
    status, out, err = program("paper", command, "--scale", "cpu", "--out", str(tmp_path))
    assert (status, out) == (1, "")
    assert err == (
        f"error: {tmp_path} holds no finished cell; train some with `gradshare paper run "
        "--scale cpu`, or name another folder with --out\n"
    )


def test_a_word_that_fits_nothing_is_refused(program: Program, toy: list[str]) -> None:
    status, out, err = program("paper", "run", "--only", "rate-0.11", *toy)
    assert (status, out) == (1, "")
    assert err.startswith("error: --only 'rate-0.11' fits no cell; did you mean 'rate-0.1'? ")


def test_a_failure_is_told_when_it_happens_and_at_the_end(
    program: Program, toy: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stray = tmp_path / "rates/rate-0.1/original/thesis.txt"
    stray.parent.mkdir(parents=True)
    stray.write_text("years", encoding="utf-8")
    here = ["--scale", "cpu", "--out", str(tmp_path), "--only", "rate-0.1"]
    status, out, err = program("paper", "run", *here, *toy)
    assert (status, err) == (1, "")
    (told,) = caplog.messages
    assert told.startswith("rates/rate-0.1/original failed: the output folder ")
    assert out.splitlines()[-3] == "1 cell finished, 1 not."
    assert out.splitlines()[-2].startswith("failed: rates/rate-0.1/original: the output folder ")
    assert out.splitlines()[-1] == "To go on where these were saved, run the same command again."


def test_a_folder_that_cannot_be_made_is_one_error(
    program: Program, toy: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    out = tmp_path / "file" / "results"
    status, _, err = program("paper", "run", "--scale", "cpu", "--out", str(out), *toy)
    assert status == 1
    assert err.startswith("error: ")
    assert "Traceback" not in err
