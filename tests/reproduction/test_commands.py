"""The commands as their users meet them, on a plan of seconds."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gradshare import RunError
from reproduction import __main__ as program
from reproduction import running
from reproduction.plan import HOME, Cell, Plan, on_machine
from reproduction.records import PACKED, read_runs
from reproduction.running import RESULT, run_cells, statuses
from tests.conftest import TINY_SIZE
from tests.reproduction.toy import PLAN, results_with, run

MACHINE = ("data_root", "device", "threads")


def plan_of(tiny: dict[str, Any], **settings: Any) -> Plan:
    """Two rates and two arms."""
    own = {name: value for name, value in tiny.items() if name not in MACHINE}
    axes = {
        "rate": {"rate-0.1": {"inner_lr": 0.1}, "rate-0.5": {"inner_lr": 0.5}},
        "arm": {"original": {"sharing": False}, "gradient-sharing": {}},
    }
    study = {"title": "rates", "sweep": "inner_lr", "curves": False, "axes": axes}
    return Plan.model_validate(
        {
            "settings": {**own, "image_size": TINY_SIZE, **settings},
            "studies": {"rates": study},
        }
    )


@pytest.fixture
def call(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """Runs a command on the plan in the place of the CPU's, in a folder of its own."""
    monkeypatch.setattr(program, "load_plan", lambda scale: plan_of(tiny))
    monkeypatch.setenv("GRADSHARE_DATA_ROOT", tiny["data_root"])

    def invoke(command: str, *arguments: str) -> Result:
        words = [command, "--scale", "cpu", "--out", str(tmp_path), *arguments]
        return CliRunner().invoke(program.reproduction, words)

    return invoke


