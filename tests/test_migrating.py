"""The code of the page for those who come from other libraries, theirs and ours."""

from __future__ import annotations

import re
import shlex
import sys
from typing import Any

import pytest
import torch

import gradshare as gs
from gradshare.cli.options import read_config
from gradshare.cli.train import train_command
from tests import elsewhere
from tests.test_documents import blocks, run, text

PAGE = "docs/migrating.md"
NAMES = {"0.weight", "0.bias", "2.weight", "2.bias"}

(SETTING,) = blocks(PAGE)
OURS = re.findall(r"^becomes `(.*)`\.$", text(PAGE), flags=re.MULTILINE)
SECTIONS = re.findall(r"^## (.*)$", text(PAGE), flags=re.MULTILINE)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the page's first block defines. `elsewhere` replaces missing libraries."""
    for name, module in elsewhere.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    found: dict[str, Any] = {}
    run(SETTING, PAGE, found)
    return found


def meta_gradients(model: torch.nn.Module) -> dict[str, Any]:
    return {name: p.grad for name, p in model.named_parameters()}


def require_equal(found: dict[str, Any], expected: dict[str, Any], digits: float = 1e-9) -> None:
    assert found.keys() == expected.keys() >= NAMES
    for name, gradient in expected.items():
        assert gradient.abs().max() > 1e-4, name
        largest = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=digits, atol=digits * largest)


@pytest.mark.filterwarnings("ignore")  # of the other libraries
@pytest.mark.parametrize(
    ("theirs", "ours"),
    list(zip(blocks(PAGE, "py"), OURS, strict=True)),
    ids=SECTIONS[: len(OURS)],
)
def test_what_their_code_becomes_has_its_outputs_and_meta_gradients(
    theirs: str, ours: str, names: dict[str, Any]
) -> None:
    theirs_names = dict(names)
    run(theirs, PAGE, theirs_names)
    found_outputs, gradients = eval(ours, dict(names))
    found = {n.removeprefix("model."): g for n, g in gradients.items()}
    model = theirs_names["model"]
    parameters = theirs_names.get("parameters")
    expected = (
        meta_gradients(model)
        if parameters is None
        else {name: p.grad for name, p in parameters.items()}
    )
    # parallel-metalearn keeps its inner rate in single precision.
    require_equal(found, expected, digits=1e-7 if "metalearn" in theirs else 1e-9)
    if "outputs" in theirs_names:  # parallel-metalearn's step does not return them
        outputs = torch.stack(theirs_names["outputs"])
        torch.testing.assert_close(found_outputs, outputs, rtol=1e-9, atol=1e-12)


def learn2learn(there: str, names: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The loop of the page with another wrapper; ANIL's has the features before it."""
    algorithms = elsewhere.modules()["learn2learn.algorithms"]
    model = names["net"]()
    wrapper = eval(there, {**vars(algorithms), "model": model})
    body = model[:2] if wrapper.module is model[2] else torch.nn.Identity()
    outputs, loss = [], names["F"].cross_entropy
    for t in range(4):
        learner, x = wrapper.clone(), body(names["support_x"][t])
        for _ in range(5):
            learner.adapt(loss(learner(x), names["support_y"][t]))
        outputs.append(learner(body(names["query_x"][t])))
        torch.autograd.backward(loss(outputs[t], names["query_y"][t]) / 4)
    rates = {f"rate.{n}": p.grad for n, p in wrapper.named_parameters() if n.startswith("lrs")}
    return torch.stack(outputs), meta_gradients(model) | rates


ROWS = re.findall(r"^\| `((?:MAML|MetaSGD).*?)`.*? \| `(gs\..*?)` \|$", text(PAGE), re.MULTILINE)


@pytest.mark.parametrize(("there", "here"), ROWS, ids=[there for there, _ in ROWS])
def test_each_row_of_learn2learn_has_its_outputs_and_meta_gradients(
    there: str, here: str, names: dict[str, Any]
) -> None:
    outputs, expected = learn2learn(there, names)
    found_outputs, gradients = names["meta_step"](eval(here, names))
    torch.testing.assert_close(found_outputs, outputs, rtol=1e-9, atol=1e-12)
    found = {n.removeprefix("model."): g for n, g in gradients.items()}
    rates = [expected.pop(name) for name in list(expected) if name.startswith("rate.")]
    ours = [found.pop(name) for name in list(found) if name not in NAMES]
    require_equal(found, expected)
    assert len(rates) == len(ours) == (4 if "MetaSGD" in there else 0)
    for one, other in zip(ours, rates, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


PARTS = re.findall(r"^\| `(fast_weights_names=.*?)` \| `(gs\..*?)` \|$", text(PAGE), re.MULTILINE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("there", "here"), PARTS, ids=[here for _, here in PARTS])
def test_each_row_of_parallel_metalearn_has_its_meta_gradients(
    there: str, here: str, names: dict[str, Any]
) -> None:
    theirs = next(block for block in blocks(PAGE, "py") if "metalearn" in block)
    run(theirs.replace("fast_weights_names=None", there), PAGE, names)
    _, gradients = names["meta_step"](eval(here, names))
    found = {n.removeprefix("model."): g for n, g in gradients.items()}
    require_equal(found, meta_gradients(names["model"]), digits=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_torchopts_adam_is_ours_but_for_its_single_precision(names: dict[str, Any]) -> None:
    theirs = next(block for block in blocks(PAGE, "py") if "torchopt" in block)
    run(theirs.replace("MetaSGD(model, lr=0.1)", "MetaAdam(model, lr=0.01)"), PAGE, names)
    expected = {name: p.grad for name, p in names["parameters"].items()}
    learner = gs.maml(names["net"](), steps=5, inner_lr=0.01, rule=gs.Adam())
    outputs, gradients = names["meta_step"](learner)
    torch.testing.assert_close(outputs, torch.stack(names["outputs"]), rtol=1e-4, atol=1e-5)
    found = {n.removeprefix("model."): g for n, g in gradients.items()}
    require_equal(found, expected, digits=1e-3)


def test_the_options_of_the_maml_plus_plus_code_are_options_here() -> None:
    rows = re.findall(r"^\| `\".*?\|(.*)\|$", text(PAGE), flags=re.MULTILINE)
    assert len(rows) == 11
    for row in rows:
        words = shlex.split(row.strip().strip("`"))
        context = train_command.make_context("train", [*words, "--method", "maml++", "--dry-run"])
        given = {n: v for n, v in context.params.items() if n in gs.RunConfig.model_fields}
        config = read_config({}, None, given)
        assert any(value is not None for name, value in given.items() if name != "method")
        assert config.method == "maml++"
    # Epochs 0 to 80 of 500 iterations are first order there.
    assert gs.RunConfig(method="maml++", first_order_for="40500").span("40500") == 81 * 500
