"""How much memory a run will need, and how much there is.

The need is estimated from the shapes alone. With n images of S×S pixels and F filters, the unit is
one value for each entry of the four convolutions' outputs and of the input,

    U(n) = 4 bytes · n (F Σ_l (S / 2^l)² + C S²),

and the peak of a meta-step with T tasks, K steps and Q query passes a task (K with the multi-step
loss, else 1) is taken to be

    30 MiB + T K (2.35 U(support) + c P) + 1.9 T Q U(queries)
           + t (0.75 max(U(support), U(queries)) + 7 P) + 4 P' + S,

where P are the model's parameters, P' all outer parameters and S the rules' state, in bytes, c is
2.4, with sharing (or a control that mixes another gradient in, which was not measured) 2.4 more,
with learned rates 2 more, and t is T with vmap, else 1. The first-order step keeps no inner step's
activations. The recomputing one keeps none at all, and of the t tasks it holds
max(4.7 U(support), 2.65 U(queries)). Queries count twice in the inductive mode, with the support
set. An evaluation adapts 10 tasks without the graph of the outer gradient: 3 K P for each,
and max(2.7 U(support), 1.7 U(queries)), with vmap for each as well.

Calibrated on the peak resident memory over that of the idle process (VmHWM of two meta-steps, or of
two evaluations of 10 tasks; freed memory kept and joined as in `gradshare.training.machine`, glibc
2.36, torch 2.13.0 CPU, one thread, Python 3.11.7, 2026-11-24). Of meta-steps there were 15 settings
at 28×28 and 84×84: 1, 5 and 20 shots, 1 to 8 tasks, 2 to 10 steps, 48 filters, all three methods,
both orders; and 4 with 128 filters, two of them inductive, that the constants were not fitted to.
The estimate was off by

    graphs kept, vmap    7 settings   5 % less to  5 % more
    graphs kept, loop    4 settings   1 % less to  4 % more
    recomputed, loop     7 settings   3 % less to  9 % more, once 22 % more
    recomputed, vmap     1 setting                 7 % more

The same setting differs by 7 % from process to process. Evaluations, measured at 8 settings, leave
out the images of the 10 tasks (106 MB at 84×84 and 5 shots): there 2.58 GB were measured with vmap,
6 % more than estimated, and 429 MB one task at a time, where the meta-step takes as much. More than
128 filters and a GPU, where the layers are PyTorch's own, are not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from gradshare.config import RunConfig
from gradshare.inner_loop import Tensors
from gradshare.methods import MetaLearner
from gradshare.models.conv4 import LAYERS

# So many tasks are evaluated at once; another number would change results by rounding.
CHUNK = 10

FLOAT_BYTES = 4
SCRATCH_BYTES = 30 << 20

# Units of activations: what the graphs of an inner step and of a query pass keep, and what a pass
# holds besides; what each holds in all where its graph is built again; and where there is no graph.
STEP_GRAPH, QUERY_GRAPH, TRANSIENT = 2.35, 1.9, 0.75
RECOMPUTED_STEP, RECOMPUTED_QUERY = 4.7, 2.65
STEP_ALONE, QUERY_ALONE = 2.7, 1.7
# Where the support set supplies the statistics, the layers of a query pass are PyTorch's own.
INDUCTIVE = 2
# Copies of the adapted parameters that an inner step leaves: θ_k, gradients and updates; Δ and what
# it is made of; the products with learned rates.
COPIES_A_STEP, COPIES_FOR_SHARING, COPIES_FOR_RATES = 2.4, 2.4, 2
# The controls that only scale a task's gradient, where sharing and the others mix another into it.
WITHOUT_ANOTHER_GRADIENT = ("rate-control", "learned-rates")
# What an inner step of an evaluation leaves, and what convolutions bring them into another form in.
COPIES_IN_EVALUATION, COPIES_IN_A_PASS = 3, 7
# Of every outer parameter: itself, its gradient, Adam's two moments.
COPIES_OUTSIDE = 4


def tensor_bytes(tensors: Tensors) -> int:
    """What tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def estimate(config: RunConfig, learner: MetaLearner, image_shape: Sequence[int]) -> int:
    """The bytes that a run takes at its peak, over those of the idle process.

    Args:
        config: of the run.
        learner: built from it, and laid out.
        image_shape: (C, H, W).
    """
    learned, state = learner.init()
    graphs = peak_of_graphs(
        config,
        learner.model,
        image_shape,
        vmap=learner.tasks_at_a_time != 1,
        recompute=learner.recompute,
    )
    return graphs + COPIES_OUTSIDE * tensor_bytes(learned) + tensor_bytes(state)


