"""Gradient sharing without images or classes: sinusoid regression (Finn et al., 2017, §5.1).

Each task is a sine wave of another amplitude and phase; the learner sees 10 of its points. The
model is any `torch.nn.Module`, the loss any function, and the outer loop is written out here.

    python examples/sinusoid.py                 # original and gradient sharing
    python examples/sinusoid.py --iterations 50
"""

import argparse
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradshare import GradientSharing, RateControl, TaskBatch, UpdateRule, maml

STEPS, INNER_LR, TASKS, POINTS = 5, 0.01, 25, 10


def sines(seed: int) -> TaskBatch:
    """A batch of tasks: amplitude in [0.1, 5], phase in [0, π], x in [-5, 5]."""
    random = torch.Generator().manual_seed(seed)
    amplitude = 0.1 + 4.9 * torch.rand(TASKS, 1, 1, generator=random)
    phase = math.pi * torch.rand(TASKS, 1, 1, generator=random)
    x = 10 * torch.rand(TASKS, 2 * POINTS, 1, generator=random) - 5
    y = amplitude * torch.sin(x - phase)
    return TaskBatch(x[:, :POINTS], y[:, :POINTS], x[:, POINTS:], y[:, POINTS:])


def meta_train(sharing: UpdateRule | None, iterations: int) -> float:
    """Meta-train, and return the mean squared error after adaptation on 40 batches of new tasks."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)
    )
    learner = maml(
        model,
        steps=STEPS,
        inner_lr=INNER_LR,
        sharing=sharing,
        loss=F.mse_loss,
        tasks_at_a_time=None,  # all tasks of a batch in one forward pass
    )
    learned, state = learner.init()
    optimizer = torch.optim.Adam(learned.values(), lr=0.001)
    for iteration in range(iterations):
        step = learner.outer_step(learned, state, sines(iteration), iteration=iteration)
        optimizer.zero_grad()
        torch.autograd.backward(step.losses.mean())
        optimizer.step()
        state = step.state

    errors: list[Tensor] = []
    for seed in range(10**6, 10**6 + 40):
        tasks = sines(seed)
        adapted = learner.adapt(learned, state, tasks).params[-1]
        with torch.no_grad():
            errors.append(
                F.mse_loss(learner.predict(learned, adapted, tasks, updates=STEPS), tasks.query_y)
            )
    return torch.stack(errors).mean().item()


def main() -> None:
    """Train each arm and print its error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--iterations", type=int, default=1000, help="default: 1000")
    iterations = parser.parse_args().iterations
    arms: dict[str, UpdateRule | None] = {
        "original": None,
        "gradient sharing": GradientSharing(STEPS),
        "rate-control": RateControl(STEPS),
    }
    for name, sharing in arms.items():
        print(f"{name:<17} mean squared error {meta_train(sharing, iterations):.3f}")


if __name__ == "__main__":
    main()
