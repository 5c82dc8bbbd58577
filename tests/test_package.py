"""What `import gradshare` gives, and what it leaves alone until it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import gradshare as gs


def in_a_new_process(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_public_name_can_be_used_and_is_what_a_type_checker_sees() -> None:
    stub = Path(gs.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    imports = [node for node in ast.parse(stub).body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert sorted(seen) == sorted(gs.__all__)
    for name, module in seen.items():
        home = import_module(f"gradshare.{module or name}")
        assert getattr(gs, name) is (getattr(home, name) if module else home), name


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((Path(__file__).parents[1] / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == gs.__version__


def test_everything_can_be_imported_at_once() -> None:
    code = "from gradshare import *; print(fit.__name__, testing.__name__, ResNet12.__name__)"
    assert in_a_new_process(code) == "fit gradshare.testing ResNet12\n"


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="gradshare attribute train"):
        _ = gs.train  # type: ignore[attr-defined]
    assert not hasattr(import_module("gradshare.config"), "xyzzy")


@pytest.mark.parametrize(
    "code",
    [
        "import gradshare",
        "import gradshare.cli",
        "from gradshare.config import RunConfig; RunConfig(model='my.py:Net').to_yaml()",
        "from gradshare.cli.train import train_command",
    ],
)
def test_what_needs_no_torch_does_not_import_it(code: str) -> None:
    heavy = "{'torch', 'matplotlib', 'numpy', 'rich'}"
    assert in_a_new_process(f"{code}; import sys; print({heavy} & sys.modules.keys())") == "set()\n"


def test_a_process_that_trains_does_not_import_matplotlib() -> None:
    code = "import gradshare.config.runs, gradshare.comparison.worker, sys"
    assert in_a_new_process(f"{code}; print('matplotlib' in sys.modules)") == "False\n"


@pytest.mark.parametrize("command", [["--help"], ["train", "--help"], ["train", "-h"]])
def test_help_needs_no_torch(command: list[str]) -> None:
    code = f"""
import sys
from gradshare.cli import program
sys.argv = ["gradshare", *{command!r}]
try:
    program()
finally:
    print({{"torch", "matplotlib", "numpy", "rich"}} & sys.modules.keys(), end="")
"""
    assert in_a_new_process(code).endswith("set()")
