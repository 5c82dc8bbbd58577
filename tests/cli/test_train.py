"""`gradshare train` as its users meet it."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch

import gradshare as gs
from gradshare.cli import COMMANDS
from gradshare.cli.compare import compare_command
from gradshare.cli.data import prepare, show
from gradshare.cli.evaluate import evaluate_command
from gradshare.cli.options import read_config
from gradshare.cli.train import train_command
from gradshare.config import stored
from gradshare.config.text import read_yaml
from gradshare.tasks import glyphs
from tests import own
from tests.cli.test_runs import Program, options, program
from tests.conftest import prepare_tiny

__all__ = ["program"]  # a fixture

OWN: dict[str, Any] = {
    "ways": 3,
    "queries": 2,
    "inner_steps": 2,
    "task_batch": 2,
    "epochs": 1,
    "iterations_per_epoch": 2,
    "val_tasks": 3,
    "test_tasks": 3,
    "device": "cpu",
    "threads": 1,
}


def test_settings_from_a_file_are_overridden_by_options(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(json.dumps({**tiny, "epochs": 2}), encoding="utf-8")  # JSON is YAML
    run = tmp_path / "run"
    status, _, err = program("train", "--config", str(file), "--epochs", "1", "--out", str(run))
    assert (status, err) == (0, "")
    stored = (run / "config.yaml").read_text(encoding="utf-8")
    assert "epochs: 1\n" in stored
    assert "queries: 4\n" in stored


def test_training_images_are_augmented_and_a_run_is_resumed_as_it_was(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    words = ("train", "--no-sharing", "--augment", "flip,crop", *options(tiny))
    for run in ("whole", "parts"):
        first = ("--epochs", "1") if run == "parts" else ()
        assert program(*words, *first, "--out", str(tmp_path / run))[0] == 0
    assert program(*words, "--resume", "auto", "--out", str(tmp_path / "parts"))[0] == 0
    whole, parts = (gs.open_run(tmp_path / run) for run in ("whole", "parts"))
    assert stored(tmp_path / "whole").augment == ("flip", "crop")
    assert [e.metrics for e in whole.history] == [e.metrics for e in parts.history]
    plain = ("train", "--no-sharing", *options(tiny), "--resume", "auto")
    status, _, err = program(*plain, "--out", str(tmp_path / "whole"))
    assert status == 1
    assert "holds a run with augment ('flip', 'crop'), this one has ()" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task-batch", "0"], "--task-batch 0: must be greater than or equal to 1"),
        (["--dataset", "omniglott"], "did you mean 'omniglot'?"),
        (["--model", "conv5"], "--model 'conv5': there is no such model; did you mean 'conv4'?"),
        (["--model", "absent.py:Net"], "absent.py; correct the path"),
        (["--augment", "flip"], "flip mirrors images, and a mirrored character of glyphs is"),
        (["--augment", "crop,color"], "--augment 'color': must be 'flip', 'crop' or 'colour'"),
        (
            ["--preset", "paper"],
            "--preset paper: the paper has no settings for --dataset glyphs with --task-batch 5; "
            "use --dataset cub or mini-imagenet with --task-batch 5 or 1",
        ),
        (
            ["--preset", "paper", "--dataset", "cub", "--task-batch", "4"],
            "--preset paper: the paper has no settings for --dataset cub with --task-batch 4; ",
        ),
    ],
)
@pytest.mark.usefixtures("few_glyphs")
def test_bad_input_is_one_line_and_writes_nothing(
    arguments: list[str], message: str, program: Program, tmp_path: Path
) -> None:
    root = str(tmp_path / "data")
    status, _, err = program(
        "train", "--out", str(tmp_path / "run"), "--data-root", root, *arguments
    )
    assert status == 1
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def numeric_options() -> list[tuple[list[str], str, bool]]:
    """The numeric options of all commands: command, option, whether it is a whole number."""
    commands = {
        ("train", "--out", "run"): train_command,
        ("compare", "--executor", "ray", "--out", "run"): compare_command,
        ("evaluate", "run"): evaluate_command,
        ("data", "prepare", "glyphs"): prepare,
        ("data", "show", "glyphs"): show,
    }
    return [
        ([*words], option.opts[0], isinstance(option.type, click.types.IntParamType))
        for words, command in commands.items()
        for option in command.params
        if isinstance(option.type, click.types.IntParamType | click.types.FloatParamType)
    ]


# Any whole number is a seed for drawing, and a run has its own bounds for these.
LATER = {"data": ["--seed"], "evaluate": ["--ensemble"]}


def test_numbers_out_of_range_are_refused_by_the_name_of_the_option(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = numeric_options()
    assert len(found) > 40
    for words, option, whole in found:
        for value in ("nan", "inf", "", "-1", *(("1e308", str(2**31), str(10**20)) * whole)):
            if value.isdecimal() and option in LATER.get(words[0], ()):
                continue
            status, out, err = program(*words, option, value)
            assert (status in (1, 2), out) == (True, ""), (words, option, value)
            assert option in err, (words, option, value)
            assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_the_largest_numbers_make_a_run_that_is_refused_or_measured(
    program: Program, tiny: dict[str, Any]
) -> None:
    def dry_run(**changes: object) -> tuple[int, str, str]:
        return program("train", "--dry-run", *options({**tiny, **changes}))

    rates = ("inner_lr", "outer_lr", "clamp_gradients", "clip_norm")
    largest = {**dict.fromkeys(rates, 1e308), "val_tasks": 2**31 - 1, "inner_steps": 1}
    status, _, err = dry_run(**largest)
    assert status == 0, err
    for changes, words in (
        ({"inner_lr": 1e308, "inner_lr_scale": 1e308}, "error: the inner learning rate is inf; "),
        (dict.fromkeys(("epochs", "iterations_per_epoch"), 2**31 - 1), "error: 2147483647 epochs"),
        ({"filters": 10**6}, "error: memory ran out ("),
        ({"ways": 2**31 - 1}, "error: 2147483647-way tasks need 2147483647 classes"),
        ({"shots": 2**31 - 1}, "error: class 'train-0' of split 'train' of tiny has 10 examples"),
        ({"device": "cuda:999"}, "error: device 'cuda:999' cannot be used here"),
        ({"method": "m" * 5000}, "error: --method 'mmm"),
        ({"out": "x" * 300}, "error: xxx"),
    ):
        status, out, err = dry_run(**changes)
        assert (status, out) == (1, "")
        assert err.startswith(words)
        assert len(err) < 500


def test_a_mistyped_option_names_the_nearest(program: Program) -> None:
    status, _, err = program("train", "--out", "x", "--iner-lr", "0.1")
    assert status == 2
    assert "No such option '--iner-lr'" in err
    assert "--inner-lr" in err


def test_help_explains_every_field_with_its_default(program: Program) -> None:
    status, out, _ = program("train", "--help")
    assert status == 0
    for words in ("Inner loop and sharing", "--sharing / --no-sharing", "[default: --sharing]"):
        assert words in " ".join(out.split())
    assert "--inner-lr FLOAT" in out


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m gradshare train --help | head -1"
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.stdout.startswith("Usage: ")
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("shell", "status", "words"),
    [
        ("{} > /dev/full", 1, "error: the output cannot be written: No space left on device\n"),
        ("{} >&-", 0, ""),
        ("set -o pipefail; {{ sleep 1; {}; }} | true", 128 + signal.SIGPIPE, ""),
        ("PYTHONIOENCODING=cp1252 {} > help", 0, ""),
    ],
)
def test_output_that_cannot_be_written_is_no_traceback(
    shell: str, status: int, words: str, tmp_path: Path
) -> None:
    command = shell.format(f"{shlex.quote(sys.executable)} -m gradshare train --help")
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (status, words)


def test_a_full_disk_behind_the_output_ends_no_training(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    words = ["train", "--out", str(tmp_path / "run"), *options(tiny)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gradshare", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=240,
            check=False,
        )
    assert done.stderr == "error: the output cannot be written: No space left on device\n"
    assert done.returncode == 1
    assert gs.open_run(tmp_path / "run").history[-1].epoch == tiny["epochs"]


def test_the_data_root_is_of_the_option_then_the_environment_then_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("data_root: of-the-file\n")

    def data_root(*words: str) -> Path:
        given = train_command.make_context("train", [*words]).params
        options = {name: given[name] for name in gs.RunConfig.model_fields}
        from_file = {} if given["config"] is None else read_yaml(given["config"])
        return read_config(from_file, None, options).data_root

    from_file = ("--config", str(file))
    monkeypatch.setenv("GRADSHARE_DATA_ROOT", "of-the-environment")
    assert data_root(*from_file, "--data-root", "option") == Path("option")
    assert data_root(*from_file) == Path("of-the-environment")
    monkeypatch.delenv("GRADSHARE_DATA_ROOT")
    assert data_root(*from_file) == Path("of-the-file")
    assert data_root() == Path("data")


def test_the_paper_preset_is_appendix_a(program: Program, data_root: Path, tmp_path: Path) -> None:
    five = read_config({}, "paper", {"dataset": "mini-imagenet"})
    assert (five.epochs, five.iterations_per_epoch, five.task_batch) == (250, 1000, 5)
    assert (five.inner_steps, five.inner_lr, five.queries, five.image_size) == (5, 0.1, 15, 84)
    assert (five.val_tasks, five.test_tasks, five.ensemble) == (600, 600, 5)
    one = read_config({}, "paper", {"dataset": "cub", "task_batch": 1, "inner_lr_scale": 10.0})
    assert (one.epochs, one.inner_lr_scale) == (750, 10)


def test_a_dry_run_says_what_the_run_would_take(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    settings = options(tiny)
    status, out, err = program("train", "--dry-run", *settings)
    assert (status, err) == (0, "")
    assert out.startswith("layout         tasks all at once (vmap), graphs kept (keep)\n")
    assert re.search(r"\nthe whole run +\d+\.\d s, 3 × an epoch and the test\n", out)
    assert re.search(r"\npeak memory +about \d+\.\d MB\n", out)
    folder = tmp_path / "run"
    assert program("train", "--dry-run", "--out", str(folder), *settings)[0] == 0
    assert not folder.exists()


@pytest.mark.parametrize("place", ["__init__", "update"])
def test_code_of_the_users_that_ends_the_program_is_an_error(
    program: Program, tiny: dict[str, Any], tmp_path: Path, place: str
) -> None:
    rule = tmp_path / "rule.py"
    rule.write_text(f"""import sys
