"""The configuration of a run: one typed, validated object.

Each field is an option of the command line and a key of a YAML file, and a run stores all of them.
Nothing here needs torch.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import ValidationError, ValidationInfo, field_validator, model_validator

from gradshare.config.arms import ARM_FIELDS, ORIGINAL, SHARES_NOTHING, SHARING
from gradshare.config.fields import CHANGEABLE_FIELDS, PLUS, Settings, Span
from gradshare.config.names import checked
from gradshare.config.text import UNWRITABLE, read_yaml
from gradshare.errors import ConfigError


class RunConfig(Settings):
    """Everything that one training run depends on.

    Raises:
        ConfigError: a setting is unknown, with the nearest one, or a value is out of bounds.
    """

    def __init__(self, **settings: Any) -> None:
        check_keys(settings)
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(e) for e in error.errors())) from error

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """This configuration with some settings changed, checked like a new one.

        Args:
            update: the settings that change.
            deep: makes no difference.

        Raises:
            ConfigError: as for a new one.
        """
        return type(self)(**{**self.model_dump(), **(update or {})})

    @model_validator(mode="before")
    @classmethod
    def _text_that_can_be_written(cls, settings: Any) -> Any:
        # YAML can spell characters that no file name and no file can hold.
        for name, value in settings.items():
            if isinstance(value, str | Path) and UNWRITABLE.search(str(value)):
                raise ValueError(f"{option_name(name)} {str(value)!r} holds a control character")
        return settings

    @model_validator(mode="before")
    @classmethod
    def _a_rule_of_ones_own_shares_nothing_unless_asked(cls, settings: Any) -> Any:
        if settings.get("rule") is None or settings.get("sharing_control") is not None:
            return settings
        return {"sharing": False, **settings}

    @field_validator("dataset", "model", "method", "rule", "loss")
    @classmethod
    def _known_or_an_import_path(cls, value: str | None, info: ValidationInfo) -> str | None:
        return None if value is None else checked(info.field_name or "", value)

    @field_validator("metric")
    @classmethod
    def _known_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(checked("metric", name) for name in names)

    @model_validator(mode="after")
    def _control_needs_sharing(self) -> RunConfig:
        if self.sharing_control and not self.sharing:
            raise ValueError(
                f"sharing_control {self.sharing_control!r} replaces sharing, which is off; "
                "leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _fixed_gates_exist(self) -> RunConfig:
        for name, value, without in (
            ("fixed_lambda", self.fixed_lambda, ("learned-rates",)),
            ("fixed_m", self.fixed_m, SHARES_NOTHING),
        ):
            if value is not None and (not self.sharing or self.sharing_control in without):
                gate = name.removeprefix("fixed_").replace("lambda", "λ")
                raise ValueError(
                    f"{option_name(name)} {value:g} fixes {gate}, which "
                    f"{self.sharing_control or ORIGINAL} does not have; leave it out"
                )
        return self

    @model_validator(mode="after")
    def _anneals_downwards(self) -> RunConfig:
        end = self.cosine_annealing_to
        if end is not None and end > self.outer_lr:
            raise ValueError(
                f"--cosine-annealing-to {end:g} is above the outer learning rate "
                f"{self.outer_lr:g}; give at most --outer-lr"
            )
        return self

    @model_validator(mode="after")
    def _a_task_for_every_worker(self) -> RunConfig:
        if self.workers > self.task_batch:
            raise ValueError(
                f"--workers {self.workers} is more than the {self.task_batch} tasks of a batch; "
                "use at most as many workers as --task-batch"
            )
        return self

    @model_validator(mode="after")
    def _parts_of_maml_plus_plus(self) -> RunConfig:
        for name, field in RunConfig.model_fields.items():
            value = getattr(self, name)
            if heading_of(name) == PLUS and value != field.default and self.method != "maml++":
                raise ValueError(
                    f"{option_name(name)} {value!r} is a part of MAML++ that --method "
                    f"{self.method} does not have; use --method maml++ or leave it out"
                )
        return self

    def without_arm(self) -> Self:
        """The same with gradient sharing, whatever arm it is of."""
        defaults = {name: type(self).model_fields[name].default for name in ARM_FIELDS}
        return self.model_copy(update=defaults)

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

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return 1 / self.ways

    def span(self, span: Span) -> int:
        """A span of this run in outer iterations."""
        if span.endswith("%"):
            return round(float(span.removesuffix("%")) / 100 * self.iterations)
        return int(span)

    @property
    def depends_on_length(self) -> str | None:
        """A setting that means something else in a longer run; None if there is none."""
        if self.cosine_annealing_to is not None:
            return "cosine_annealing_to"
        spans = ["first_order_for"]
        if self.method == "maml++":
            spans.append("multi_step_loss")
        shares = (name for name in spans if getattr(self, name).endswith("%"))
        return next(shares, None)

    @classmethod
    def from_yaml(cls, path: Path | str) -> RunConfig:
        """The settings of a YAML file, such as a run's `config.yaml`; defaults for the rest.

        Raises:
            ConfigError: it cannot be read, or a setting is unknown or out of bounds.
        """
        return cls(**load_yaml(Path(path).expanduser()))

    def to_yaml(self) -> str:
        """All fields, as a file that `--config` and `from_yaml` read."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


