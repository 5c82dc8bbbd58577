"""The sources of a dataset."""

from __future__ import annotations

from dataclasses import dataclass

from gradshare.tasks.source import TaskSource


@dataclass(frozen=True)
class Splits:
    """What a dataset function of your own returns for `gradshare train --dataset FILE.py:NAME`.

    Attributes:
        train: the source of training tasks.
        validation: the source of validation tasks.
        test: the source of test tasks; None for a run without a test.
    """

    train: TaskSource
    validation: TaskSource
    test: TaskSource | None = None
