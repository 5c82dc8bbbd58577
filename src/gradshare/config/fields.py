"""The settings of a run: name, type, default, bounds and description of each.

A description is the option's `--help`; a group is a heading there. Nothing here needs torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from gradshare.config.arms import SharingControl
from gradshare.config.text import at_home, numbers, span

# The same as in the modules that they belong to, which import torch.
Norm = Literal["global", "per-tensor"]
Activation = Literal["leaky_relu", "relu"]
BatchNormMode = Literal["transductive", "inductive"]
Precision = Literal["float32", "bfloat16"]
Resize = Literal["stretch", "center-crop"]

PixelScaling = Literal["dataset", "imagenet", "unit"]
Order = Literal["second", "first"]
OnDivergence = Literal["stop", "skip", "record"]

SEEDS = 2**22

HomePath = Annotated[Path, AfterValidator(at_home)]
Span = Annotated[str, BeforeValidator(span)]
Options = Annotated[dict[str, JsonValue], BeforeValidator(numbers)]
Names = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]

# Where and how fast a run goes, but not what it is: a run may be continued with others.
MACHINE_FIELDS = ("data_root", "device", "threads", "workers")
# `on_divergence` changes nothing before the first refused iteration.
CHANGEABLE_FIELDS = (*MACHINE_FIELDS, "on_divergence")

DATA, TASKS, METHOD, PLUS, OUTER, EVALUATION, MACHINE = (
    "Data",
    "Tasks",
    "Inner loop and sharing",
    "Parts of MAML++ (read by --method maml++ only)",
    "Outer loop",
    "Evaluation",
    "Machine and output",
)


def _field(default: Any, group: str, description: str, **constraints: Any) -> Any:
    return Field(
        default, description=description, json_schema_extra={"group": group}, **constraints
    )


def _options(kind: str, group: str, what: str) -> Any:
    return _field({}, group, f"option of the {kind}, {what}; repeat for more")


class Settings(BaseModel):
    """The fields of `RunConfig`."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )

    dataset: str = _field(
        "glyphs",
        DATA,
        "a prepared dataset (see `gradshare data`), or the import path of a function that returns "
        "gradshare.Splits",
    )
    dataset_option: Options = _options("dataset", DATA, "if it is an import path")
    data_root: HomePath = _field(Path("data"), DATA, "folder of prepared datasets")
    image_size: int | None = _field(
        None, DATA, "height and width of the images in pixels; default: the dataset's own", ge=16
    )
    resize: Resize = _field(
        "stretch", DATA, "how the images were brought to that size when they were prepared"
    )
    pixel_scaling: PixelScaling = _field(
        "dataset",
        DATA,
        "how pixels are scaled after division by 255: standardised with the mean and standard "
        "deviation of the dataset, with those of ImageNet (the reference MAML++ loader), or not "
        "standardised (unit; torchmeta)",
    )

    ways: int = _field(5, TASKS, "classes in a task", ge=2)
    shots: int = _field(1, TASKS, "support examples of each class", ge=1)
    queries: int = _field(15, TASKS, "query examples of each class", ge=1)
    task_batch: int = _field(5, TASKS, "tasks in an outer iteration (the paper's T)", ge=1)

    method: str = _field(
        "maml",
        METHOD,
        "meta-learning method: maml, meta-sgd, maml++, unicorn-maml, or an import path",
    )
    method_option: Options = _options("method", METHOD, "such as head=classifier")
    model: str = _field("conv4", METHOD, "network: conv4, resnet12, or an import path")
    model_option: Options = _options("model", METHOD, "such as drop_rate=0.2")
    rule: str | None = _field(
        None,
        METHOD,
        "import path of an update rule of your own, which comes after sharing and before the "
        "inner learning rate",
    )
    rule_option: Options = _options("rule", METHOD, "such as beta=0.9")
    loss: str = _field(
        "cross-entropy", METHOD, "inner and outer loss: cross-entropy, mse, or an import path"
    )
    loss_option: Options = _options("loss", METHOD, "such as label_smoothing=0.1")
    sharing: bool = _field(
        True, METHOD, "share gradients between tasks; off by default where --rule is given"
    )
    sharing_control: SharingControl | None = _field(
        None,
        METHOD,
        "replace sharing by a control. rate-control: the learned gate with nothing shared; "
        "learned-rates: one learned rate for each step; own-gradient: the task's own normalised "
        "gradient instead of ĝ; unnormalized: without the norm of Eq. 1; detached: no outer "
        "gradient through g; forgotten: ĝ = 0 at validation and test",
    )
    fixed_lambda: float | None = _field(
        None, METHOD, "fix σ(λ) of every step at this value instead of learning λ", ge=0, le=1
    )
    fixed_m: float | None = _field(
        None,
        METHOD,
        "fix σ(m) of every step at this value instead of learning m; with 1, only the tasks of "
        "the same batch share",
        ge=0,
        le=1,
    )
    sharing_norm: Norm = _field(
        "global", METHOD, "norm of Eq. 1: over all parameters together, or for each tensor"
    )
    inner_steps: int = _field(5, METHOD, "inner gradient steps (the paper's K)", ge=1)
    inner_lr: float = _field(
        0.1, METHOD, "inner learning rate, or the initial value of learned rates", gt=0
    )
    inner_lr_scale: float = _field(
        1.0, METHOD, "factor of --inner-lr (10 in the paper's tenfold experiment)", gt=0
    )
    order: Order = _field(
        "second", METHOD, "whether the outer gradient passes through the inner gradients"
    )
    batch_norm: BatchNormMode = _field(
        "transductive",
        METHOD,
        "batch norm statistics of the queries: those of all queries of the task (transductive, as "
        "in the paper), or those of the support set (inductive)",
    )
    filters: int = _field(48, METHOD, "filters of each convolution of conv4", ge=1)
    activation: Activation = _field(
        "leaky_relu",
        METHOD,
        "activation of conv4: leaky_relu (slope 0.01) as in the reference code, or relu as in the "
        "paper's text",
    )
    conv_bias: bool = _field(
        False, METHOD, "biases in the convolutions of conv4; batch norm cancels them"
    )

    multi_step_loss: Span = _field(
        "15%",
        PLUS,
        "how long the losses after all inner steps count, with weights that are annealed to the "
        "last step: iterations or a share of the run; 0 for never (the reference: 7500 of 50000)",
    )
    per_step_rates: bool = _field(True, PLUS, "learn an inner rate for each tensor and step")
    per_step_batch_norm: bool = _field(True, PLUS, "learn a γ and β for each inner step")

    epochs: int = _field(10, OUTER, "epochs; each ends with a validation", ge=1)
    iterations_per_epoch: int = _field(50, OUTER, "outer iterations in an epoch", ge=1)
    outer_lr: float = _field(0.001, OUTER, "learning rate of the outer Adam", gt=0)
    first_order_for: Span = _field(
        "0",
        OUTER,
        "how long training is first order before it is second order (MAML++'s derivative-order "
        "annealing): iterations or a share of the run",
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
        "clamp each entry of the model's outer gradient to ± this value (the reference code: 10 "
        "on mini-ImageNet); m, λ and learned rates are never clamped",
        gt=0,
    )
    on_divergence: OnDivergence = _field(
        "record",
        OUTER,
        "what to do when a loss or gradient is not finite: stop with an error, skip the "
        "iteration, or end the run and record that as its result",
    )

    metric: Names = _field(
        (),
        EVALUATION,
        "what is measured: accuracy, loss, mse, or an import path; repeat for more. The first one "
        "selects checkpoints. Default: accuracy for classes, else the loss",
    )
    metric_option: Options = _options(
        "metric", EVALUATION, "such as best=low; of the first one that is an import path"
    )
    val_tasks: int = _field(200, EVALUATION, "validation tasks, the same after every epoch", ge=1)
    test_tasks: int = _field(600, EVALUATION, "test tasks, the same for every run", ge=1)
    ensemble: int = _field(
        5, EVALUATION, "how many of the best checkpoints are kept, and averaged in the test", ge=1
    )

    seed: int = _field(
        0, MACHINE, "seed of the initialisation and of the training tasks", ge=0, lt=SEEDS
    )
    device: str = _field("auto", MACHINE, "auto (CUDA if there is one), cpu, cuda or cuda:N")
    tasks: Literal["auto", "loop", "vmap"] = _field(
        "auto",
        MACHINE,
        "compute the tasks of a batch one after the other (loop) or all at once (vmap); auto: "
        "what is usually faster for this network on this device",
    )
    memory: Literal["auto", "keep", "recompute"] = _field(
        "auto",
        MACHINE,
        "keep the graphs of all inner steps for the backward pass, or recompute them in it, which "
        "takes memory that does not grow with --inner-steps; auto: keep if that takes at most "
        "4 GiB on a CPU, 16 GiB on a GPU",
    )
    precision: Precision = _field(
        "float32",
        MACHINE,
        "of convolutions and matrix products: float32, or bfloat16 (mixed precision), which is "
        "faster on processors that have instructions for it and changes results",
    )
    threads: int = _field(
        0,
        MACHINE,
        "CPU threads of each process; 0: as many as PyTorch takes (OMP_NUM_THREADS, or all "
        "cores), shared out among several processes",
        ge=0,
    )
    workers: int = _field(
        1, MACHINE, "processes on this machine that share out the tasks of each batch", ge=1
    )
