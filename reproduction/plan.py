"""The experiments as data: which runs there are, at each of two scales.

A plan is a YAML file in `plans/`. It has studies, and a study has axes. An axis has labels, and a
label is short for some settings of a run. Each combination of one label from each axis is a cell:
one training run. The settings of a study override those of the plan, and those of the labels
override both.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict

from gradshare import ConfigError, RunConfig
from gradshare.config.settings import paper_settings

HOME = Path(__file__).parent

Scale = Literal["paper", "cpu"]
SCALES: tuple[Scale, ...] = get_args(Scale)

Settings = dict[str, Any]

PAPERS_IMAGES = {"cub": 11_788, "mini-imagenet": 60_000}
"""How many images the paper's datasets have."""

ARM, SEED = "arm", "seed"
"""Axes with a special meaning: cells that differ only in these are compared."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Loan(_Part):
    """Cells of another study that this one shows too: it would train the same runs.

    Attributes:
        of: the name of the other study, and labels that the cells have there.
        labels: by axis, the labels that they have here instead.
    """

    of: list[str]
    labels: dict[str, str] = {}


class Study(_Part):
    """Runs that answer one question together.

    Attributes:
        title: in a few words, for headings and figures.
        note: a caveat, shown with its results.
        settings: of all its cells.
        axes: for each axis, the settings of each label.
        leave_out: combinations of labels without a cell.
        borrows: cells of another study.
        sweep: the setting on the x axis of its figure, if there is one.
        curves: whether curves are drawn of its comparisons.
    """

    title: str
    note: str = ""
    settings: Settings = {}
    axes: dict[str, dict[str, Settings]]
    leave_out: list[list[str]] = []
    borrows: Loan | None = None
    sweep: str | None = None
    curves: bool = True

    @property
    def heading(self) -> str:
        """The title, as the beginning of a sentence."""
        return f"{self.title[0].upper()}{self.title[1:]}"


@dataclass(frozen=True)
class Cell:
    """One training run of a plan, or a run that a study borrows from another.

    Attributes:
        study: that shows it.
        labels: its label on each axis of the study.
        config: what is run.
        borrowed: whether another study trains it.
    """

    study: str
    labels: Mapping[str, str]
    config: RunConfig
    borrowed: bool = False

    def __hash__(self) -> int:
        """By the name: labels and settings have no hash."""
        return hash(self.name)

    @property
    def name(self) -> str:
        """Its study and labels, as the path of its folder."""
        return "/".join((self.study, *self.labels.values()))

    @property
    def common(self) -> dict[str, str]:
        """Its labels on the axes other than arm and seed."""
        return {axis: label for axis, label in self.labels.items() if axis not in (ARM, SEED)}

    def is_called(self, word: str) -> bool:
        """Whether a word is its study, one of its labels, its name or the beginning of that."""
        return word in self.labels.values() or f"{self.name}/".startswith(f"{word}/")


class Plan(_Part):
    """All runs at one scale.

    Attributes:
        legend: how to read the tables.
        contrast: the caption of the table of what sharing adds to its control.
        preset: "paper" if cells start from the settings of the paper's Appendix A.
        settings: of all cells.
        studies: by name, in the order in which they are run.
    """

    legend: str = ""
    contrast: str = ""
    preset: Literal["paper"] | None = None
    settings: Settings = {}
    studies: dict[str, Study]

    def cells(self) -> list[Cell]:
        """Each run, in the order in which they are trained."""
        cells = []
        for name, study in self.studies.items():
            for combination in itertools.product(*study.axes.values()):
                if any(set(absent) <= set(combination) for absent in study.leave_out):
                    continue
                labels = dict(zip(study.axes, combination, strict=True))
                settings = self.settings | study.settings
                for axis, label in labels.items():
                    settings |= study.axes[axis][label]
                if self.preset == "paper":
                    names = ("dataset", "task_batch", "method")
                    settings = paper_settings(*(settings[name] for name in names)) | settings
                cells.append(Cell(name, labels, RunConfig(**settings)))
        return cells


def load_plan(scale: Scale) -> Plan:
    """The plan of a scale."""
    text = (HOME / "plans" / f"{scale}.yaml").read_text("utf-8")
    return Plan.model_validate(yaml.safe_load(text))


def on_machine(cells: Iterable[Cell], settings: Mapping[str, Any]) -> list[Cell]:
    """The same cells with settings that change no result, such as the device."""
    return [replace(cell, config=cell.config.model_copy(update=settings)) for cell in cells]


def pick(cells: Sequence[Cell], only: Iterable[str], without: Iterable[str] = ()) -> list[Cell]:
    """The cells that fit each of `only` and none of `without`.

    Args:
        cells: to choose from.
        only: filters; each is a word, see `Cell.is_called`, or several joined by commas, of which
            one must fit.
        without: likewise.

    Raises:
        ConfigError: a word fits no cell, or no cell is left.
    """
    chosen = list(cells)
    for option, filters, wanted in (("--only", only, True), ("--except", without, False)):
        for text in filters:
            words = [word.strip().strip("/") for word in text.split(",")]
            for word in words:
                if not any(cell.is_called(word) for cell in cells):
                    known = dict.fromkeys(w for c in cells for w in (c.study, *c.labels.values()))
                    near = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
                    raise ConfigError(
                        f"{option} {word!r} fits no cell; did you mean {near[0]!r}? Studies and "
                        f"labels: {', '.join(known)}"
                    )
            chosen = [cell for cell in chosen if any(map(cell.is_called, words)) == wanted]
    if not chosen:
        given = [*(f"--only {text}" for text in only), *(f"--except {text}" for text in without)]
        raise ConfigError(f"no cell fits {' '.join(given)} together; leave one of them out")
    return chosen
