"""How much memory a run will need, and how much there is.

The need is estimated from the shapes alone. With n images of S×S pixels and F filters, the unit is
one value for each entry of the four convolutions' outputs and of the input,

    U(n) = 4 bytes · n (F Σ_l (S / 2^l)² + C S²),

and the peak of a meta-step with T tasks, K steps and Q query passes a task (K with the multi-step
loss, else 1) is taken to be

    60 MiB + T K (5.5 U(support) + c P) + T Q 3.25 U(queries) + U(queries) + 4 P' + S,

where P are the model's parameters, P' all outer parameters and S the rules' state, in bytes, and c
is 3, with sharing 3 more, with learned rates 2.5 more. The first-order step keeps no inner step's
activations, and the recomputing one those of one pass of one task. Validation adapts 10 tasks at
once, without the graph of the outer gradient: 2.75 U(support) each.

Calibrated on the peak resident memory over that of the idle process (VmHWM of two meta-steps in a
fresh process, glibc's freed memory kept, torch 2.13.0 CPU, one thread, Python 3.11.7, 2026-11-24)
at 21 settings from 16×16 to 84×84 pixels: 1 and 5 shots, 1 to 8 tasks, 1 to 10 steps, 48 to 512
filters, all three methods, both orders, both batch norms. There the estimate was between 7 % less
and 14 % more than what was measured of the larger of a meta-step and a validation; with vmap, at
two settings more, between 7 % less and 19 % more. Recomputing is not measured, nor is a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from gradshare.inner_loop import Tensors
from gradshare.methods import MetaLearner
from gradshare.methods.meta_learner import MODEL
from gradshare.models.conv4 import LAYERS
from gradshare.training.config import RunConfig
from gradshare.training.evaluation import CHUNK

FLOAT_BYTES = 4
SCRATCH_BYTES = 60 << 20

# Units of activations that are held at once: by an inner step that the outer gradient goes through,
# by one that it does not, and by the pass through the queries.
STEP_WITH_GRAPH = 5.5
STEP_ALONE = 2.75
QUERY_PASS = 3.25
# Copies of the adapted parameters that an inner step leaves: θ_k, gradients and updates; Δ and what
# it is made of; the products with learned rates.
COPIES_A_STEP, COPIES_FOR_SHARING, COPIES_FOR_RATES = 3, 3, 2.5
# Of every outer parameter: itself, its gradient, Adam's two moments.
COPIES_OUTSIDE = 4
# vmap turns convolutions into grouped ones, whose scratch memory is larger.
VMAP = 2


def tensor_bytes(tensors: Tensors) -> int:
    """What tensors take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def estimate(
    config: RunConfig, learner: MetaLearner, image_shape: Sequence[int], *, recompute: bool
) -> int:
    """The bytes that a run takes at its peak, over those of the idle process.

    Args:
        config: of the run.
        learner: built from it.
        image_shape: (C, H, W).
        recompute: whether the activations of one pass of one task are held at a time, instead of
            those of all inner steps and tasks.
    """
    learned, state = learner.init()
    channels, size, _ = image_shape
    pixels = sum((size // 2**layer) ** 2 for layer in range(LAYERS))
    image = FLOAT_BYTES * (config.filters * pixels + channels * size**2)
    support, queries = image * config.ways * config.shots, image * config.ways * config.queries
    if config.batch_norm == "inductive":
        queries += support  # the support images go through the network in front of the queries
    model = tensor_bytes({n: t for n, t in learned.items() if n.startswith(f"{MODEL}.")})

    T, K = config.task_batch, config.inner_steps
    passes = K if config.method == "maml++" and config.span(config.multi_step_loss) else 1
    copies = (
        COPIES_A_STEP
        + (COPIES_FOR_SHARING if config.arm == "gradient-sharing" else 0)
        + (COPIES_FOR_RATES if config.method != "maml" else 0)
    )
    parameters = T * K * copies * model
    if recompute:
        activations = max(STEP_WITH_GRAPH * support, QUERY_PASS * queries)
    elif config.order == "first":
        activations = max(T * STEP_ALONE * support, T * passes * QUERY_PASS * queries)
    else:
        activations = T * (K * STEP_WITH_GRAPH * support + passes * QUERY_PASS * queries)
    evaluation = CHUNK * STEP_ALONE * support
    if learner.tasks_at_a_time != 1:
        activations, evaluation = VMAP * activations, VMAP * evaluation
    kept = COPIES_OUTSIDE * tensor_bytes(learned) + tensor_bytes(state)
    return int(SCRATCH_BYTES + max(activations + parameters, evaluation) + queries + kept)


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
