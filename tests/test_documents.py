"""The code in the documents and the examples does what they say."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import gradshare as gs
from gradshare.experiments.compare import results_of_runs
from gradshare.experiments.results import save_results
from gradshare.inner_loop.rule import sum_over_local_tasks
from tests.tasks.builders import make_image

ROOT = Path(__file__).parent.parent


def python_blocks(document: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_readmes_quick_start_is_the_example_and_short() -> None:
    quick_start = python_blocks("README.md")[0]
    example = (ROOT / "examples" / "quick_start.py").read_text(encoding="utf-8")
    assert quick_start in example
    assert len([line for line in quick_start.splitlines() if line.strip()]) <= 20


def test_the_quick_start_runs_and_runs_again(
    tiny: dict[str, object], data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = python_blocks("README.md")[0]
    # The same lines on a dataset of seconds instead of minutes.
    for old, new in (
        ('dataset="glyphs", method="maml", epochs=4, iterations_per_epoch=30', "**tiny"),
        ('"glyphs", Path("data")', f'"tiny", Path({str(data_root)!r})'),
        ("ways=5, shots=1, queries=15", "ways=3, shots=1, queries=4"),
    ):
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__", "tiny": tiny})


def test_the_readmes_photographs_are_classified(
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["crow", "lark", "owl"]
    for path in [f"new-birds/{name}/{n}.jpg" for name in names for n in (1, 2)]:
        make_image(Path(path), shade=len(path))
    for path in ("garden.jpg", "pond.jpg"):
        make_image(Path(path))
    gs.train(gs.RunConfig(**tiny), Path("runs/birds/gradient-sharing"))
    capsys.readouterr()
    code = "from pathlib import Path\nimport gradshare as gs\n" + python_blocks("README.md")[1]
    exec(compile(code, "README.md", "exec"), {})
    predicted = capsys.readouterr().out.strip("[]\n").replace("'", "").split()
    assert len(predicted) == 2
    assert set(predicted) <= set(names)


def test_the_sinusoid_example_learns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = []
    for iterations in ("0", "40"):
        monkeypatch.setattr(sys, "argv", ["sinusoid.py", "--iterations", iterations])
        runpy.run_path(str(ROOT / "examples" / "sinusoid.py"), run_name="__main__")
        lines = capsys.readouterr().out.splitlines()
        assert [line.split("  ")[0].strip() for line in lines] == [
            "original",
            "gradient sharing",
            "rate-control",
        ]
        errors.append([float(line.split()[-1]) for line in lines])
    assert all(after < before for before, after in zip(*errors, strict=True))


@pytest.fixture
def extensions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the code of docs/extending.md defines, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in python_blocks("docs/extending.md"):
        exec(compile(block, "docs/extending.md", "exec"), names)
    return names


def test_the_documented_dataset_is_found_by_its_name_and_trained_on(
    extensions: dict[str, Any], tiny: dict[str, Any]
) -> None:
    assert extensions["store"].path == Path("data/mine/32")
    assert extensions["store"].image_shape == (1, 32, 32)
    own = {**tiny, "dataset": "mine", "data_root": "data", "epochs": 1}
    assert gs.train(gs.RunConfig(**own), "runs/mine").history


def test_the_documented_outer_loop_trains_and_tests(extensions: dict[str, Any]) -> None:
    assert extensions["state"]["sharing.seen"].all()
    accuracy = extensions["accuracy"]
    assert accuracy.n == 40
    assert 0 < accuracy.mean < 1
    before, _ = extensions["mine"].init()
    changed = [not torch.equal(before[name], t) for name, t in extensions["learned"].items()]
    assert all(changed)


def test_the_documented_outer_loop_goes_on_from_what_it_saved(extensions: dict[str, Any]) -> None:
    (saved,) = extensions["optimizer"].state_dict()["param_groups"]
    assert len(saved["params"]) == len(extensions["learned"])
    assert all(t.requires_grad and t.is_leaf for t in extensions["learned"].values())
    model = (extensions["mine"], extensions["learned"], extensions["state"])
    starts = range(0, 40, 10)
    batches = [extensions["test"].batch(range(start, start + 10)) for start in starts]
    assert (
        gs.evaluate(*model, map(extensions["normalize"].batch, batches)) == extensions["accuracy"]
    )


def test_the_documented_results_are_those_of_the_run(
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    result = gs.train(gs.RunConfig(**{**tiny, "epochs": 1}), "run")
    save_results(
        results_of_runs([result], "by hand"),
        Path("runs/first/results.json"),
    )
    for block in python_blocks("docs/configuration.md"):
        exec(compile(block, "docs/configuration.md", "exec"), {})
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("gradient-sharing ")
    assert second == str([epoch.val_accuracy for epoch in result.history])


def test_the_documented_rule_clips_each_task_and_learns_its_length(
    extensions: dict[str, Any],
) -> None:
    rule = extensions["LearnedClipping"](2, start=0.5)
    learned, state = rule.init({"w": torch.zeros(3)})
    gradients = {"w": torch.tensor([[3.0, 4.0, 0.0], [0.1, 0.0, 0.0]])}
    learned["length"].requires_grad_()
    updates, _ = rule.update(gradients, learned, state, 1, sum_over_local_tasks)
    assert torch.allclose(updates["w"], torch.tensor([[0.3, 0.4, 0.0], [0.1, 0.0, 0.0]]))
    (gradient,) = torch.autograd.grad(updates["w"].sum(), [learned["length"]])
    assert gradient[0] == 0
    assert gradient[1] != 0
    learner = extensions["learner"]
    assert isinstance(learner, gs.MetaLearner)
    assert learner.adapted == ("linear.weight", "linear.bias")


def test_the_documented_rule_bears_zero_gradients_and_parameters_without_dimensions(
    extensions: dict[str, Any],
) -> None:
    rule = extensions["LearnedClipping"](1, start=0.5)
    learned, state = rule.init({"w": torch.zeros(2), "scale": torch.tensor(1.0)})
    learned["length"].requires_grad_()
    gradients = {
        "w": torch.tensor([[0.0, 0.0], [3.0, 0.0]], requires_grad=True),
        "scale": torch.tensor([0.0, 4.0], requires_grad=True),
    }
    updates, _ = rule.update(gradients, learned, state, 0, sum_over_local_tasks)
    assert torch.allclose(updates["w"], torch.tensor([[0.0, 0.0], [0.3, 0.0]]))
    assert torch.allclose(updates["scale"], torch.tensor([0.0, 0.4]))
    total = updates["w"].sum() + updates["scale"].sum()
    for gradient in torch.autograd.grad(total, [learned["length"], *gradients.values()]):
        assert gradient.isfinite().all()


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        assert (document.parent / link).exists(), link


def test_every_test_that_the_promises_name_exists() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 30
    for file, test in named:
        assert f"\ndef {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not row.endswith("| held by |")]
    assert all("`tests/" in row for row in promises)
