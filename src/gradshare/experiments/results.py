"""The typed form of `results.json`: what a comparison, or one training run, came to.

Accuracies are fractions in [0, 1], epochs count from 1, losses are cross-entropies in nats. The
file never contains NaN or Infinity, which JSON does not have: what is not finite is null.
"""

from __future__ import annotations

import json
import reprlib
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from gradshare.errors import RunError
from gradshare.training.files import make_folder, null_where_not_finite, write_atomically
from gradshare.training.statistics import Interval

FORMAT_VERSION: Final = 1
FILENAME: Final = "results.json"

Outcome = Literal["trained", "not trained", "diverged"]
ShareOfGain = Literal["80", "90", "95"]

Fraction = Annotated[float, Field(ge=0, le=1)]
HalfWidth = Annotated[float, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Measured = Annotated[float | None, BeforeValidator(null_where_not_finite)]
Facts = Annotated[dict[str, JsonValue], BeforeValidator(null_where_not_finite)]
Epoch = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=1)]


class Record(BaseModel):
    """What every part of a results file has in common: it cannot change, nor hold a stray key."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True
    )


class Validation(Record):
    """The accuracy on the validation tasks after an epoch.

    Attributes:
        epoch: counted from 1.
        accuracy: mean over tasks.
        ci95: half the 95 % interval over tasks; None for a single task.
        seconds: wall time since the run began, this validation included; None where it was not
            recorded.
    """

    epoch: Epoch
    accuracy: Fraction
    ci95: HalfWidth | None
    seconds: Seconds | None = None


class Test(Record):
    """The accuracy on the test tasks.

    Attributes:
        accuracy: mean over tasks.
        ci95: half the 95 % interval over tasks; None for a single task.
        tasks: how many.
        ensemble: how many checkpoints' predictions were averaged.
    """

    # pytest collects classes by this prefix; this one holds no tests.
    __test__ = False

    accuracy: Fraction
    ci95: HalfWidth | None
    tasks: Count
    ensemble: Count

    @property
    def interval(self) -> Interval:
        """The accuracy and its interval over tasks."""
        return Interval(self.accuracy, self.ci95, self.tasks)


class SharingPoint(Record):
    """The learned sharing parameters after an epoch, as in the paper's Figure 3.

    Attributes:
        epoch: counted from 1.
        m: mean over k of σ(m_k); None where the arm has no running mean to update.
        lambda_: mean over k of σ(λ_k); `lambda` in JSON.
    """

    epoch: Epoch
    m: Annotated[Fraction | None, BeforeValidator(null_where_not_finite)]
    lambda_: Annotated[
        Fraction | None, BeforeValidator(null_where_not_finite), Field(alias="lambda")
    ]


class InnerLoopPoint(Record):
    """Accuracy and loss on a task's own support and query images before and after its K steps.

    Means over the validation tasks. Support far above query after adaptation is the inner loop's
    over-fitting.
    """

    epoch: Epoch
    support_accuracy_before: Measured
    support_accuracy_after: Measured
    support_loss_before: Measured
    support_loss_after: Measured
    query_accuracy_before: Measured
    query_accuracy_after: Measured
    query_loss_before: Measured
    query_loss_after: Measured


class Arm(Record):
    """One training run of a comparison.

    Attributes:
        name: "original", "gradient-sharing", "rate-control", or the name of another control.
        outcome: whether it trained. "not trained": the interval of its best validation accuracy
            reaches down to chance; "diverged": something became non-finite.
        validation: by epoch.
        best_epoch: the earliest one of the highest validation accuracy; None before any.
        test: with the ensemble of the best checkpoints.
        test_single: with the best checkpoint alone.
        sharing: by epoch; empty for an arm without sharing parameters.
        inner_loop: by epoch.
        seconds: wall time of the whole arm.
        seed: of its initialisation and its training tasks.
        chance: the accuracy of guessing, 1 / ways.
        message: why it diverged.
        test_accuracies: of each test task, in an order that all arms share; belongs to `test`.
    """

    name: Annotated[str, Field(min_length=1)]
    outcome: Outcome
    validation: tuple[Validation, ...]
    best_epoch: Epoch | None
    test: Test | None
    test_single: Test | None
    sharing: tuple[SharingPoint, ...]
    inner_loop: tuple[InnerLoopPoint, ...]
    seconds: Seconds
    seed: int
    chance: Annotated[float, Field(gt=0, lt=1)]
    message: str | None
    test_accuracies: tuple[Fraction, ...] | None

    @property
    def trained(self) -> bool:
        """Whether the outcome is "trained"."""
        return self.outcome == "trained"

    @property
    def best(self) -> Validation | None:
        """The validation of the best epoch."""
        return next((v for v in self.validation if v.epoch == self.best_epoch), None)

    @property
    def epochs(self) -> int:
        """The last epoch with a validation; 0 before any."""
        return self.validation[-1].epoch if self.validation else 0

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        for field in ("validation", "sharing", "inner_loop"):
            epochs = [point.epoch for point in getattr(self, field)]
            if any(later <= earlier for earlier, later in pairwise(epochs)):
                raise ValueError(f"the epochs of {field} do not increase")
        if self.best_epoch is not None and self.best is None:
            raise ValueError(f"best_epoch {self.best_epoch} has no validation")
        if self.trained and self.best is None:
            raise ValueError("a trained arm needs a validation and a best_epoch")
        if (
            self.test is not None
            and self.test_accuracies is not None
            and len(self.test_accuracies) != self.test.tasks
        ):
            raise ValueError(
                f"test_accuracies has {len(self.test_accuracies)} values "
                f"for {self.test.tasks} test tasks"
            )
        return self


class Paired(Record):
    """The difference of two arms' accuracies on the same test tasks.

    Attributes:
        first: an arm's name.
        second: another's.
        difference: accuracy of first - accuracy of second, mean over tasks.
        ci95: half the 95 % interval of that difference over tasks; None for a single task.
        tasks: how many.
    """

    first: str
    second: str
    difference: Annotated[float, Field(ge=-1, le=1)]
    ci95: HalfWidth | None
    tasks: Count

    @property
    def interval(self) -> Interval:
        """The difference and its interval over tasks."""
        return Interval(self.difference, self.ci95, self.tasks)


class Results(Record):
    """Everything in a `results.json`.

    Attributes:
        format_version: 1.
        dataset: its name.
        method: "maml", "meta-sgd" or "maml++".
        config: the settings of the run, as its configuration file has them.
        environment: versions, hardware.
        command: what to type to get these results again.
        arms: in the order they were run; no name twice.
        speedup: the paper's (§3), 0.66 for 66 %; None unless both arms trained.
        speedup_to_reach: how much sooner sharing reached 80, 90 and 95 % of the original's gain
            over chance; None where it never did.
        paired: the differences between arms.
    """

    format_version: Literal[1] = FORMAT_VERSION
    dataset: str
    method: str
    config: Facts
    environment: Facts
    command: str
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]
    speedup: float | None
    speedup_to_reach: dict[ShareOfGain, float | None]
    paired: tuple[Paired, ...]

    def arm(self, name: str) -> Arm | None:
        """The arm of that name, if it was run."""
        return next((arm for arm in self.arms if arm.name == name), None)

    def pair(self, first: str, second: str) -> Paired | None:
        """The paired difference first - second, if it was taken."""
        return next((p for p in self.paired if (p.first, p.second) == (first, second)), None)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        names = [arm.name for arm in self.arms]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two arms are called {twice[0]!r}")
        for pair in self.paired:
            for name in (pair.first, pair.second):
                if name not in names:
                    raise ValueError(f"paired names {name!r}, which is no arm")
        return self


def save_results(results: Results, path: Path) -> None:
    """Write a results file so that a crash leaves the old file or the new one, never a part.

    Raises:
        RunError: the file cannot be written.
    """
    content = results.model_dump(mode="json", by_alias=True)
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    make_folder(path.parent)
    write_atomically(path, f"{text}\n".encode())


def seed_files(folder: Path) -> list[Path]:
    """The results files of a comparison of several seeds; none if it is none."""
    return sorted(folder.glob(f"seed-*/{FILENAME}"))


def load_results(path: Path | str) -> Results:
    """Read a results file, or the `results.json` of the folder of a run or a comparison. One of
    several seeds has such a folder for each.

    Raises:
        RunError: there is none, it cannot be read, it is not a results file, or a newer version of
            gradshare wrote it.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        of_seeds = [found.parent.name for found in seed_files(path)]
        path = path / FILENAME
        if of_seeds and not path.exists():
            raise RunError(
                f"{path.parent} holds a comparison of several seeds; give the folder of one of "
                f"them: {', '.join(of_seeds)}"
            )
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RunError(
            f"{path}: no such file; `gradshare compare` and `gradshare train` write it when they "
            "end, and `gradshare train --config RUN/config.yaml --out RUN --resume auto` beside a "
            "run RUN that was trained otherwise"
        ) from error
    except OSError as error:
        raise RunError(
            f"{path}: cannot be read: {error.strerror or error}; check the path and its permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise RunError(
            f"{path}: not a results file, byte {error.start} is not UTF-8 text; "
            f"give the {FILENAME} of a run"
        ) from error
    _require_this_version(path, text)
    try:
        return Results.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise RunError(_first_mistake(path, error)) from error


