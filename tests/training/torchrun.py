"""A program that `tests/test_matrix.py` starts with `torchrun`: some runs, one after the other.

At the end of each run each process saves its tensors.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

import gradshare as gs
from tests.training.small import PROBLEMS, Arguments, in_float64


def variants(problem: str) -> dict[str, Arguments]:
    """The runs of a problem, in float64. Only one without random numbers is the same for any number
    of processes.
    """
    if problem != "signals":
        return {"run": in_float64(PROBLEMS[problem]())}
    return {
        "run": in_float64(PROBLEMS[problem](dropout=0.0)),
        "dropout": in_float64(PROBLEMS[problem]()),
    }


def main(problem: str, folder: Path) -> None:
    folder.mkdir(exist_ok=True)  # the other process may have made it
    for name, given in variants(problem).items():
        made: list[torch.optim.Optimizer] = []

        def adam(groups: Any, made: list[torch.optim.Optimizer] = made) -> torch.optim.Optimizer:
            made.append(torch.optim.Adam(groups, lr=1e-3))
            return made[0]

        gs.fit(**given, optimizer=adam, out=folder / name)
        parameters = made[0].param_groups[0]["params"]
        end = {"parameters": parameters, "state": made[0].state_dict()["state"]}
        torch.save(end, folder / f"{name}-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for one in PROBLEMS:
        main(one, Path(sys.argv[1], one))
