"""The paper's experiments as data: which runs there are, at each of two scales.

A plan is a YAML file beside this one. It has studies; a study has axes, and a cell, one training
run, for every combination of a label of each axis. A label stands for settings of a run, so that a
cell's configuration is the plan's settings, then its study's, then those of its labels in the order
of the axes, then those that `also` gives to a combination of labels.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field

from gradshare.config import from_settings
from gradshare.errors import ConfigError

Scale = Literal["paper", "cpu"]
SCALES: tuple[Scale, ...] = get_args(Scale)

Settings = dict[str, Any]


class Combination(BaseModel):
    """Settings of the cells that have all of some labels.

    Attributes:
        of: the labels.
        settings: what these cells get.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    of: list[str]
    settings: Settings


class Loan(BaseModel):
    """Cells of another study that would be the same runs in this one, and stand in it too.

    Attributes:
        of: their study and the labels by which they are known there.
        labels: those of this study's axes that they get here instead.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    of: list[str]
    labels: dict[str, str] = {}


class Study(BaseModel):
    """Runs that answer one question together.

    Two axes have a meaning: cells that differ in their `arm` and their `seed` alone are compared.

    Attributes:
        title: what the study is.
        note: what has to be said wherever its results stand.
        settings: of all its cells.
        axes: by the axis's name, the settings of each of its labels.
        also: settings of combinations of labels.
        leave_out: combinations of labels that there are no cells of.
        borrows: cells of another study.
        sweep: the setting that its accuracies are drawn against, if there is one.
        curves: whether curves are drawn of its comparisons.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str
    note: str = ""
    settings: Settings = {}
    axes: dict[str, dict[str, Settings]] = Field(min_length=1)
    also: list[Combination] = []
    leave_out: list[list[str]] = []
    borrows: Loan | None = None
    sweep: str | None = None
    curves: bool = True

    @property
    def heading(self) -> str:
        """The title, as the beginning of a sentence."""
        return f"{self.title[0].upper()}{self.title[1:]}"

    def combinations(self) -> list[dict[str, str]]:
        """The labels of each of its own cells, by the axis's name, in the order of the axes."""
        return [
            dict(zip(self.axes, labels, strict=True))
            for labels in itertools.product(*self.axes.values())
            if not any(set(absent) <= set(labels) for absent in self.leave_out)
        ]

    def settings_of(self, labels: Collection[str]) -> Settings:
        """What some labels, of all axes or of some, say of a run."""
        settings = dict(self.settings)
        for axis in self.axes.values():
            for label, its_own in axis.items():
                if label in labels:
                    settings |= its_own
        for combination in self.also:
            if set(combination.of) <= set(labels):
                settings |= combination.settings
        return settings


@dataclass(frozen=True)
class Cell:
    """One training run of a plan.

    Attributes:
        study: the name of the study that it belongs to.
        labels: its label on each axis, by the axis's name.
        config: what is run.
    """

    study: str
    labels: Mapping[str, str]
    config: Any

    def __hash__(self) -> int:
        """By the name: labels and settings have no hash."""
        return hash(self.name)

    @property
    def name(self) -> str:
        """Its study and labels, as the path of its folder below that of all results."""
        return "/".join((self.study, *self.labels.values()))

    def is_called(self, word: str) -> bool:
        """Whether a word picks it: its study, a label, or its name or the beginning of that."""
        return word in self.labels.values() or f"{self.name}/".startswith(f"{word}/")


class Plan(BaseModel):
    """All runs at one scale.

    Attributes:
        settings: of all cells.
        studies: by name, in the order in which they are run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: Settings
    studies: dict[str, Study]

    def cells(self) -> list[Cell]:
        """Every run, in the order in which they are to be trained."""
        cells = []
        for name, study in self.studies.items():
            for labels in study.combinations():
                settings = {**self.settings, **study.settings_of(labels.values())}
                cells.append(Cell(name, labels, from_settings(settings)))
        return cells

    def owns(self, cell: Cell) -> bool:
        """Whether it is one of these runs, and does not stand in its study as a borrowed one."""
        return cell.labels in self.studies[cell.study].combinations()


def load_plan(scale: Scale) -> Plan:
    """The plan of a scale."""
    text = resources.files(__package__).joinpath(f"plans/{scale}.yaml").read_text("utf-8")
    return Plan.model_validate(yaml.safe_load(text))


def on_machine(cells: Iterable[Cell], settings: Mapping[str, Any]) -> list[Cell]:
    """The same cells with settings of where and how they run, which change no result.

    Raises:
        ConfigError: they do not fit one of them.
    """
    found = []
    for cell in cells:
        try:
            found.append(replace(cell, config=cell.config.model_copy(update=settings)))
        except ConfigError as error:
            raise ConfigError(
                f"cell {cell.name}: {error}; pick others with --only or --except"
            ) from error
    return found


def pick(cells: Sequence[Cell], only: Iterable[str], without: Iterable[str] = ()) -> list[Cell]:
    """The cells that each of some filters picks, less those that any of others picks.

    Args:
        cells: to choose among.
        only: each a study, a label, or a name or its beginning, or several of them joined by
            commas, of which one must fit.
        without: the same, of what is left out.

    Raises:
        ConfigError: a word fits no cell, or together they leave none.
    """
    chosen = list(cells)
    for alternatives in only:
        words = _words(cells, "--only", alternatives)
        chosen = [cell for cell in chosen if any(cell.is_called(word) for word in words)]
    for alternatives in without:
        words = _words(cells, "--except", alternatives)
        chosen = [cell for cell in chosen if not any(cell.is_called(word) for word in words)]
    if not chosen:
        given = [
            *(f"--only {words}" for words in only),
            *(f"--except {words}" for words in without),
        ]
        raise ConfigError(f"no cell fits {' '.join(given)} together; leave one of them out")
    return chosen


def _words(cells: Sequence[Cell], option: str, alternatives: str) -> list[str]:
    """The words of an option's value.

    Raises:
        ConfigError: one fits no cell.
    """
    words = [word.strip().strip("/") for word in alternatives.split(",")]
    for word in words:
        if not any(cell.is_called(word) for cell in cells):
            known = dict.fromkeys(w for c in cells for w in (c.study, *c.labels.values()))
            near = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
            raise ConfigError(
                f"{option} {word!r} fits no cell; did you mean {near[0]!r}? Studies and labels: "
                f"{', '.join(known)}"
            )
    return words


def paper_settings(dataset: str, task_batch: int, method: str) -> Settings:
    """What Appendix A says of a dataset and a task batch; everything it is silent about is left
    to the defaults.

    Args:
        dataset: "cub" or "mini-imagenet".
        task_batch: 5 or 1.
        method: as `--method` takes it.

    Raises:
        ConfigError: the paper has no such experiment.
    """
    plan = load_plan("paper")
    grid = plan.studies["grid"]
    datasets, batches = grid.axes["dataset"], grid.axes["batch"]
    if dataset not in datasets:
        raise ConfigError(
            f"--preset paper: the paper has no settings for dataset {dataset!r}; "
            f"use --dataset {' or '.join(datasets)}"
        )
    batch = f"batch-{task_batch}"
    if batch not in batches:
        sizes = [settings["task_batch"] for settings in batches.values()]
        raise ConfigError(
            f"--preset paper: the paper has task batches {' and '.join(map(str, sizes))}, not "
            f"{task_batch}; use --task-batch {' or '.join(map(str, sizes))}"
        )
    return plan.settings | grid.settings_of((dataset, method, batch))
