"""The configuration: what it refuses, in which words, and that it is stored as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gradshare.config import RunConfig, fields
from gradshare.config.settings import heading_of
from gradshare.config.text import key_and_value
from gradshare.errors import ConfigError
from gradshare.inner_loop import sharing
from gradshare.methods import network
from gradshare.models import batch_norm, conv4
from gradshare.tasks import images, source
from gradshare.training import options


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task_batch": 0}, "--task-batch 0: must be greater than or equal to 1"),
        (
            {"ways": 1},
            "--ways 1: give a whole number from 2 to 2147483647, or a range such as 5-20",
        ),
        ({"inner_lr": float("nan")}, "--inner-lr nan: must be a finite number"),
        ({"order": "third"}, "--order 'third': must be 'second' or 'first'"),
        ({"seed": 2**22}, "--seed 4194304: must be less than 4194304"),
        (
            {"method": "mamel"},
            "--method 'mamel': there is no such method; did you mean 'maml'? give maml, meta-sgd, "
            "maml++, unicorn-maml, anil, boil, alfa, proto-maml, reptile, imaml, protonet, or an "
            "import path like my_file.py:Name",
        ),
        (
            {"rule": "adagrad"},
            "--rule 'adagrad': there is no such rule; give momentum, rmsprop, adam, or an import "
            "path like my_file.py:Name",
        ),
        (
            {"metric": ["accuracy", "f1"]},
            "--metric 'f1': there is no such metric; give accuracy, loss, mse, or an import path "
            "like my_file.py:Name",
        ),
        (
            {"model": "my_net.py:"},
            "--model 'my_net.py:': not an import path; write it like my_file.py:Name",
        ),
        (
            {"model_option": "width=3"},
            "--model-option 'width=3': must be a valid dictionary",
        ),
        ({"image_size": 8}, "--image-size 8: must be greater than or equal to 16"),
        (
            {"multi_step_loss": "soon", "method": "maml++"},
            "--multi-step-loss 'soon': give a number of iterations like 7500, or a share of the "
            "run like 15%",
        ),
        (
            {"first_order_for": "120%"},
            "--first-order-for '120%': give a number of iterations like 7500, or a share of the "
            "run like 15%",
        ),
        (
            {"sharing": False, "sharing_control": "rate-control"},
            "sharing_control 'rate-control' replaces sharing, which is off; leave one of them out",
        ),
        (
            {"sharing": False, "fixed_lambda": 0.5},
            "--fixed-lambda 0.5 fixes λ, which original does not have; leave it out",
        ),
        (
            {"sharing_control": "learned-rates", "fixed_lambda": 0.5},
            "--fixed-lambda 0.5 fixes λ, which learned-rates does not have; leave it out",
        ),
        *(
            (
                {"sharing_control": control, "fixed_m": 1},
                f"--fixed-m 1 fixes m, which {control} does not have; leave it out",
            )
            for control in ("rate-control", "own-gradient", "learned-rates")
        ),
        (
            {"sharing": False, "fixed_m": 0.25},
            "--fixed-m 0.25 fixes m, which original does not have; leave it out",
        ),
        (
            {"per_step_rates": False},
            "--per-step-rates False is a part of MAML++ that --method maml does not have; use "
            "--method maml++ or leave it out",
        ),
        ({"innr_lr": 0.1}, "unknown setting 'innr_lr'; did you mean 'inner_lr'?"),
        ({"learning_rate": 0.1}, "unknown setting 'learning_rate'; did you mean 'outer_lr'?"),
        (
            {"xyzzy": 4},
            "unknown setting 'xyzzy'; `gradshare train --help` has them all",
        ),
    ],
)
def test_a_bad_setting_is_named_with_its_value(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        RunConfig(**settings)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("batch_size", "task_batch"),
        ("backbone", "model"),
        ("fast_lr", "inner_lr"),
        ("first_order", "order"),
        ("hidden_size", "filters"),
        ("inner_learning_rate", "inner_lr"),
        ("k_shot", "shots"),
        ("learning_rate", "outer_lr"),
        ("lr", "outer_lr"),
        ("meta_batch_size", "task_batch"),
        ("meta_learning_rate", "outer_lr"),
        ("meta_lr", "outer_lr"),
        ("n_way", "ways"),
        ("num_shots", "shots"),
        ("num_steps", "inner_steps"),
        ("num_ways", "ways"),
        ("outer_learning_rate", "outer_lr"),
        ("recompute", "memory"),
        ("second_order", "order"),
        ("step_size", "inner_lr"),
        ("tasks_at_a_time", "tasks"),
        ("update_lr", "inner_lr"),
    ],
)
def test_another_librarys_name_leads_to_ours(name: str, ours: str) -> None:
    with pytest.raises(ConfigError) as error:
        RunConfig(**{name: 1})
    assert str(error.value) == f"unknown setting {name!r}; did you mean {ours!r}?"


def test_several_bad_settings_are_all_named() -> None:
    with pytest.raises(ConfigError) as error:
        RunConfig(**{"ways": 0, "shots": 0})
    assert str(error.value).splitlines() == [
        "--ways 0: give a whole number from 2 to 2147483647, or a range such as 5-20",
        "--shots 0: give a whole number from 1 to 2147483647, or a range such as 5-20",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sede": 3}, "unknown setting 'sede'; did you mean 'seed'?"),
        ({"seed": -1}, "--seed -1: must be greater than or equal to 0"),
        (
            {"workers": 9},
            "--workers 9 is more than the 5 tasks of a batch; use at most as many workers as "
            "--task-batch",
        ),
    ],
)
def test_a_changed_copy_is_checked_like_a_new_configuration(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        RunConfig().model_copy(update=changes)
    assert str(error.value) == message


def test_a_changed_copy_differs_in_what_was_changed_alone() -> None:
    config = RunConfig(method="maml++", multi_step_loss="40%")
    changed = config.model_copy(update={"seed": 3, "data_root": "elsewhere"})
    assert changed == RunConfig(
        method="maml++", multi_step_loss="40%", seed=3, data_root=Path("elsewhere")
    )
    assert config.model_copy() == config


def test_a_stored_configuration_is_the_same_configuration(tmp_path: Path) -> None:
    config = RunConfig(
        **{"method": "maml++", "multi_step_loss": "40%", "seed": 3, "clamp_gradients": 10},
        model="my file.py:Net",
        model_option={"widths": [4, 8], "rate": 1e-05, "name": "1e", "norm": None},
        metric="accuracy",
    )
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert RunConfig.from_yaml(str(path)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ways: [5", "is not valid YAML"),
        ("- ways", "must hold lines like `ways: 5`; it holds a list"),
        ("wayz: 5", "unknown setting 'wayz'; did you mean 'ways'?"),
        ("1: 2", "has the key 1; write the name of a setting there"),
        ("self: 1", "unknown setting 'self'"),
        ("data_root: 5", "--data-root 5: must be a path"),
        ("dataset: null", "--dataset None: must be a valid string"),
        ("metric: {a: b}", "--metric {'a': 'b'}: must be a text or a list of texts"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_a_bad_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        RunConfig.from_yaml(path)
    assert message in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"configuration [^:]*absent\.yaml: No such file or directory$"
    ):
        RunConfig.from_yaml(tmp_path / "absent.yaml")


@pytest.mark.parametrize(("span", "iterations"), [("15%", 75), ("7500", 7500), ("0", 0)])
def test_a_span_is_iterations_or_a_share_of_the_run(span: str, iterations: int) -> None:
    config = RunConfig(epochs=10, iterations_per_epoch=50)
    assert config.span(span) == iterations


def test_each_field_has_a_description_and_a_heading() -> None:
    for name, field in RunConfig.model_fields.items():
        assert field.description, name
    assert heading_of("dataset") == "Data"
    assert heading_of("data_root") == "Data"
    assert heading_of("workers") == "Machine and output"


def test_the_choices_are_those_of_the_library() -> None:
    """They are written twice, so that the configuration needs no torch."""
    assert fields.Norm == sharing.Norm
    assert fields.Activation == conv4.Activation
    assert fields.BatchNormMode == batch_norm.BatchNormMode
    assert fields.Precision == network.Precision
    assert fields.Resize == images.Resize
    assert fields.OnDivergence == options.OnDivergence
    assert source.SEEDS == fields.SEEDS


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=3", 3),
        ("a=true", True),
        ("a=", None),
        ("a='3'", "3"),
        ("a=out=in", "out=in"),
        ("a=[64, 128]", [64, 128]),
        ("a=%", "%"),
        ("a=!!int x", "!!int x"),
    ],
)
def test_the_value_of_an_option_is_yaml_or_text(text: str, value: object) -> None:
    assert key_and_value(text) == ("a", value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width", "'width' is not of the form key=value"),
        ("=3", "'=3' is not of the form key=value"),
        ("a-b=3", "'a-b=3' is not of the form key=value"),
    ],
)
def test_an_option_of_another_form_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        key_and_value(text)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e-3", 0.001), ("-2.5E+4", -25000.0), ("1e", "1e"), (".5", 0.5), ("5.", 5.0)),
        *(("-7", -7), ("010", "010"), ("1:30", "1:30"), ("1_000", "1_000"), ("0x10", "0x10")),
        *(("true", True), ("no", "no"), ("null", None), ("~", None), ("2001-09-09", "2001-09-09")),
    ],
)
def test_plain_values_are_read_by_yaml_1_2(text: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"model_option: {{a: [{text}]}}", encoding="utf-8")
    assert RunConfig.from_yaml(path).model_option == {"a": [value]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1:30", "--seed '1:30': must be a valid integer"),
        ("seed: 010", "--seed '010': must be a valid integer"),
        ("seed: true", "--seed True: must be a valid integer"),
        ("inner_lr: true", "--inner-lr True: must be a valid number"),
        ("sharing: no", "--sharing 'no': must be a valid boolean"),
        ("ways: 5\nways: 6", "is not valid YAML: it has the key 'ways' twice"),
        ("model_option: {a: 1, a: 2}", "is not valid YAML: it has the key 'a' twice"),
        (
            "ways: .nan",
            "--ways nan: give a whole number from 2 to 2147483647, or a range such as 5-20",
        ),
        ("task_batch: 1e30", "--task-batch 1e+30: must be a valid integer"),
        (
            "task_batch: 100000000000000000000",
            "--task-batch 100000000000000000000: must be less than or equal to 2147483647",
        ),
    ],
)
def test_a_value_that_could_be_read_in_two_ways_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        RunConfig.from_yaml(path)
    assert message in str(error.value)


def test_an_option_holds_plain_values_only() -> None:
    with pytest.raises(ConfigError, match=r"--model-option .*: input was not a valid JSON value"):
        RunConfig(model_option={"when": Path()})


def test_the_file_of_an_import_path_is_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given, stored in (
        ("nets.py:Net", f"{tmp_path}/nets.py:Net"),
        ("below/../a b.py:Net", f"{tmp_path}/a b.py:Net"),
        ("~/nets.py:Net", f"{tmp_path}/home/nets.py:Net"),
        ("package.nets:Net", "package.nets:Net"),
    ):
        config = RunConfig(model=given, metric=(given, "accuracy"))
        assert (config.model, config.metric) == (stored, (stored, "accuracy"))


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({}, None),
        ({"method": "maml++", "multi_step_loss": "0"}, None),
        ({"method": "maml++"}, "multi_step_loss"),
        ({"first_order_for": "10%"}, "first_order_for"),
        ({"first_order_for": "10"}, None),
        ({"cosine_annealing_to": 1e-5}, "cosine_annealing_to"),
    ],
)
def test_a_setting_that_depends_on_the_length_of_the_run_is_known(
    settings: dict[str, Any], setting: str | None
) -> None:
    assert RunConfig(**settings).depends_on_length == setting


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 60_000, "is not valid YAML: maximum recursion depth exceeded"),
        ("ways: !!int ''", "is not valid YAML: "),  # PyYAML: IndexError
        ("ways: !!bool x", "is not valid YAML: "),  # KeyError
        ("ways: !!timestamp x", "is not valid YAML: "),  # AttributeError
        ("ways: \xff".encode("latin-1"), "cannot read the configuration"),
    ],
    ids=lambda value: None if len(value) < 40 else str(value[:10]),
)
def test_what_the_fuzzer_found_in_yaml_is_refused(
    text: str | bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as error:
        RunConfig.from_yaml(path)
    assert message in str(error.value)
    assert len(str(error.value)) < 1000


def test_a_file_with_an_unknown_setting_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("shot: 5", encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        RunConfig.from_yaml(path)
    assert str(error.value) == f"{path}: unknown setting 'shot'; did you mean 'shots'?"


def test_a_value_that_is_too_long_to_be_shown_is_cut() -> None:
    with pytest.raises(ConfigError) as error:
        RunConfig(**{"ways": [list(range(1000))] * 1000})
    assert len(str(error.value)) < 250


def test_the_home_of_nobody_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        RunConfig(data_root="~nobody-here/data")
    assert str(error.value) == ("--data-root '~nobody-here/data': there is no user 'nobody-here'")


@pytest.mark.parametrize("given", ["3", " 3 - 3 ", [3], [3, 3], ["3", "3"]], ids=str)
def test_a_range_of_one_number_is_that_number(given: Any) -> None:
    assert RunConfig(ways=given, shots=given) == RunConfig(ways=3, shots=3)
