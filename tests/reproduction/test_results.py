from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gradshare.config import ORIGINAL, RATE_CONTROL, SHARING
from gradshare.errors import RunError
from reproduction.results import InnerLoopPoint, SharingPoint, load_results, save_results
from tests.reproduction.synthetic_results import CONFIG, arm, comparison, usual


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "results.json"
    save_results(usual(epochs=3), path)
    return path


def damage(path: Path, change: Callable[[Any], object]) -> str:
    """The message for the file after a change to its content."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(RunError) as caught:
        load_results(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    results = usual(epochs=3)
    save_results(results, tmp_path / "new" / "results.json")
    assert load_results(tmp_path / "new" / "results.json") == results
    assert load_results(tmp_path / "new") == results
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["results.json"]


def test_the_file_has_the_documented_keys(saved: Path) -> None:
    content = json.loads(saved.read_text())
    assert list(content) == [
        *("format_version", "dataset", "method", "config", "environment", "command", "arms"),
        *("speedup", "speedup_to_reach", "paired"),
    ]
    assert content["format_version"] == 1
    assert list(content["speedup_to_reach"]) == ["80", "90", "95"]
    assert list(content["paired"][0]) == ["first", "second", "difference", "ci95", "tasks"]
    original, sharing, control = content["arms"]
    assert list(original) == [
        *("name", "outcome", "validation", "best_epoch", "test", "test_single", "sharing"),
        *("inner_loop", "seconds", "seed", "chance", "message", "test_accuracies"),
    ]
    assert (original["name"], sharing["name"], control["name"]) == (ORIGINAL, SHARING, RATE_CONTROL)
    assert list(original["validation"][0]) == ["epoch", "accuracy", "ci95", "seconds"]
    assert list(original["test"]) == ["accuracy", "ci95", "tasks", "ensemble"]
    assert original["sharing"] == []
    assert list(sharing["sharing"][0]) == ["epoch", "m", "lambda"]
    assert control["sharing"][0]["m"] is None
    assert list(original["inner_loop"][0]) == [
        "epoch",
        *("support_accuracy_before", "support_accuracy_after"),
        *("support_loss_before", "support_loss_after"),
        *("query_accuracy_before", "query_accuracy_after"),
        *("query_loss_before", "query_loss_after"),
    ]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    bad = float("nan")
    point = SharingPoint(epoch=1, m=bad, lambda_=0.5)
    assert point.m is None
    losses = dict.fromkeys(set(InnerLoopPoint.model_fields) - {"epoch"}, math.inf)
    run = arm(SHARING, epochs=1).model_copy(
        update={"sharing": (point,), "inner_loop": (InnerLoopPoint(epoch=1, **losses),)}
    )
    results = comparison([run], config={**CONFIG, "nested": [{"rate": bad}, -math.inf]})
    save_results(results, tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    loaded = load_results(tmp_path)
    assert loaded.arms[0].inner_loop[0].query_loss_after is None
    assert loaded.config["nested"] == [{"rate": None}, None]


def test_results_cannot_be_changed() -> None:
    results = usual(epochs=1)
    with pytest.raises(ValidationError, match="frozen"):
        results.speedup = 2.0


def test_a_failed_write_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match=r"cannot be written: No space left on device; free the"):
        save_results(usual(epochs=2), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file: the folder cannot be made: .*; choose another"):
        save_results(usual(epochs=1), tmp_path / "file" / "results.json")


def test_a_missing_file_says_who_writes_it(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"results.json: no such file; `gradshare compare` and"):
        load_results(tmp_path)


def test_the_folder_of_several_seeds_names_those_of_one(tmp_path: Path) -> None:
    for seed in (0, 1):
        save_results(usual(epochs=1), tmp_path / f"seed-{seed}" / "results.json")
    with pytest.raises(RunError) as error:
        load_results(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} holds a comparison of several seeds; give the folder of one of them: seed-0, "
        "seed-1"
    )


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(b"{\xff")
    with pytest.raises(RunError, match="not a results file, byte 1 is not UTF-8 text; give the"):
        load_results(tmp_path)


def test_a_file_that_is_cut_off(saved: Path) -> None:
    saved.write_text(saved.read_text()[:200])
    with pytest.raises(RunError, match=r"not valid JSON at line \d+, column \d+ .*cut off"):
        load_results(saved)


@pytest.mark.parametrize("text", ["[]", "3", '"text"', "{}", '{"format_version": "1"}', "null"])
def test_json_of_something_else(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(RunError, match=r"not a gradshare results file, it has .*; give the"):
        load_results(tmp_path)


def test_a_newer_format_asks_for_an_update(saved: Path) -> None:
    message = damage(saved, lambda content: content.update(format_version=2))
    assert message == (
        "written by a newer gradshare, in format 2; this gradshare reads format 1: update gradshare"
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda c: c["arms"][1]["test"].update(accuracy=45.1),
            "damaged results file: arms.1.test.accuracy, is 45.1: Input should be less than or "
            "equal to 1; copy it again or repeat the run",
        ),
        (lambda c: c["arms"][0].pop("chance"), "arms.0.chance: Field required;"),
        (lambda c: c.update(surprise=1), "surprise, is 1: Extra inputs are not permitted;"),
        (lambda c: c.update(arms=[]), "arms: Tuple should have at least 1 item"),
        (lambda c: c["arms"][0].update(outcome="fine"), "arms.0.outcome, is 'fine': Input should"),
        (lambda c: c["arms"][0].update(best_epoch="2"), "arms.0.best_epoch, is '2': Input should"),
        (
            lambda c: c["arms"][0].update(best_epoch=9),
            "arms.0: best_epoch 9 has no validation;",
        ),
        (
            lambda c: c["arms"][0].update(best_epoch=None),
            "arms.0: a trained arm needs a validation and a best_epoch;",
        ),
        (
            lambda c: c["arms"][2]["validation"].reverse(),
            "arms.2: the epochs of validation do not increase;",
        ),
        (
            lambda c: c["arms"][0]["test_accuracies"].pop(),
            "arms.0: test_accuracies has 599 values for 600 test tasks;",
        ),
        (
            lambda c: c["arms"][1].update(name="original"),
            "the file: two arms are called 'original';",
        ),
        (
            lambda c: c["paired"][0].update(second="other"),
            "the file: paired names 'other', which is no arm;",
        ),
        (
            lambda c: [v.update(ci95=-1) for v in c["arms"][0]["validation"]],
            "arms.0.validation.0.ci95, is -1: Input should be greater than or equal to 0 "
            "(and 2 more like it);",
        ),
    ],
)
def test_damage_is_named_by_field_and_cause(
    saved: Path, change: Callable[[Any], object], expected: str
) -> None:
    assert expected in damage(saved, change)


def test_a_long_wrong_value_is_cut(saved: Path) -> None:
    message = damage(saved, lambda c: c["arms"][0].update(seed="x" * 500))
    assert "..." in message
    assert len(message) < 250


def test_an_arm_is_found_by_name() -> None:
    results = usual(epochs=2)
    found = results.arm(SHARING)
    assert found is not None
    assert found.name == SHARING
    assert results.arm("none") is None
    assert results.pair(SHARING, ORIGINAL) is results.paired[0]
    assert results.pair(ORIGINAL, SHARING) is None


@pytest.mark.parametrize("text", ["[" * 200_000, '{"format_version": ' + "1" * 5000 + "}"])
def test_json_beyond_all_measure_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match="not a gradshare results file"):
        load_results(path)


def test_a_version_that_is_too_long_to_be_shown_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"format_version": [0.5] * 5000}), encoding="utf-8")
    with pytest.raises(RunError) as error:
        load_results(path)
    assert "it has format_version [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, ...]" in str(error.value)
