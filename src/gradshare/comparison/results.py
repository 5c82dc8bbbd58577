"""What a comparison came to, and `results.json`, its typed form."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from gradshare.comparison.plan import Plan
from gradshare.errors import RunError
from gradshare.training.files import null_where_not_finite, write_atomically
from gradshare.training.folder import RunFolder, kept_epochs
from gradshare.training.metrics import Metric
from gradshare.training.records import VALIDATION, EpochRecord, first_mistake
from gradshare.training.statistics import Z95

FORMAT_VERSION: Final = 3
FILENAME = "results.json"

Outcome = Literal["trained", "not trained", "diverged"]
Values = npt.NDArray[np.float64]


def _nan_for_null(values: Any) -> Any:
    return [math.nan if value is None else value for value in values]


Numbers = Annotated[list[float], BeforeValidator(_nan_for_null)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class MetricFacts(_Part):
    """What is known of a metric without its function; see `gradshare.Metric`."""

    best: Literal["high", "low"]
    unit: str
    chance: float | None

    def metric(self) -> Metric:
        """A metric that can show values, but not compute them."""
        return Metric(_no_function, self.best, self.unit, self.chance)


class ArmRun(_Part):
    """One run: an arm with a seed.

    Attributes:
        arm: its name.
        seed: its seed.
        outcome: "not trained" if the interval of its best validation score reaches chance,
            "diverged" if something became non-finite.
        message: where it diverged.
        history: a record for each epoch.
        test: each metric's value for each test task, of the ensemble of the best checkpoints.
        members: how many checkpoints the ensemble has.
        training_seconds: wall time of training alone.
        environment: versions, hardware and layout of the process that trained it.
    """

    arm: str
    seed: int
    outcome: Outcome
    message: str | None
    history: Annotated[list[EpochRecord], BeforeValidator(lambda h: [_record(r) for r in h])]
    test: dict[str, Numbers]
    members: int = Field(ge=0)
    training_seconds: float
    environment: dict[str, Any]

    @property
    def trained(self) -> bool:
        """Whether it can be compared."""
        return self.outcome == "trained" and bool(self.test)


class Results(_Part):
    """A whole comparison.

    Attributes:
        baseline: the arm that the others are compared with.
        controls: the names of the controls.
        score: the metric that selects checkpoints and decides.
        metrics: what is known of each metric.
        runs: each arm with each seed, in the order of the arms.
        settings: of all runs.
        commands: that reproduce it.
        notes: for the reader, such as tensors that start differently.
        yardsticks: values of learners that cost nothing on the same test tasks, by name and metric.
    """

    format: Literal[3] = FORMAT_VERSION
    gradshare: str
    baseline: str
    controls: tuple[str, ...]
    score: str
    metrics: dict[str, MetricFacts]
    runs: tuple[ArmRun, ...]
    settings: dict[str, Any]
    commands: tuple[str, ...]
    notes: tuple[str, ...]
    yardsticks: dict[str, dict[str, Numbers]] = {}

    @model_validator(mode="after")
    def _of_one_comparison(self) -> Results:
        tests = [run.test for run in self.runs if run.test]
        sizes = {len(values) for test in tests for values in test.values()}
        validations = [r.metrics.get(VALIDATION, {}) for run in self.runs for r in run.history]
        if len({(run.arm, run.seed) for run in self.runs}) < len(self.runs):
            raise ValueError("an arm has two runs of one seed")
        if not {self.baseline, *self.controls} <= {*self.arms}:
            raise ValueError("the baseline or a control has no run")
        if self.score not in self.metrics or any(self.score not in m for m in validations):
            raise ValueError(f"the score {self.score!r} is not everywhere")
        if any(test.keys() != self.metrics.keys() for test in tests) or len(sizes) > 1:
            raise ValueError("the tests have different metrics or numbers of tasks")
        return self

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of the arms, in their order."""
        return tuple(dict.fromkeys(run.arm for run in self.runs))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, ascending."""
        return tuple(sorted({run.seed for run in self.runs}))

    def of(self, arm: str) -> tuple[ArmRun, ...]:
        """The runs of an arm."""
        return tuple(run for run in self.runs if run.arm == arm)

    def metric(self, name: str) -> Metric:
        """A metric, for its unit and direction."""
        return self.metrics[name].metric()

    def table(self) -> list[dict[str, Any]]:
        """One long table with a row for each epoch, split and metric, and for each test task."""
        rows = []
        for run in self.runs:
            own = {"arm": run.arm, "seed": run.seed, "task": None}
            rows += [own | row for record in run.history for row in record.rows()]
            own |= {"epoch": None, "split": "test", "ci95": None}
            rows += [
                own | {"metric": name, "value": value, "task": task}
                for name, values in run.test.items()
                for task, value in enumerate(values)
            ]
        return rows


def results_of(
    plan: Plan,
    folder: Path,
    metrics: Mapping[str, Metric],
    score: str,
    *,
    settings: Mapping[str, Any],
    commands: Sequence[str],
    notes: Sequence[str],
    yardsticks: dict[str, dict[str, list[float]]],
) -> Results:
    """Collect the results of a comparison from the folders of its runs."""
    runs = [
        _run_of(plan.place(folder, arm, seed), arm, seed, metrics[score], score)
        for arm in plan.arms
        for seed in plan.seeds
    ]
    facts = {
        name: MetricFacts(best=m.best, unit=m.unit, chance=m.chance) for name, m in metrics.items()
    }
    return Results(
        gradshare=version("gradshare"),
        baseline=plan.baseline,
        controls=plan.controls,
        score=score,
        metrics=facts,
        runs=tuple(runs),
        settings=dict(settings),
        commands=tuple(commands),
        notes=tuple(notes),
        yardsticks=yardsticks,
    )


def is_finished(place: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a folder holds a run of an identity that has nothing left to do."""
    folder = RunFolder(place)
    if not folder.started or folder.contents()["identity"] != identity:
        return False
    saved = folder.load_latest()
    progress = {} if saved is None else saved.progress
    diverged_at_once = progress.get("diverged") is not None and not progress["history"]
    return progress.get("test") is not None or diverged_at_once