# What other libraries and the literature call a setting, if spelling would lead elsewhere.
_ELSEWHERE = {
    "backbone": "model",
    "batch_size": "task_batch",
    "fast_lr": "inner_lr",
    "first_order": "order",
    "hidden_size": "filters",
    "inner_learning_rate": "inner_lr",
    "learning_rate": "outer_lr",
    "lr": "outer_lr",
    "meta_learning_rate": "outer_lr",
    "meta_lr": "outer_lr",
    "outer_learning_rate": "outer_lr",
    "recompute": "memory",
    "second_order": "order",
    "step_size": "inner_lr",
    "tasks_at_a_time": "tasks",
    "update_lr": "inner_lr",
}


def check_keys(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError if a key is not a field of `RunConfig`."""
    for key in settings:
        if key not in RunConfig.model_fields:
            near = (
                [_ELSEWHERE[key]]
                if key in _ELSEWHERE
                else difflib.get_close_matches(str(key), RunConfig.model_fields, n=1)
            )
            hint = f"did you mean {near[0]!r}?" if near else "`gradshare train --help` has them all"
            raise ConfigError(f"unknown setting {reprlib.repr(key)}; {hint}")


def load_yaml(path: Path) -> dict[str, Any]:
    """Read the settings of a YAML file.

    Raises:
        ConfigError: it cannot be read, or a setting is unknown.
    """
    settings = read_yaml(path)
    try:
        check_keys(settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return settings


def from_settings(settings: Mapping[str, Any]) -> RunConfig:
    """A configuration from settings by name.

    Raises:
        ConfigError: see `RunConfig`.
    """
    return RunConfig(**settings)


def first_difference(old: RunConfig, new: RunConfig) -> tuple[str, Any, Any] | None:
    """The name and both values of the first setting that makes two runs different ones."""
    for name in RunConfig.model_fields:
        before, now = getattr(old, name), getattr(new, name)
        if name not in CHANGEABLE_FIELDS and before != now:
            return name, before, now
    return None


def heading_of(name: str) -> str:
    """The heading of a setting in the command line's help; "Other" if there is no such setting."""
    field = RunConfig.model_fields.get(name)
    extra = None if field is None else field.json_schema_extra
    return str(extra["group"]) if isinstance(extra, dict) else "Other"


def option_name(field: str) -> str:
    """The command-line option of a field."""
    return "--" + field.replace("_", "-")


def _explain(error: Any) -> str:
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return str(message)
    field = str(error["loc"][0])
    message = message.replace("Input should be ", "must be ")
    return f"{option_name(field)} {reprlib.repr(error['input'])}: {message}"
