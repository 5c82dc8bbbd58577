"""Where `gradshare compare` has its runs trained, and with what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gradshare.cli import compare as module
from gradshare.cli.compare import compare_command
from gradshare.errors import ConfigError
from gradshare.executors import RayExecutor
from tests.cli.test_runs import options


class CalledError(Exception):
    """In the place of a comparison."""


@pytest.fixture
def called(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], dict[str, Any]]:
    """The words of a comparison, and what it is called with instead of running."""
    found: dict[str, Any] = {}

    def run_plan(plan: Any, out: Path, **given: Any) -> None:
        found.update(given, threads=plan.threads)
        raise CalledError

    monkeypatch.setattr(module, "run_plan", run_plan)
    monkeypatch.setattr(module, "cores", lambda: 8)
    settings = {name: value for name, value in tiny.items() if name != "threads"}
    return ["--out", str(tmp_path / "out"), *options(settings)], found


def invoke(words: list[str]) -> BaseException | None:
    return CliRunner().invoke(compare_command, words).exception


@pytest.mark.parametrize(
    ("words", "threads", "jobs", "retries"),
    [
        ("", 0, None, 0),
        ("--threads 3", 3, 2, 0),
        ("--cpus 4", 4, 2, 0),
        ("--threads 16", 16, 1, 0),
        ("--threads 2 --jobs 1 --retries 3", 2, 1, 3),
        ("--executor ray --threads 2", 2, None, 2),
        ("--executor ray --retries 0", 0, None, 0),
    ],
)
def test_threads_are_those_of_each_run_and_as_many_runs_go_at_a_time_as_there_are_cores_for(
    words: str,
    threads: int,
    jobs: int | None,
    retries: int,
    called: tuple[list[str], dict[str, Any]],
) -> None:
    given, found = called
    assert isinstance(invoke([*given, *words.split()]), CalledError)
    assert (found["threads"], found["at_a_time"], found["retries"]) == (threads, jobs, retries)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", {"num_cpus": 1, "num_gpus": 0}),
        ("--threads 2", {"num_cpus": 2, "num_gpus": 0}),
        ("--cpus 3 --threads 2 --gpus 0.5", {"num_cpus": 3, "num_gpus": 0.5}),
    ],
)
def test_resources_of_each_run_reach_ray(
    words: str, expected: dict[str, float], called: tuple[list[str], dict[str, Any]]
) -> None:
    given, found = called
    assert isinstance(invoke([*given, "--executor", "ray", *words.split()]), CalledError)
    assert isinstance(found["executor"], RayExecutor)
    assert found["executor"]._resources == {**expected, "memory": None}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {}),
        (["--cpus", "4", "--gpus", "1"], {"cpus_per_task": 4, "gpus_per_node": 1}),
        (["--gpus", "0.5"], {"gpus_per_node": 0.5}),  # submitit refuses it
        (["--threads", "2", "--slurm", "qos=long"], {"cpus_per_task": 2, "qos": "long"}),
        (["--slurm", "timeout_min=9", "--slurm", "additional_parameters={requeue: true}"],
         {"timeout_min": 9, "additional_parameters": {"requeue": True}}),
    ],
)  # fmt: skip
def test_resources_and_settings_reach_submitit(
    words: list[str],
    expected: dict[str, Any],
    called: tuple[list[str], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[Path, str, Any]] = []

    def slurm_executor(*args: Any) -> object:
        seen.append(args)
        return object()

    monkeypatch.setattr(module, "slurm_executor", slurm_executor)
    assert isinstance(invoke([*called[0], "--executor", "slurm", *words]), CalledError)
    ((folder, name, settings),) = seen
    assert (folder.name, name, settings) == (".slurm", "out", expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--ray-address auto", "--ray-address is for --executor ray, not local; leave it out"),
        ("--executor ray --slurm a=1", "--slurm is for --executor slurm, not ray; leave it out"),
        ("--gpus 1", "--gpus is for --executor ray and slurm, not local; leave it out"),
    ],
)
def test_options_of_another_executor_are_refused(
    words: str, message: str, called: tuple[list[str], dict[str, Any]]
) -> None:
    error = invoke([*called[0], *words.split()])
    assert isinstance(error, ConfigError)
    assert str(error) == message


def test_a_rule_that_has_the_name_of_the_baseline_is_refused(
    called: tuple[list[str], dict[str, Any]], tmp_path: Path
) -> None:
    rules = tmp_path / "rules.py"
    rules.write_text("import gradshare as gs\n\nOriginal = gs.SGD\n", encoding="utf-8")
    error = invoke([*called[0], "--rule", f"{rules}:Original"])
    assert isinstance(error, ConfigError)
    assert str(error) == f"--rule {rules}:Original: the baseline has this name; rename the rule"