def train_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first program of the SIGTERM test trains in a process for each cell, as users do."""
    monkeypatch.setattr(running, "LocalExecutor", lambda *_: ThreadPoolExecutor(1))
    monkeypatch.setattr(running, "keep_freed_memory", lambda: None)


@pytest.mark.long
def test_cells_are_trained_shown_and_packed(
    call: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_in_this_process(monkeypatch)
    arguments = ("--only", "rate-0.1", "--threads", "1", "--device", "cpu", "--jobs", "2")
    stray = tmp_path / "rates/rate-0.1/original/thesis.txt"
    stray.parent.mkdir(parents=True)
    stray.write_text("years", encoding="utf-8")
    result = call("run", *arguments)
    assert str(result.exception) == (
        "1 cell failed; correct the cause and give the same command again"
    )
    lines = result.output.splitlines()
    assert lines[:2] == [
        "0 of 2 cells are done, 0 running.",
        f"Training 2 cells, 2 at a time, into {tmp_path}.",
    ]
    outcomes = {line[8:].partition(": ")[0]: line for line in lines[2:]}
    assert outcomes["rates/rate-0.1/gradient-sharing"].endswith(": done")
    assert "thesis.txt" in outcomes["rates/rate-0.1/original"]
    assert "failed: rates/rate-0.1/original: " in call("status").output
    stray.unlink()
    assert "1 of 1: rates/rate-0.1/original: done" in call("run", *arguments).output

    status = call("status", "--cells").output
    assert re.search(r"^rates/rate-0.1/original: done, 9 of 9 iterations, test \d", status, re.M)
    assert "rates/rate-0.5/original: left, 0 of 9 iterations\n" in status
    assert re.search(r"all: 2 of 4 done, 2 left; .* so far, about .* left$", status, re.M)

    table = call("table", "--only", "rate-0.1").output
    assert "Written" not in table
    assert "So far 2 of 2" not in table
    assert call("pack").output == f"Written: {tmp_path / 'rates'}{PACKED}\n"
    for folder in (tmp_path / "rates").iterdir():
        for path in folder.glob(f"*/{RESULT}"):
            path.unlink()
    assert call("table", "--only", "rate-0.1").output == table
    assert call("run", "--only", "rate-0.1").output == "2 of 2 cells are done, 0 running.\n"
    assert call("figures").output == f"Written: {tmp_path / 'figures' / 'rates.png'}\n"
    written = call("table").output
    assert (tmp_path / "tables.md").read_text("utf-8") in written
    assert "So far 2 of 4 runs are finished." in written

    sharing = read_runs(tmp_path / f"rates{PACKED}")[1]
    assert sharing.cell == "rates/rate-0.1/gradient-sharing"
    assert (sharing.epochs, len(sharing.test or ()), sharing.members) == (3, 8, 2)
    assert [len(steps) for steps in sharing.learned["m"]] == [2, 2, 2]
    assert sharing.fit["query_accuracy_after"] == pytest.approx(sharing.validation)
    assert sharing.environment["images"] == 220


def cell_of(tiny: dict[str, Any]) -> list[Cell]:
    """The first cell of the plan, on this machine."""
    machine = {name: tiny[name] for name in MACHINE}
    return on_machine(plan_of(tiny).cells()[:1], machine)


@pytest.mark.long
def test_sigterm_saves_and_the_same_command_continues(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**tiny, "epochs": 12, "iterations_per_epoch": 6, "val_tasks": 2, "test_tasks": 2}
    code = (
        "import sys, pathlib, tests.reproduction.test_commands as test\n"
        f"list(test.run_cells(test.cell_of({settings!r}), pathlib.Path(sys.argv[1]), 1))"
    )
    folder = tmp_path / "rates" / "rate-0.1" / "original"
    environment = {**os.environ, "PYTHONPATH": str(HOME.parent)}
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=environment)
    metrics = folder / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text().count("\n") > 2):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    before = metrics.read_text()
    done = before.count("\n")
    assert 2 < done < 12
    assert not (folder / RESULT).exists()
    cells = cell_of(settings)
    assert statuses(cells, tmp_path)[0].state == "begun"
    train_in_this_process(monkeypatch)
    assert list(run_cells(cells, tmp_path, 1)) == [(cells[0], None)]
    clock = json.loads((folder / RESULT).read_text())["clock"]
    assert len(clock) == 12
    assert metrics.read_text().startswith(before)
    lines = metrics.read_text().splitlines()
    assert clock == [json.loads(line)["seconds"] for line in lines]


def saved(tmp_path: Path, **changes: dict[str, Any]) -> list[Cell]:
    """Two finished cells; the environment of the second is changed."""
    names = [f"rates/seed-0/rate-0.1/{arm}" for arm in ("original", "gradient-sharing")]
    results = results_with({name: run() for name in names})
    for cell, one in results.items():
        update = (
            {n: {**getattr(one, n), **c} for n, c in changes.items()} if cell.config.sharing else {}
        )
        (tmp_path / cell.name).mkdir(parents=True)
        text = one.model_copy(update=update).model_dump_json()
        (tmp_path / cell.name / RESULT).write_text(text, "utf-8")
    return list(results)


def test_results_of_other_settings_than_the_plans_are_refused(tmp_path: Path) -> None:
    cells = saved(tmp_path, settings={"inner_lr": 0.2})
    with pytest.raises(RunError) as error:
        statuses(cells, tmp_path)
    assert str(error.value) == (
        "the result of rates/seed-0/rate-0.1/gradient-sharing is of a run with inner_lr 0.2, the "
        "plan has 0.1; give another --out"
    )


@pytest.mark.parametrize(
    ("facts", "what"),
    [
        ({"images_sha256": "b" * 64}, "images bbbbbbbbbbbb and aaaaaaaaaaaa"),
        ({"gradshare": "0.1.0"}, "gradshare 0.1 and 0.2"),
    ],
)
def test_results_of_other_test_tasks_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: dict[str, str], what: str
) -> None:
    cells = saved(tmp_path, environment={"images_sha256": "a" * 64, **facts})
    first = tmp_path / cells[0].name / RESULT
    first.write_text(first.read_text().replace('"torch"', f'"images_sha256":"{"a" * 64}","torch"'))
    with pytest.raises(RunError) as error:
        statuses(cells, tmp_path)
    assert str(error.value) == (
        f"{cells[1].name} and {cells[0].name} have different test tasks, and cannot be compared: "
        f"{what}; move one of them away"
    )


def test_a_damaged_packed_file_is_named(tmp_path: Path) -> None:
    (tmp_path / f"rates{PACKED}").write_bytes(b"no gzip")
    with pytest.raises(RunError, match=r"rates\.jsonl\.gz cannot be read: Not a gzipped file"):
        statuses(PLAN.cells(), tmp_path)


def test_without_a_finished_cell_there_is_nothing_to_show(call: Callable[..., Result]) -> None:
    for command in ("table", "figures"):
        error = call(command).exception
        assert isinstance(error, RunError)
        assert "holds no finished cell; train some with `python -m reproduction run" in str(error)


def test_the_program_prints_an_error_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["reproduction", "status", "--scale", "cpu", "--only", "raets"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match=r"^error: --only 'raets' fits no cell; did you mean"):
        program.main()
