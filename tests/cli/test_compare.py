"""Where `gradshare compare` has its runs trained, and with what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from gradshare.cli import compare as module
from gradshare.cli.compare import compare_command
from gradshare.comparison.results import load_results
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
    settings = {name: value for name, value in tiny.items() if name != "threads"}
    return ["--out", str(tmp_path / "out"), *options(settings)], found


def invoke(words: list[str]) -> BaseException | None:
    return CliRunner().invoke(compare_command, words).exception


@pytest.mark.parametrize(
    ("words", "threads", "jobs", "retries"),
    [
        ("", 0, None, 0),
        ("--threads 3", 3, None, 0),
        ("--cpus 4", 4, None, 0),
        ("--threads 2 --jobs 1 --retries 3", 2, 1, 3),
        ("--executor ray --threads 2", 2, None, 2),
        ("--executor ray --retries 0", 0, None, 0),
    ],
)
def test_threads_are_those_of_each_run_and_jobs_and_retries_are_the_programs(
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


def plan_of_words(
    words: str, called: tuple[list[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> Any:
    plans: list[Any] = []

    def run_plan(plan: Any, out: Path, **given: Any) -> None:
        plans.append((plan, given["settings"]))
        raise CalledError

    monkeypatch.setattr(module, "run_plan", run_plan)
    error = invoke([*called[0], *words.split()])
    assert isinstance(error, CalledError), error
    return plans[0]


def test_methods_are_arms_with_sharing_and_order_as_their_words_say(
    called: tuple[list[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "maml,maml+sharing,maml+first-order+sharing,maml++,maml+++rate-control,protonet,anil"
    plan, settings = plan_of_words(f"--methods {words} --multi-step-loss 2", called, monkeypatch)
    assert list(plan.arms) == words.split(",")
    assert (plan.baseline, plan.controls, plan.candidates) == ("maml", ("maml+++rate-control",), ())
    chosen = {
        arm: tuple(made[n] for n in ("method", "sharing", "sharing_control", "order"))
        for arm, made in plan.settings.items()
    }
    assert chosen == {
        "maml": ("maml", False, None, "second"),
        "maml+sharing": ("maml", True, None, "second"),
        "maml+first-order+sharing": ("maml", True, None, "first"),
        "maml++": ("maml++", False, None, "second"),
        "maml+++rate-control": ("maml++", True, "rate-control", "second"),
        "protonet": ("protonet", False, None, "second"),
        "anil": ("anil", False, None, "second"),
    }
    steps = {arm: made["multi_step_loss"] for arm, made in plan.settings.items()}
    assert {arm for arm, span in steps.items() if span == "2"} == {"maml++", "maml+++rate-control"}
    # What all have in common, and the inner rate that ANIL has for itself.
    assert settings["epochs"] == 3
    assert settings["anil: inner_lr"] == 0.5
    assert settings["inner_lr"] == 0.1


def test_a_sweep_makes_a_candidate_of_each_value_that_an_arm_reads(
    called: tuple[list[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = plan_of_words(
        "--methods maml,protonet,linear-probe --sweep inner-lr=0.2,0.3 --sweep outer-lr=0.01,0.1",
        called,
        monkeypatch,
    )
    both = [f"inner-lr {inner}, outer-lr {outer}" for inner in (0.2, 0.3) for outer in (0.01, 0.1)]
    assert plan.candidates == (
        tuple(f"maml [{values}]" for values in both),
        ("protonet [outer-lr 0.01]", "protonet [outer-lr 0.1]"),
        ("linear-probe [inner-lr 0.2]", "linear-probe [inner-lr 0.3]"),
    )
    made = plan.settings["maml [inner-lr 0.3, outer-lr 0.01]"]
    assert (made["inner_lr"], made["outer_lr"]) == (0.3, 0.01)
    rates = {
        arm: plan.options_of(arm, 7).optimizer([torch.zeros(1)]).defaults["lr"] for arm in plan.arms
    }
    assert rates["maml [inner-lr 0.3, outer-lr 0.1]"] == rates["protonet [outer-lr 0.1]"] == 0.1
    probe = plan.options_of("linear-probe [inner-lr 0.2]", 7)
    assert (probe.start, probe.start_iterations, probe.total) == ("supervised", 18, 1)
    assert rates["linear-probe [inner-lr 0.2]"] == 0


def test_a_candidate_is_named_by_the_settings_that_change_its_arm(
    called: tuple[list[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "--sweep inner-lr=0.1,0.2 --sweep inner-steps=2,4 --epochs 1 --iterations-per-epoch 10"
    plan, _ = plan_of_words(f"--methods maml,protonet,linear-probe {words}", called, monkeypatch)
    both = [f"inner-lr {rate}, inner-steps {steps}" for rate in (0.1, 0.2) for steps in (2, 4)]
    assert list(plan.arms) == [
        *(f"maml [{values}]" for values in both),
        "protonet",
        *(f"linear-probe [{values}]" for values in both),
    ]
    # The body of a probe takes as many steps as the other arms take inner steps.
    probe = [plan.settings[f"linear-probe [{values}]"]["start_iterations"] for values in both]
    assert probe == [20, 40] * 2


def test_sharing_and_its_original_are_each_compared_at_their_best_rate(
    called: tuple[list[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = plan_of_words("--control --sweep inner-lr=0.1,1", called, monkeypatch)
    assert plan.baseline == "original [inner-lr 0.1]"
    assert plan.controls == ("rate-control [inner-lr 0.1]",)
    assert len(plan.candidates) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--method reptile",
            "--method reptile cannot share gradients, so there is nothing to compare it with; "
            "compare methods, such as --methods maml,reptile, or give a --rule",
        ),
        (
            "--methods maml,anil --control",
            "--methods names all arms; leave --control out, and name a control METHOD+rate-control",
        ),
        (
            "--methods maml,anil --method boil",
            "--methods names all arms; leave --method out, and name a control METHOD+rate-control",
        ),
        (
            "--methods maml,reptile+sharing",
            "--methods reptile+sharing: reptile learns nothing through an inner loop; give reptile "
            "alone",
        ),
        (
            "--methods maml,linear-probe+sharing",
            "--methods linear-probe+sharing: linear-probe learns nothing through an inner loop; "
            "give linear-probe alone",
        ),
        (
            "--methods maml,maml+sharing+rate-control",
            "--methods maml+sharing+rate-control: two of its words set the same; leave one out",
        ),
        (
            "--sweep shots=1,5",
            "--sweep shots: give values of a setting of the inner or outer loop, such as "
            "inner-lr=0.03,0.1; all arms have the others in common",
        ),
        (
            "--sweep inner-lr=",
            "--sweep inner_lr: give values of a setting of the inner or outer loop, such as "
            "inner-lr=0.03,0.1; all arms have the others in common",
        ),
        (
            "--methods maml,anil,maml",
            "--methods maml,anil,maml: two have the same name; rename or remove one",
        ),
        (
            "--methods protonet --sweep inner-lr=0.1,1",
            "--sweep inner_lr: no arm of protonet reads it; leave it out",
        ),
        (
            "--sweep init-from=a,b",
            "--sweep init_from: give values of a setting of the inner or outer loop, such as "
            "inner-lr=0.03,0.1; all arms have the others in common",
        ),
        ("--sweep innr-lr=1", "unknown setting 'innr_lr'; did you mean 'inner_lr'?"),
        ("--sweep inner-lr=0.1,x", "--inner-lr 'x': must be a valid number"),
    ],
)
def test_methods_and_sweeps_that_mean_nothing_are_refused(
    words: str, message: str, called: tuple[list[str], dict[str, Any]]
) -> None:
    error = invoke([*called[0], *words.split()])
    assert isinstance(error, ConfigError), error
    assert str(error) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: 3", "--methods 3: must be a text or a list of texts"),
        ("sweep: [0.1]", "--sweep [0.1]: must be a valid dictionary"),
        ("sweep: {inner_lr: 0.1}", "--sweep 0.1: must be a valid list"),
        ("seeds: three", "--seeds 'three': must be a valid integer"),
        ("jobs: 0", "--jobs 0: must be greater than or equal to 1"),
        ("config: other.yaml", "unknown setting 'config'; `gradshare train --help` has them all"),
    ],
)
def test_an_option_in_a_file_is_checked_as_on_the_command_line(
    text: str, message: str, called: tuple[list[str], dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(text, "utf-8")
    error = invoke([*called[0], "--config", str(file)])
    assert isinstance(error, ConfigError), error
    assert str(error) == message


def test_a_file_may_hold_every_option_of_compare_and_the_command_line_wins(
    called: tuple[list[str], dict[str, Any]], tmp_path: Path
) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("methods: maml,anil\nseeds: 3\njobs: 4\nretries: 2\nthreads: 2\n", "utf-8")
    result = CliRunner().invoke(compare_command, [*called[0], "--config", str(file), "--jobs", "1"])
    assert "maml, anil: 6 runs, " in result.output
    assert (called[1]["at_a_time"], called[1]["retries"], called[1]["threads"]) == (1, 2, 2)


def test_the_output_folder_may_be_in_the_file(
    called: tuple[list[str], dict[str, Any]], tmp_path: Path
) -> None:
    file, words = tmp_path / "plan.yaml", called[0][2:]
    file.write_text(f"out: {tmp_path / 'there'}\n", "utf-8")
    result = CliRunner().invoke(compare_command, [*words, "--config", str(file)])
    assert isinstance(result.exception, CalledError), result.output
    assert f"everything goes to {tmp_path / 'there'}." in result.output
    error = invoke(words)
    assert isinstance(error, ConfigError)
    assert str(error) == "--out is missing; name a new folder for everything that comes out"


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        (
            "method: protonet",
            "--methods maml,anil",
            "no arm has method 'protonet', as the file says; the arms are maml, anil",
        ),
        (
            "fixed_lambda: 0.3",
            "",
            "no arm has fixed_lambda 0.3, as the file says; the arms are original, "
            "gradient-sharing",
        ),
        (
            "{rule: adam, sharing: true}",
            "",
            "no arm has sharing True, as the file says; the arms are original, adam",
        ),
        ("{method: anil, sharing: false}", "--methods maml,anil", None),
        ("{method: anil, sharing: false}", "--method maml", None),
        ("sharing_control: rate-control", "--control", None),
    ],
)
def test_what_a_file_says_of_an_arm_that_is_not_compared_is_said(
    text: str,
    words: str,
    expected: str | None,
    called: tuple[list[str], dict[str, Any]],
    tmp_path: Path,
) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(text, "utf-8")
    words_given = [*called[0], "--config", str(file), *words.split()]
    result = CliRunner().invoke(compare_command, words_given)
    assert isinstance(result.exception, CalledError), result.exception
    said = [line for line in result.output.splitlines() if line.startswith("warning: ")]
    assert said == ([] if expected is None else [f"warning: {expected}"])


def test_values_of_a_sweep_get_the_type_of_the_setting(
    called: tuple[list[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = plan_of_words("--methods maml --sweep first-order-for=1,2", called, monkeypatch)
    assert list(plan.arms) == ["maml [first-order-for 1]", "maml [first-order-for 2]"]


@pytest.mark.usefixtures("in_this_process")
def test_a_file_may_hold_the_methods_and_the_sweep(tiny: dict[str, Any], tmp_path: Path) -> None:
    file, out = tmp_path / "plan.yaml", tmp_path / "out"
    file.write_text(
        "methods: [maml, protonet, linear-probe]\nsweep: {inner_lr: [0.1, 0.5]}\n", "utf-8"
    )
    fewer = {**tiny, "epochs": 2, "iterations_per_epoch": 1, "val_tasks": 3, "ensemble": 1}
    result = CliRunner().invoke(
        compare_command, ["--config", str(file), "--out", str(out), *options(fewer), "--seeds", "2"]
    )
    assert result.exception is None, result.output
    assert (  # five with the first seed, and three with the second
        "linear-probe [inner-lr 0.5]: 8 runs, 2 × 1 iterations each, on tiny" in result.output
    )
    results = load_results(out)
    assert [arm.partition(" ")[0] for arm in results.arms] == ["maml", "protonet", "linear-probe"]
    assert [len(run.history) for run in results.runs] == [2, 2, 1] * 2
    assert len(list(out.glob("runs/*/seed-*"))) == 8
    assert results.runs[2].training_seconds > 0
