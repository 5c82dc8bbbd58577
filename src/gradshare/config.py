"""The configuration of a run: one typed, validated object.

Every field is an option of the command line and a key of a YAML file, and a run stores all of
them. A field's description is its `--help`; its group is where the help lists it.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from gradshare.errors import ConfigError
from gradshare.inner_loop.sharing import Norm
from gradshare.methods.meta_learner import Precision
from gradshare.models.batch_norm import BatchNormMode
from gradshare.models.conv4 import Activation
from gradshare.tasks.images import Resize

Method = Literal["maml", "meta-sgd", "maml++"]
Order = Literal["second", "first"]
MAX_CONFIG_BYTES = 64 << 10

PixelScaling = Literal["dataset", "imagenet", "unit"]
SharingControl = Literal[
    "rate-control", "learned-rates", "own-gradient", "unnormalized", "detached", "forgotten"
]
SHARES_NOTHING: frozenset[SharingControl] = frozenset(
    {"rate-control", "own-gradient", "learned-rates"}
)
"""The controls in which no task sees another. The others leave out a part of sharing."""

# What tells the arms of a comparison apart, and their names; see `RunConfig.arm`.
ARM_FIELDS = ("sharing", "sharing_control", "fixed_lambda", "fixed_m")
ORIGINAL: Final = "original"
SHARING: Final = "gradient-sharing"
RATE_CONTROL: Final = "rate-control"


def is_control(name: str) -> bool:
    """Whether an arm shares nothing, and yet is not the original; its λ may be held.

    Args:
        name: as in `RunConfig.arm`: "rate-control", "own-gradient-lambda-0.5".
    """
    return any(name == bare or name.startswith(f"{bare}-lambda-") for bare in SHARES_NOTHING)


OnDivergence = Literal["stop", "skip", "record"]


def _check_span(value: object) -> str:
    text = str(value).strip()
    number = text.removesuffix("%")
    try:
        valid = 0 <= float(number) <= 100 if text.endswith("%") else int(number) >= 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("give a number of iterations like 7500, or a share of the run like 15%")
    return text


# Control characters, and the halves of pairs that UTF-8 has no form for.
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")

Span = Annotated[str, BeforeValidator(_check_span)]
"""A stretch of the run from its start: a number of outer iterations, or a percentage of them."""


def at_home(path: Path) -> Path:
    """A path that may begin with ~: in a file, in Python and after `--out=` no shell replaces it.

    Raises:
        ValueError: it is in the home of a user that is not known here.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{str(path)!r} is in the home of a user that is not known here"
        ) from error


HomePath = Annotated[Path, AfterValidator(at_home)]


def _field(default: Any, group: str, description: str, **constraints: Any) -> Any:
    return Field(
        default, description=description, json_schema_extra={"group": group}, **constraints
    )


DATA, TASKS, METHOD, PLUS, OUTER, EVALUATION, MACHINE = (
    "Data",
    "Tasks",
    "Inner loop and sharing",
    "Parts of MAML++ (read by --method maml++ only)",
    "Outer loop",
    "Evaluation",
    "Machine and output",
)


