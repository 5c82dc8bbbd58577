"""Callbacks: plain functions of events. None of these needs a server.

    python examples/callbacks.py

A callback that returns True after an epoch ends the training. One that looks only at the history
decides the same in a run that was killed and resumed.
"""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import gradshare as gs

OUT = Path("runs/callbacks")


def early_stopping(event: gs.Event) -> bool:
    """Stop when the best of the last 3 epochs is no better than the best before them."""
    losses = [record.mean("loss") for record in event.history]
    return event.kind == "epoch" and len(losses) > 3 and min(losses[-3:]) >= min(losses[:-3])


def to_csv(event: gs.Event) -> None:
    """Write each epoch as rows of a table; for wandb, `wandb.log({...}, step=event.iteration)`."""
    if event.kind == "epoch":
        with (OUT / "epochs.csv").open("a", newline="") as file:
            csv.DictWriter(file, ["epoch", "split", "metric", "value", "ci95"]).writerows(
                event.history[-1].rows()
            )


def note_checkpoints(event: gs.Event) -> None:
    """Say where each checkpoint is; for MLflow, `mlflow.log_artifact(event.path)`."""
    if event.kind == "checkpoint" and event.path is not None:
        print("saved", event.path.name)


if __name__ == "__main__":
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 1))
    sinusoids = gs.Sinusoids()
    run = gs.fit(
        gs.maml(net, steps=1, inner_lr=0.01, loss=F.mse_loss),
        sinusoids,
        sinusoids,
        epochs=20,
        iterations=50,
        task_batch=4,
        callbacks=[early_stopping, to_csv, note_checkpoints],
        out=OUT,
        resume="auto",
    )
    print(f"ended after {len(run.history)} epochs of at most 20")
