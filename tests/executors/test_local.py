"""Processes on this machine, one for each call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from gradshare.executors import LocalExecutor, LostWorkerError
from tests.executors import functions

PATIENCE = 60


def test_a_call_returns_what_its_function_returns_or_raises_what_it_raises() -> None:
    with LocalExecutor(2) as executor:
        good = executor.submit(pow, 2, 10)
        bad = executor.submit(functions.fail)
        assert good.result() == 1024
        with pytest.raises(ValueError, match="unforeseen"):
            bad.result()


def test_a_killed_process_fails_its_own_call_alone() -> None:
    with LocalExecutor(1) as executor:
        killed = executor.submit(functions.die)
        following = executor.submit(pow, 2, 3)
        with pytest.raises(LostWorkerError) as error:
            killed.result()
        assert following.result() == 8
    assert str(error.value) == (
        "its process ended without a result (exit status -9); a negative status is a signal, and "
        "-9 often means that memory ran out"
    )


def test_calls_run_at_the_same_time(tmp_path: Path) -> None:
    with LocalExecutor(2) as executor:
        calls = [
            executor.submit(functions.meet, tmp_path, *names) for names in (("a", "b"), ("b", "a"))
        ]
        assert all(call.result() for call in calls)


def test_processes_get_the_variables_of_the_executor_unless_they_are_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRADSHARE_SET", "by the user")
    variables = {"GRADSHARE_SET": "by us", "GRADSHARE_NEW": "by us"}
    with LocalExecutor(1, variables) as executor:
        found = executor.submit(functions.variables, *variables).result()
    assert found == ["by the user", "by us"]
    assert "GRADSHARE_NEW" not in os.environ


def test_leaving_asks_what_runs_to_end_and_drops_what_waits(tmp_path: Path) -> None:
    file = tmp_path / "process"
    with LocalExecutor(1) as executor:
        executor.submit(functions.sleep_unless_asked_to_end, file)
        waiting = executor.submit(pow, 2, 3)
        wait_for(file)
    process, asked = file.read_text().split()
    assert int(asked) == signal.SIGTERM
    assert not Path(f"/proc/{process}").exists()
    assert waiting.cancelled()


def test_a_process_is_asked_to_end_when_its_caller_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "process"
    program = textwrap.dedent(
        f"""
        from pathlib import Path
        from gradshare.executors import LocalExecutor
        from tests.executors import functions
        LocalExecutor(1).submit(functions.sleep_unless_asked_to_end, Path({str(file)!r})).result()
        """
    )
    caller = subprocess.Popen([sys.executable, "-c", program])
    wait_for(file)
    caller.kill()
    caller.wait()
    end = time.monotonic() + PATIENCE
    while " " not in file.read_text() and time.monotonic() < end:
        time.sleep(0.05)
    assert int(file.read_text().split()[1]) == signal.SIGTERM


def test_a_script_needs_no_guard_of_its_main_module(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from gradshare.executors import LocalExecutor\n"
        "print('once')\n"
        "with LocalExecutor(1) as executor:\n"
        "    print(executor.submit(pow, 2, 10).result())\n"
    )
    said = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (said.stdout, said.stderr) == ("once\n1024\n", "")


def wait_for(file: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