def _require_this_version(path: Path, text: str) -> None:
    """Refuse what is not a results file of this version, before looking at its fields."""
    try:
        content: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise RunError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno} ({error.msg}); "
            f"the file is cut off or is no {FILENAME}: copy it again or repeat the run"
        ) from error
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond all measure
        raise RunError(
            f"{path}: not a gradshare results file ({error}); give the {FILENAME} of a run"
        ) from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        found = (
            "no format_version" if version is None else f"format_version {reprlib.repr(version)}"
        )
        raise RunError(
            f"{path}: not a gradshare results file, it has {found}; give the {FILENAME} of a run"
        )
    if version > FORMAT_VERSION:
        raise RunError(
            f"{path}: written by a newer gradshare, in format {version}; this gradshare reads "
            f"format {FORMAT_VERSION}: update gradshare"
        )


def _first_mistake(path: Path, error: ValidationError) -> str:
    mistakes = error.errors(include_url=False, include_context=False)
    first = mistakes[0]
    field = ".".join(str(part) for part in first["loc"]) or "the file"
    cause = first["msg"].removeprefix("Value error, ")
    value = ""
    if isinstance(first["input"], str | int | float | bool | None) and first["type"] not in (
        "missing",
        "value_error",
    ):
        shown = repr(first["input"])
        value = f", is {shown if len(shown) <= 60 else shown[:57] + '...'}"
    more = len(mistakes) - 1
    others = f" (and {more} more like it)" if more else ""
    return (
        f"{path}: damaged results file: {field}{value}: {cause}{others}; copy it again or repeat "
        "the run"
    )
