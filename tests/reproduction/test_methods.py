"""The table of methods."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradshare import RunError
from reproduction import methods


def test_the_published_table_is_what_the_published_results_give() -> None:
    assert (methods.PUBLISHED / "table.md").read_text("utf-8") == methods.table()


def test_published_results_have_every_arm_of_the_plan_and_no_pictures() -> None:
    words = methods.settings_of_plan()["methods"]
    published = sorted(methods.PUBLISHED.glob(f"*{methods.PACKED}"))
    assert published
    for path in published:
        results = methods.read(path)
        assert [arm.partition(" [")[0] for arm in results.arms] == words
        assert not results.samples
        assert path.name.removesuffix(methods.PACKED) in methods.TITLES


def test_without_results_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--from"):
        methods.table(tmp_path)
