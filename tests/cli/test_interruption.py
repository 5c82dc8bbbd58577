"""Ctrl-C and SIGTERM, as a terminal and a scheduler send them to the whole program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradshare.config import stored, train
from gradshare.training.files import UNFINISHED
from tests.training.killing import records_in

PATIENCE = 120
EPOCHS = 15  # more than a run completes before it is stopped

pytestmark = pytest.mark.long


def wait_while_it_runs(process: subprocess.Popen[str], true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, what
        time.sleep(0.05)


def wait_for_epochs(folders: list[Path], process: subprocess.Popen[str]) -> None:
    def completed() -> bool:
        files = [folder / "metrics.jsonl" for folder in folders]
        return all(file.is_file() and file.stat().st_size for file in files)

    wait_while_it_runs(process, completed, "no epoch was completed")


@pytest.mark.parametrize(
    ("command", "to_all"),
    [("train", True), ("train", False), ("compare", False)],
    ids=["Ctrl-C-train", "SIGTERM-train", "SIGTERM-compare"],
)
def test_it_stops_cleanly_with_everything_saved(
    command: str, to_all: bool, tiny: dict[str, Any], tmp_path: Path
) -> None:
    settings = {**tiny, "epochs": EPOCHS, "threads": 1}
    options = [w for name, v in settings.items() for w in (f"--{name.replace('_', '-')}", str(v))]
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "gradshare", command, "--out", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    runs = [out]
    if command == "compare":
        runs = [out / "runs" / arm / "seed-0" for arm in ("original", "gradient-sharing")]
    wait_for_epochs(runs, process)
    if to_all:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.terminate()  # as a scheduler does
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + (signal.SIGINT if to_all else signal.SIGTERM)
    assert "Traceback" not in err
    assert err.startswith("stopped")
    assert err.count("\n") == 1
    assert str(out) in err
    for run in runs:
        assert len(records_in(run)) >= 1
        assert list((run / "checkpoints").glob("latest-*"))
        assert not list(run.rglob(f"*{UNFINISHED}"))
    if (command, to_all) == ("train", True):
        result = train(stored(out), out, resume=True)
        assert [record.epoch for record in result.history] == list(range(1, EPOCHS + 1))


def test_ctrl_c_where_no_run_can_be_saved_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import pathlib, time\n"
        "pathlib.Path('imported').touch()\n"
        "time.sleep(100)\n"
        "def make(): pass\n"
    )
    command = [sys.executable, "-m", "gradshare", "train", "--dataset", "mine.py:make"]
    process = subprocess.Popen(
        [*command, "--out", "run"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    wait_while_it_runs(process, (tmp_path / "imported").exists, "it imports nothing")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (128 + signal.SIGINT, "stopped\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("imported", ["click", "gradshare.cli.evaluate", "torch", "numpy"])
def test_ctrl_c_while_the_program_starts_is_one_line(imported: str) -> None:
    program = f"""
        import os, signal, sys
        from gradshare.__main__ import program

        class Interrupting:
            def find_spec(self, name, *_):
                if name == {imported!r}:
                    os.kill(os.getpid(), signal.SIGINT)

        sys.meta_path.insert(0, Interrupting())
        sys.argv = ["gradshare", "evaluate", "nowhere"]
        program()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGINT, "stopped\n")


def test_sigterm_while_python_shuts_down_says_nothing() -> None:
    program = """
        import atexit, os, signal, sys
        from gradshare.cli import program

        atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))
        sys.argv = ["gradshare", "evaluate", "nowhere"]
        program()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.stderr.startswith("error: nowhere is not a folder")
    assert ended.stderr.count("\n") == 1
    assert ended.returncode == -signal.SIGTERM