def peak_of_graphs(
    config: RunConfig, model: nn.Module, image_shape: Sequence[int], *, vmap: bool, recompute: bool
) -> int:
    """Likewise, without the outer parameters, what their optimiser keeps, and the rules' state.

    Args:
        config: of the run.
        model: what it trains.
        image_shape: (C, H, W).
        vmap: whether all tasks are computed at once.
        recompute: whether the graphs of one pass are held at a time, instead of those of all inner
            steps.
    """
    channels, size, _ = image_shape
    pixels = sum((size // 2**layer) ** 2 for layer in range(LAYERS))
    image = FLOAT_BYTES * (config.filters * pixels + channels * size**2)
    support, queries = image * config.ways * config.shots, image * config.ways * config.queries
    if config.batch_norm == "inductive":
        # The support images go through the network in front of the queries.
        queries = INDUCTIVE * (queries + support)
    parameters = tensor_bytes(dict(model.named_parameters()))

    T, K = config.task_batch, config.inner_steps
    passes = K if config.method == "maml++" and config.span(config.multi_step_loss) else 1
    mixes = config.sharing and config.sharing_control not in WITHOUT_ANOTHER_GRADIENT
    copies = (
        COPIES_A_STEP
        + (COPIES_FOR_SHARING if mixes else 0)
        + (COPIES_FOR_RATES if config.method != "maml" else 0)
    )
    kept, in_a_pass = T * K * copies * parameters, TRANSIENT * max(support, queries)
    if recompute:
        in_a_pass = max(RECOMPUTED_STEP * support, RECOMPUTED_QUERY * queries)
    else:
        steps = K if config.order == "second" else 0
        kept += T * (steps * STEP_GRAPH * support + passes * QUERY_GRAPH * queries)
    step = kept + (T if vmap else 1) * (in_a_pass + COPIES_IN_A_PASS * parameters)
    evaluation = CHUNK * K * COPIES_IN_EVALUATION * parameters + (CHUNK if vmap else 1) * max(
        STEP_ALONE * support, QUERY_ALONE * queries
    )
    return int(SCRATCH_BYTES + max(step, evaluation))


class PeakMemory:
    """What a stretch of work takes at its peak, over what there is when this is made.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before: int | None = torch.cuda.memory_allocated(device)
        else:
            self._before = _resident("VmRSS:")

    def bytes(self) -> int | None:
        """So far; None where the system does not say."""
        if self._device.type == "cuda":
            peak: int | None = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = _resident("VmHWM:")
        return None if peak is None or self._before is None else peak - self._before


def _resident(key: str) -> int | None:
    """What this process has in memory now (VmRSS), or had at most (VmHWM)."""
    for line in _lines(Path("/proc/self/status")):
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    return None


def available(device: torch.device, root: Path = Path("/")) -> int | None:
    """The bytes that a process can still take; None where the system does not say.

    Args:
        device: where it runs. Of a CPU the machine's free memory counts, and what the control
            groups of the process (a container's, a job's) leave it.
        root: where `proc` and `sys` are.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [*_free_memory(root), *_left_by_control_groups(root)]
    return min(found, default=None)


def _free_memory(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield 1024 * int(line.split()[1])


def _left_by_control_groups(root: Path) -> Iterator[int]:
    """What each control group above this process leaves of its limit, in versions 1 and 2."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            mount, limit, usage, cache = (
                *("sys/fs/cgroup", "memory.max", "memory.current"),
                "inactive_file ",
            )
        elif "memory" in controllers.split(","):
            mount, limit, usage, cache = (
                *("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
                "total_inactive_file ",
            )
        else:
            continue
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            place = root / mount / folder
            limits, used = _lines(place / limit), _lines(place / usage)
            if limits and limits[0].isdecimal() and used:
                # Pages of files that were read are given back when memory runs short.
                freeable = [s for s in _lines(place / "memory.stat") if s.startswith(cache)]
                yield int(limits[0]) - int(used[0]) + sum(int(s.split()[1]) for s in freeable)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