class RunConfig(BaseModel):
    """Everything that one training run depends on.

    Raises:
        ConfigError: an unknown key, with the nearest valid one if one is near, or a value out of
            bounds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dataset: str = _field("glyphs", DATA, "dataset to learn from; see `gradshare data`")
    data_root: HomePath = _field(Path("data"), DATA, "folder that holds the prepared datasets")
    image_size: int | None = _field(
        None, DATA, "height and width of the images in pixels; by default the dataset's own", ge=16
    )
    resize: Resize = _field(
        "stretch", DATA, "how images were brought to that size when the dataset was prepared"
    )
    pixel_scaling: PixelScaling = _field(
        "dataset",
        DATA,
        "pixels are divided by 255, then standardised by the dataset's own mean and standard "
        "deviation, by ImageNet's (the reference MAML++ loader), or not at all (torchmeta)",
    )

    ways: int = _field(5, TASKS, "classes in a task", ge=2)
    shots: int = _field(1, TASKS, "support images of each class", ge=1)
    queries: int = _field(15, TASKS, "query images of each class", ge=1)
    task_batch: int = _field(5, TASKS, "tasks in an outer iteration (the paper's T)", ge=1)

    method: Method = _field("maml", METHOD, "meta-learning method")
    sharing: bool = _field(True, METHOD, "share gradients between tasks")
    sharing_control: SharingControl | None = _field(
        None,
        METHOD,
        "put a control in the place of sharing. rate-control: the learned gate with nothing shared "
        "behind it; learned-rates: one learned rate for each step; own-gradient: the task's own "
        "normalised gradient in the place of ĝ; unnormalized: no norm in Eq. 1; detached: no outer "
        "gradient through g; forgotten: ĝ = 0 at validation and test",
    )
    fixed_lambda: float | None = _field(
        None, METHOD, "hold σ(λ) of every step at this, instead of learning λ", ge=0, le=1
    )
    fixed_m: float | None = _field(
        None,
        METHOD,
        "hold σ(m) of every step at this, instead of learning m; 1 shares with concurrent tasks "
        "alone",
        ge=0,
        le=1,
    )
    sharing_norm: Norm = _field(
        "global", METHOD, "norm of Eq. 1: over all parameters together, or for each tensor"
    )
    inner_steps: int = _field(5, METHOD, "inner gradient steps (the paper's K)", ge=1)
    inner_lr: float = _field(0.1, METHOD, "inner learning rate, or where learned ones start", gt=0)
    inner_lr_scale: float = _field(
        1.0, METHOD, "multiplies --inner-lr (10 for the paper's tenfold experiment)", gt=0
    )
    order: Order = _field("second", METHOD, "whether the outer gradient goes through inner ones")
    batch_norm: BatchNormMode = _field(
        "transductive",
        METHOD,
        "statistics of the queries' batch norm: their own, all queries of a task together "
        "(transductive, the paper's), or the support set's (inductive)",
    )
    filters: int = _field(48, METHOD, "filters of each convolution", ge=1)
    activation: Activation = _field(
        "leaky_relu",
        METHOD,
        "leaky_relu (slope 0.01) as in the reference code, or relu as in the paper's text",
    )
    conv_bias: bool = _field(
        False, METHOD, "give convolutions a bias, which batch norm takes out again"
    )

    multi_step_loss: Span = _field(
        "15%",
        PLUS,
        "how long the loss after every inner step counts, annealed to the last alone: "
        "iterations, or a share of the run; 0 for never (the reference: 7500 of 50000)",
    )
    per_step_rates: bool = _field(True, PLUS, "learn an inner rate for each tensor and step")
    per_step_batch_norm: bool = _field(True, PLUS, "learn a γ and β for each inner step")

    epochs: int = _field(10, OUTER, "epochs; after each the validation tasks are run", ge=1)
    iterations_per_epoch: int = _field(50, OUTER, "outer iterations in an epoch", ge=1)
    outer_lr: float = _field(0.001, OUTER, "learning rate of the outer Adam", gt=0)
    first_order_for: Span = _field(
        "0",
        OUTER,
        "derivative-order annealing (MAML++): first order for so many iterations, or a share of "
        "the run",
    )
    cosine_annealing_to: float | None = _field(
        None,
        OUTER,
        "anneal the outer learning rate to this value by a cosine (MAML++ on Omniglot: 1e-5)",
        ge=0,
    )
    clamp_gradients: float | None = _field(
        None,
        OUTER,
        "clamp each entry of the model's outer gradient to ± this (the reference code: 10 on "
        "mini-ImageNet); m, λ and learned rates are never clamped",
        gt=0,
    )
    on_divergence: OnDivergence = _field(
        "record",
        OUTER,
        "at an iteration with a loss or gradient that is not finite: stop with an error, skip the "
        "iteration, or end the run there and record that as its result",
    )

    val_tasks: int = _field(200, EVALUATION, "validation tasks, the same after every epoch", ge=1)
    test_tasks: int = _field(600, EVALUATION, "test tasks, the same for every model", ge=1)
    ensemble: int = _field(
        5, EVALUATION, "checkpoints, the best by validation, that are kept and averaged", ge=1
    )

    seed: int = _field(0, MACHINE, "of the initialisation and the training tasks", ge=0, lt=2**32)
    device: str = _field("auto", MACHINE, "auto (CUDA where there is one), cpu, cuda or cuda:N")
    tasks: Literal["auto", "loop", "vmap"] = _field(
        "auto",
        MACHINE,
        "compute the tasks of a batch one after the other, or all in one vmap; auto: vmap, but "
        "loop on a CPU where graphs are not kept",
    )
    memory: Literal["auto", "keep", "recompute"] = _field(
        "auto",
        MACHINE,
        "keep the graphs of all inner steps for the backward pass, or recompute them in it, which "
        "takes memory that does not grow with --inner-steps; auto: keep where that takes at most "
        "4 GiB on a CPU, 16 GiB on a GPU",
    )
    compile: bool = _field(
        False,
        MACHINE,
        "put the model's forward pass through torch.compile, if its gradients are then right",
    )
    precision: Precision = _field(
        "float32",
        MACHINE,
        "of convolutions and matrix products: float32, or bfloat16 (mixed precision), which is "
        "faster where the processor has instructions for it and changes results",
    )
    threads: int = _field(
        0,
        MACHINE,
        "CPU threads of each process that the program trains in; 0 for all cores, shared out",
        ge=0,
    )
    workers: int = _field(
        1,
        MACHINE,
        "processes on this machine that share out the tasks of each batch of a run",
        ge=1,
    )

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
            deep: no difference, since nothing in a configuration can be changed.

        Raises:
            ConfigError: as when one is made.
        """
        return type(self)(**{**self.model_dump(), **(update or {})})

    @model_validator(mode="before")
    @classmethod
    def _text_that_can_be_written(cls, settings: Any) -> Any:
        # YAML can spell characters that no file name and no file can hold.
        for name, value in settings.items():
            if isinstance(value, str | Path) and _UNWRITABLE.search(str(value)):
                raise ValueError(f"{option_name(name)} {str(value)!r} holds a control character")
        return settings

    @model_validator(mode="after")
    def _control_needs_sharing(self) -> RunConfig:
        if self.sharing_control and not self.sharing:
            raise ValueError(
                f"sharing_control {self.sharing_control!r} replaces sharing, which is off; "
                "leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _what_is_held_is_there(self) -> RunConfig:
        for name, value, without in (
            ("fixed_lambda", self.fixed_lambda, ("learned-rates",)),
            ("fixed_m", self.fixed_m, SHARES_NOTHING),
        ):
            if value is not None and (not self.sharing or self.sharing_control in without):
                gate = name.removeprefix("fixed_").replace("lambda", "λ")
                raise ValueError(
                    f"{option_name(name)} {value:g} holds {gate}, which "
                    f"{self.sharing_control or ORIGINAL} does not have; leave it out"
                )
        return self

    @model_validator(mode="after")
    def _anneals_downwards(self) -> RunConfig:
        end = self.cosine_annealing_to
        if end is not None and end > self.outer_lr:
            raise ValueError(
                f"--cosine-annealing-to {end:g} is above the outer learning rate "
                f"{self.outer_lr:g}, which would rise to it; give at most --outer-lr"
            )
        return self

    @model_validator(mode="after")
    def _a_task_for_every_worker(self) -> RunConfig:
        if self.workers > self.task_batch:
            raise ValueError(
                f"--workers {self.workers} has no task for every process: a batch has "
                f"{self.task_batch}; use at most as many workers as --task-batch"
            )
        return self

    @model_validator(mode="after")
    def _parts_of_maml_plus_plus(self) -> RunConfig:
        for name, field in RunConfig.model_fields.items():
            value = getattr(self, name)
            part = isinstance(field.json_schema_extra, dict) and (
                field.json_schema_extra["group"] == PLUS
            )
            if part and self.method != "maml++" and value != field.default:
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
        """What the run is called in a comparison, by its `ARM_FIELDS`."""
        if not self.sharing:
            return ORIGINAL
        held = {"lambda": self.fixed_lambda, "m": self.fixed_m}
        gates = (f"{name}-{gate:g}" for name, gate in held.items() if gate is not None)
        return "-".join((self.sharing_control or SHARING, *gates))

    @property
    def shares(self) -> bool:
        """Whether anything of other tasks reaches a task: the arm has a ĝ."""
        return self.sharing and self.sharing_control not in SHARES_NOTHING

    @property
    def inner_rate(self) -> float:
        """The rate of the inner steps, or where learned ones start."""
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


# What other libraries and the literature call a setting, where spelling would lead elsewhere.
_ELSEWHERE = {
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
    """Refuse keys that are no field of `RunConfig`.

    Raises:
        ConfigError: names the key and the nearest valid one, if one is near.
    """
    for key in settings:
        if key not in RunConfig.model_fields:
            near = (
                [_ELSEWHERE[key]]
                if key in _ELSEWHERE
                else difflib.get_close_matches(str(key), RunConfig.model_fields, n=1)
            )
            hint = f"did you mean {near[0]!r}?" if near else "`gradshare train --help` has them all"
            raise ConfigError(f"unknown setting {reprlib.repr(key)}; {hint}")


class _Loader(yaml.SafeLoader):
    """YAML without aliases, which make a few lines grow beyond all memory or never end."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name); write the value out")
        return super().compose_node(parent, index)


def load_yaml(path: Path) -> dict[str, Any]:
    """Read the settings of a YAML file.

    Raises:
        ConfigError: it cannot be read, is no YAML, or holds no mapping of known settings.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(
            f"{path} has more than {MAX_CONFIG_BYTES:,} bytes and is no configuration; give a "
            "file of lines like `ways: 5`"
        )
    try:
        settings = yaml.load(text, _Loader)
    except Exception as error:  # PyYAML's constructors raise nearly anything on odd values
        raise ConfigError(f"{path} is not valid YAML: {error!s:.400}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ConfigError(
            f"{path} must hold lines like `ways: 5`; it holds a {type(settings).__name__}"
        )
    try:
        check_keys(settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return settings


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
