"""Imports point one way through the folders, and no file is too long to read."""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "gradshare"
MODULES = sorted(SOURCE.rglob("*.py"))

MAY_IMPORT = {
    "errors": "",
    "executors": "errors",
    "tasks": "errors",
    "models": "errors",
    "inner_loop": "errors",
    "methods": "errors tasks models inner_loop",
    "training": "errors tasks models inner_loop methods",
    "testing": "errors tasks models inner_loop methods",
    "comparison": "errors tasks models inner_loop methods training executors",
    "config": "errors tasks models inner_loop methods training comparison executors",
    "backbones": "errors tasks models config",
    "classifier": "errors tasks models inner_loop methods training config backbones",
}


def name_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES}


def imports_of(path: Path) -> set[str]:
    """The modules of the package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` and `from module import name` look the same.
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= whole & NAMES or {node.module}
    return {name for name in found if name.startswith("gradshare")} - {name_of(path)}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_back_along_the_way_of_the_data(folder: str) -> None:
    files = [
        path for path in MODULES if path.relative_to(SOURCE).with_suffix("").parts[0] == folder
    ]
    assert files
    allowed = {folder, *MAY_IMPORT[folder].split()}
    wrong = {
        (name_of(path), name)
        for path in files
        for name in imports_of(path)
        if name.partition(".")[2].partition(".")[0] not in allowed
    }
    assert not wrong


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name_of(path): imports_of(path) & NAMES for path in MODULES}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_file_has_more_than_400_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
