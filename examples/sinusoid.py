"""Gradient sharing without images or classes: sinusoid regression (Finn et al., 2017, §5.1).

Each task is a sine wave of another amplitude and phase; the learner sees 10 of its points. The
model is any `torch.nn.Module`, and the loss any function.

    python examples/sinusoid.py                 # original, gradient sharing and its control
    python examples/sinusoid.py --iterations 50
"""

import argparse
import tempfile

import torch
from torch import nn
from torch.nn import functional as F

import gradshare as gs


def mean_squared_error(sharing: gs.UpdateRule | None, iterations: int) -> gs.Interval:
    """Meta-train, and return the error after adaptation to 400 new tasks."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1)
    )
    sines = gs.Sinusoids(shots=10, queries=10)
    with tempfile.TemporaryDirectory() as folder:
        run = gs.fit(
            gs.maml(model, steps=5, inner_lr=0.01, sharing=sharing, loss=F.mse_loss),
            sines,
            sines,
            out=f"{folder}/run",
            epochs=1,
            iterations=iterations,
            task_batch=25,
            progress=False,
        )
        return run.evaluate(sines, tasks=400)["loss"]


def main() -> None:
    """Train each arm and print its error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--iterations", type=int, default=1000, help="default: 1000")
    iterations = parser.parse_args().iterations
    arms: dict[str, gs.UpdateRule | None] = {
        "original": None,
        "gradient sharing": gs.GradientSharing(),
        "rate-control": gs.RateControl(),
    }
    for name, sharing in arms.items():
        error = mean_squared_error(sharing, iterations)
        print(f"{name:<17} mean squared error {error.mean:.3f} ± {error.ci95:.3f}")


if __name__ == "__main__":
    main()
