"""The notebooks of the gallery run, and hold what they print and draw."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

HOME = Path(__file__).parent.parent / "docs" / "gallery"
NOTEBOOKS = ["deployment", "photos", "pipeline", "rows", "signals"]

FEWER = {"iterations": 2, "val_tasks": 20, "tasks": 3}
"""Numbers with which a notebook runs in seconds."""


def code_cells(notebook: str) -> list[dict[str, Any]]:
    cells = json.loads((HOME / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.usefixtures("few_calibration_tasks")
@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_runs_and_draws(
    notebook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    names: dict[str, Any] = {}
    for number, cell in enumerate(code_cells(notebook)):
        code = "".join(cell["source"])
        for word, count in FEWER.items():
            code = re.sub(rf"\b{word}=\d+", f"{word}={count}", code)
        exec(compile(code, f"{notebook}.ipynb, cell {number}", "exec"), names)
    assert plt.get_fignums()
    plt.close("all")


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_notebook_is_short_and_holds_its_output_and_a_picture(notebook: str) -> None:
    cells = code_cells(notebook)
    lines = [line for cell in cells for line in cell["source"] if line.strip()]
    assert len(lines) <= 70
    assert all(cell["execution_count"] for cell in cells)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    assert not any(output.get("name") == "stderr" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert (HOME / f"{notebook}.ipynb").stat().st_size < 100_000


def test_the_site_has_each_notebook() -> None:
    site = (HOME.parent.parent / "mkdocs.yml").read_text(encoding="utf-8")
    assert sorted(path.stem for path in HOME.glob("*.ipynb")) == NOTEBOOKS
    assert all(f"gallery/{notebook}.ipynb" in site for notebook in NOTEBOOKS)