def save_results(results: Results, path: Path) -> None:
    """Write `results.json`.

    Raises:
        RunError: it cannot be written.
    """
    dumped = results.model_dump(mode="python", exclude={"runs"})
    dumped["runs"] = [
        {**run.model_dump(exclude={"history"}), "history": [r.to_json() for r in run.history]}
        for run in results.runs
    ]
    text = json.dumps(null_where_not_finite(dumped), ensure_ascii=False, allow_nan=False)
    write_atomically(path, text.encode())


def load_results(path: str | Path) -> Results:
    """Read the results of a comparison.

    Args:
        path: its folder, or `results.json`.

    Raises:
        RunError: there are none, they were written by another version, or edited by hand so that
            they don't fit together.
    """
    file = Path(path).expanduser()
    file = file / FILENAME if file.is_dir() else file
    try:
        stored = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(
            f"{file} cannot be read: {error!s:.200}; give the folder of a comparison"
        ) from error
    found = stored.get("format", stored.get("format_version")) if isinstance(stored, dict) else None
    if found != FORMAT_VERSION:
        raise RunError(
            f"{file} has results of format {found!r:.20}, this gradshare reads {FORMAT_VERSION}; "
            "use gradshare 0.1.0 for those of its time"
        )
    try:
        return Results.model_validate(stored)
    except (ValidationError, TypeError, KeyError, AttributeError) as error:
        what = first_mistake(error) if isinstance(error, ValidationError) else repr(error)
        raise RunError(
            f"{file} is damaged or was edited: {what:.300}; write it again with resume='auto' "
            "(gradshare compare --resume auto)"
        ) from error


def _run_of(place: Path, arm: str, seed: int, metric: Metric, score: str) -> ArmRun:
    saved = RunFolder(place).load_latest()
    if saved is None:
        raise RunError(f"{place} holds no checkpoint of the run {arm!r} with seed {seed}")
    progress = saved.progress
    history = [EpochRecord.from_json(record) for record in progress["history"]]
    diverged, test = progress["diverged"], progress["test"] or {}
    return ArmRun(
        arm=arm,
        seed=seed,
        outcome="diverged" if diverged is not None else judge(history, metric, score),
        message=diverged,
        history=history,
        test=test.get("ensemble", {}),
        members=test.get("members", 0),
        training_seconds=progress["training_seconds"],
        environment=progress["environment"],
    )


def judge(
    history: Sequence[EpochRecord], metric: Metric, score: str
) -> Literal["trained", "not trained"]:
    """Whether a run that did not diverge has learned anything.

    It has not if the 95 % interval of its best validation score reaches chance, where there is
    one. The best of many is the luckiest of them, so its interval is widened by their number
    (Bonferroni's correction).
    """
    if not history:
        return "not trained"
    if metric.chance is None:
        return "trained"
    best = history[best_epoch(history, metric, score) - 1].metrics[VALIDATION][score]
    if best.ci95 is None:
        return "not trained"
    surer = NormalDist().inv_cdf(1 - 0.025 / len(history)) / Z95
    gain = best.mean - metric.chance if metric.best == "high" else metric.chance - best.mean
    return "trained" if gain > surer * best.ci95 else "not trained"


def best_epoch(history: Sequence[EpochRecord], metric: Metric, score: str) -> int:
    """The earliest epoch with the best validation score."""
    return kept_epochs(history, score, metric.rank, 1)[0]


def _record(record: Any) -> Any:
    return record if isinstance(record, EpochRecord) else EpochRecord.from_json(record)


def _no_function(*_: object) -> float:
    raise RunError("results.json holds no functions: pass the metrics that were compared by")