import gradshare
class Rule(gradshare.UpdateRule):
    def {place}(self, *_, **__):
        sys.exit()
""")
    out = tmp_path / "run"
    words = ("--rule", f"{rule}:Rule", "--out", str(out), *options(tiny))
    assert program("train", *words) == (
        1,
        "",
        f"error: {rule}, line 5, called sys.exit; raise an error there instead\n",
    )


def test_a_run_needs_a_folder(program: Program, tiny: dict[str, Any]) -> None:
    status, out, err = program("train", *options(tiny))
    assert (status, out) == (1, "")
    assert err == "error: --out is missing; name a new folder for everything that comes out\n"


def test_a_dry_run_is_of_one_process(program: Program, tiny: dict[str, Any]) -> None:
    status, out, err = program("train", "--dry-run", "--workers", "2", *options(tiny))
    assert (status, out) == (1, "")
    assert err == (
        "error: --dry-run measures a run in one process; start it without torchrun and --workers\n"
    )


def test_a_dry_run_may_be_of_a_run_that_is_to_be_continued(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "kept.txt").write_text("kept")
    arguments = ["--resume", "auto", "--out", str(tmp_path / "run")]
    assert program("train", "--dry-run", *arguments, *options(tiny))[0] == 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["kept.txt"]


def test_names_and_options_of_ones_own(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(own.__file__, tmp_path / "my parts.py")
    words = ["--dataset", "my parts.py:signals", "--dataset-option", "noise=1e-1"]
    words += ["--model", "my parts.py:Net", "--model-option", "width=6"]
    words += ["--rule", "my parts.py:Momentum", "--rule-option", "beta=0.25"]
    words += ["--loss", "my parts.py:doubled", "--loss-option", "factor=3"]
    words += ["--metric", "my parts.py:wrong", "--metric-option", "best=low"]
    words += ["--metric-option", "unit=%", "--metric", "accuracy"]
    status, out, err = program("train", "--out", "run", *words, *options(OWN))
    assert (status, err) == (0, "")
    assert "Test: wrong " in out
    config = stored("run")
    assert config.model == f"{tmp_path}/my parts.py:Net"
    assert config.metric_option == {"best": "low", "unit": "%"}
    assert config.dataset_option == {"noise": 0.1}

    monkeypatch.chdir("/")
    status, out, err = program("evaluate", f"{tmp_path}/run", "--shots", "2", "--steps", "4")
    assert (status, err) == (0, "")
    ensemble, best = out.splitlines()
    assert re.fullmatch(r"Ensemble: wrong .* \(3 tasks, 4 inner steps\)", ensemble)
    assert best.startswith("Best checkpoint: wrong ")


def test_a_regression(program: Program, tmp_path: Path) -> None:
    words = ["--dataset", "tests.own:sines", "--model", "tests.own:Curve", "--loss", "mse"]
    settings = {name: value for name, value in OWN.items() if name not in ("ways", "queries")}
    run = ["--out", str(tmp_path / "run")]
    status, out, err = program("train", *run, *words, *options(settings))
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == f"Run: {tmp_path / 'run'}"
    assert "epoch 1" in out
    status, out, err = program("evaluate", str(tmp_path / "run"))
    assert (status, err) == (
        1,
        f"error: {tmp_path / 'run'} has no test tasks; name a --dataset that has some\n",
    )
    more = tmp_path / "more.py"
    more.write_text("import gradshare as gs\ndef make(): return gs.Splits(*[gs.Sinusoids()] * 3)\n")
    calibrated = ("--calibration", "--dataset", f"{more}:make")
    status, out, err = program("evaluate", str(tmp_path / "run"), *calibrated)
    assert (status, out) == (1, "")  # at once, without the test
    assert "are not classes" in err


def test_options_on_the_command_line_replace_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("model_option: {width: 3}\nrule_option: {beta: 0.5}\nmetric: [loss]\n")
    options = {"model_option": {"depth": 2}, "rule_option": None, "metric": ()}
    config = read_config(read_yaml(file), None, options)
    assert config.model_option == {"depth": 2}
    assert (config.rule_option, config.metric) == ({"beta": 0.5}, ("loss",))


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str, program: Program) -> None:
    status, out, err = program(name, "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"Usage: gradshare {name} ")


def test_an_unknown_command_is_named(program: Program) -> None:
    status, _, err = program("trian")
    assert status == 2
    assert "No such command 'trian'" in err


def test_an_option_that_is_not_key_and_value_is_refused(program: Program) -> None:
    status, _, err = program("train", "--out", "x", "--model-option", "width")
    assert status == 2
    assert "Invalid value for '--model-option': 'width' is not of the form key=value" in err


def test_a_key_with_two_values_is_refused(program: Program) -> None:
    sweep = ("--sweep", "inner-lr=0.1", "--sweep", "inner-lr=0.3")
    status, _, err = program("compare", "--out", "x", *sweep)
    assert status == 2
    assert "'--sweep': inner_lr=[0.1], inner_lr=[0.3]: one key has two values; leave one" in err


@pytest.mark.usefixtures("few_glyphs")
def test_a_dry_run_draws_no_glyphs_into_the_data_root(program: Program, tmp_path: Path) -> None:
    settings = {**OWN, "filters": 4, "image_size": 16, "data_root": tmp_path / "data"}
    status, out, err = program("train", "--dry-run", *options(settings))
    assert (status, err) == (0, "")
    assert out.startswith("layout ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("few_glyphs")
@pytest.mark.parametrize(("dataset", "other"), [("glyphs", "tiny"), ("tiny", "glyphs")])
def test_a_dry_run_with_a_test_on_another_dataset_draws_no_glyphs_into_the_data_root(
    program: Program, tmp_path: Path, dataset: str, other: str
) -> None:
    prepare_tiny(tmp_path / "data")
    names = {"dataset": dataset, "test_dataset": other, "data_root": tmp_path / "data"}
    settings = {**OWN, **names, "filters": 4, "image_size": 16}
    status, out, err = program("train", "--dry-run", *options(settings))
    assert (status, err) == (0, "")
    assert out.startswith("layout ")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["tiny"]


@pytest.mark.usefixtures("few_glyphs")
@pytest.mark.parametrize(("dataset", "other"), [("glyphs", "tiny"), ("tiny", "glyphs")])
def test_a_dry_run_reads_the_glyphs_that_are_prepared(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, other: str
) -> None:
    root = tmp_path / "data"
    prepare_tiny(root)
    gs.prepare_dataset("glyphs", root, image_size=16)
    monkeypatch.setattr(glyphs, "generate", lambda *_: pytest.fail("glyphs are drawn again"))
    settings = {**OWN, "dataset": dataset, "test_dataset": other, "data_root": root, "filters": 4}
    size = {"image_size": 16} if dataset == "glyphs" else {}
    status, out, err = program("train", "--dry-run", *options({**settings, **size}))
    assert (status, err) == (0, "")
    assert out.startswith("layout ")


def test_the_output_folder_may_be_in_the_file(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"out: {tmp_path}\n", "utf-8")
    status, _, err = program("train", "--config", str(file))
    assert status == 1
    assert err.startswith(f"error: the output folder {tmp_path} already holds 'run.yaml'; choose")


def test_a_run_that_diverges_is_a_result(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    settings = {**tiny, "outer_lr": 1e30}
    status, out, err = program("train", "--out", str(folder), *options(settings))
    assert (status, err) == (0, "")
    assert "Diverged: epoch 1, iteration " in out


def test_the_threads_of_the_machine_are_left_alone(
    program: Program, tiny: dict[str, Any], tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert program("train", "--out", str(tmp_path / "run"), *options(tiny))[0] == 0
        assert program("evaluate", str(tmp_path / "run"), "--threads", "2")[0] == 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
