"""The configuration of a run: one typed, validated object.

Each field is an option of the command line and a key of a YAML file, and a run stores all of them.
Nothing here needs torch.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

import yaml
from pydantic import model_validator

from gradshare.config.fields import (
    HEADINGS,
    PLUS_FIELDS,
    Settings,
    SharingControl,
    Span,
    option_name,
)
from gradshare.config.names import is_import_path
from gradshare.config.text import read_yaml
from gradshare.errors import ConfigError

ORIGINAL: Final = "original"
SHARING: Final = "gradient-sharing"
RATE_CONTROL: Final = "rate-control"

SHARES_NOTHING: frozenset[SharingControl] = frozenset(
    {"rate-control", "own-gradient", "learned-rates"}
)
"""The controls in which no task sees another. The others leave out a part of sharing."""

WITHOUT_SHARING = ("reptile", "imaml", "protonet")
"""The methods that have no differentiable inner loop in which tasks could share gradients."""

ARM_FIELDS = ("sharing", "sharing_control", "fixed_lambda", "fixed_m")
"""The settings that tell arms apart."""

# Our setting for names in other libraries and the literature whose spelling leads elsewhere.
_OUR_NAMES = {
    "filters": "hidden_size",
    "inner_lr": "fast_lr inner_learning_rate step_size update_lr",
    "memory": "recompute",
    "model": "backbone",
    "order": "first_order second_order",
    "outer_lr": "learning_rate lr meta_learning_rate meta_lr outer_learning_rate",
    "task_batch": "batch_size",
    "tasks": "tasks_at_a_time",
}

PAPER = {
    "ways": 5,
    "queries": 15,
    "image_size": 84,
    "filters": 48,
    "batch_norm": "transductive",
    "inner_steps": 5,
    "inner_lr": 0.1,
    "outer_lr": 0.001,
    "iterations_per_epoch": 1000,
    "val_tasks": 600,
    "test_tasks": 600,
    "ensemble": 5,
}
PAPER_EPOCHS = {"cub": {5: 150, 1: 750}, "mini-imagenet": {5: 250, 1: 1250}}
"""Epochs in the paper, by dataset and task batch."""


class RunConfig(Settings):
    """Everything that one training run depends on.

    Raises:
        ConfigError: a setting is unknown, with the nearest one, or a value is out of bounds.
    """

    def __init__(self, /, **settings: Any) -> None:
        check_keys(settings)
        super().__init__(**settings)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """This configuration with some settings changed, checked like a new one."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**given, **(update or {})})

    @model_validator(mode="before")
    @classmethod
    def _where_sharing_is_off_by_default(cls, settings: Any) -> Any:
        rule = settings.get("rule") is not None and settings.get("sharing_control") is None
        if rule or settings.get("method") in WITHOUT_SHARING:
            return {"sharing": False, **settings}
        return settings

    @model_validator(mode="after")
    def _settings_fit_together(self) -> RunConfig:
        if self.sharing_control and not self.sharing:
            raise ValueError(
                f"sharing_control {self.sharing_control!r} replaces sharing, which is off; "
                "leave one of them out"
            )
        for gate, value, without in (
            ("λ", self.fixed_lambda, ("learned-rates",)),
            ("m", self.fixed_m, SHARES_NOTHING),
        ):
            if value is not None and (not self.sharing or self.sharing_control in without):
                raise ValueError(
                    f"--fixed-{gate.replace('λ', 'lambda')} {value:g} fixes {gate}, which "
                    f"{self.sharing_control or ORIGINAL} does not have; leave it out"
                )
        if self.workers > self.task_batch:
            raise ValueError(
                f"--workers {self.workers} is more than the {self.task_batch} tasks of a batch; "
                "use at most as many workers as --task-batch"
            )
        if self.test_dataset is not None and any(
            is_import_path(name) for name in (self.dataset, self.test_dataset)
        ):
            raise ValueError(
                f"--test-dataset {self.test_dataset} is for two prepared datasets; a function of "
                "your own returns its test tasks itself: gradshare.Splits(train, validation, test)"
            )
        for name in PLUS_FIELDS if self.method != "maml++" else ():
            if getattr(self, name) != default_of(name):
                raise ValueError(
                    f"{option_name(name)} {getattr(self, name)!r} is a part of MAML++ that "
                    f"--method {self.method} does not have; use --method maml++ or leave it out"
                )
        return self

    @property
    def arm(self) -> str:
        """The run's name in a comparison, from its `ARM_FIELDS`."""
        if not self.sharing:
            return ORIGINAL
        held = {"lambda": self.fixed_lambda, "m": self.fixed_m}
        gates = (f"{name}-{gate:g}" for name, gate in held.items() if gate is not None)
        return "-".join((self.sharing_control or SHARING, *gates))

    @property
    def shares(self) -> bool:
        """Whether tasks use gradients of other tasks: the arm has a ĝ."""
        return self.sharing and self.sharing_control not in SHARES_NOTHING

    @property
    def inner_rate(self) -> float:
        """The inner learning rate, or the initial value of learned ones."""
        return self.inner_lr * self.inner_lr_scale

    @property
    def iterations(self) -> int:
        """Outer iterations of the whole run."""
        return self.epochs * self.iterations_per_epoch

    def span(self, span: Span) -> int:
        """The outer iterations of a span of this run."""
        if span.endswith("%"):
            return round(float(span.removesuffix("%")) / 100 * self.iterations)
        return int(span)

    @property
    def depends_on_length(self) -> str | None:
        """A setting whose meaning depends on the run's length; None if there is none."""
        if self.cosine_annealing_to is not None:
            return "cosine_annealing_to"
        spans = ("first_order_for", *(("multi_step_loss",) if self.method == "maml++" else ()))
        return next((name for name in spans if getattr(self, name).endswith("%")), None)

    @classmethod
    def from_yaml(cls, path: Path | str) -> RunConfig:
        """The settings of a YAML file, such as a run's `config.yaml`; defaults for the rest.

        Raises:
            ConfigError: it cannot be read, or a setting is unknown or out of bounds.
        """
        settings = read_yaml(Path(path).expanduser())
        try:
            return cls(**settings)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def to_yaml(self) -> str:
        """All fields, as a file that `--config` and `from_yaml` read."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def check_keys(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError if a key is not a field of `RunConfig`."""
    for key in settings:
        if key not in RunConfig.model_fields:
            near = [ours for ours, theirs in _OUR_NAMES.items() if key in theirs.split()]
            near += difflib.get_close_matches(str(key), RunConfig.model_fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`gradshare train --help` has them all"
            raise ConfigError(f"unknown setting {reprlib.repr(key)}; {hint}")


def default_of(name: str) -> Any:
    """The default of a setting."""
    return RunConfig.model_fields[name].default


def heading_of(name: str) -> str:
    """The heading of a setting in the command line's help."""
    fields = list(RunConfig.model_fields)
    return [t for first, t in HEADINGS.items() if fields.index(first) <= fields.index(name)][-1]


def paper_settings(dataset: str, task_batch: int, method: str) -> dict[str, Any]:
    """The settings of the paper's Appendix A; the defaults apply to what it does not mention.

    Raises:
        ConfigError: the paper has no such experiment.
    """
    epochs = PAPER_EPOCHS.get(dataset, {}).get(task_batch)
    if epochs is None:
        raise ConfigError(
            f"--preset paper: the paper has no settings for --dataset {dataset} with --task-batch "
            f"{task_batch}; use --dataset {' or '.join(PAPER_EPOCHS)} with --task-batch 5 or 1"
        )
    settings = {**PAPER, "dataset": dataset, "task_batch": task_batch, "method": method}
    if method == "maml++":
        # The reference code anneals its multi-step loss over 15 epochs, and the paper's epochs have
        # 1,000 iterations whatever the task batch.
        settings["multi_step_loss"] = "15000"
    return {**settings, "epochs": epochs}
