"""The sources of a dataset."""

from __future__ import annotations

from typing import NamedTuple

from gradshare.tasks.source import TaskSource


class Splits(NamedTuple):
    """What a dataset function of your own returns for `gradshare train --dataset FILE.py:NAME`.

    Attributes:
        train: the source of training tasks.
        validation: the source of validation tasks.
        test: the source of test tasks; None for a run without a test.
    """

    train: TaskSource
    validation: TaskSource
    test: TaskSource | None = None
