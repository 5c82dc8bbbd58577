"""Kill runs of random settings hundreds of times, and see that each ends where it would have.

Run by `make soak`; `SOAK_MINUTES` says for how long, `SOAK_SEED` which settings are drawn.
"""

from __future__ import annotations

import functools
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import gradshare as gs
from tests.training.killing import kill_often, require_same_end
from tests.training.small import PROBLEMS, Arguments, poisoned, rows

MINUTES = float(os.environ.get("SOAK_MINUTES", "20"))
KILLS_A_RUN = 12
EPOCHS = 150
REFUSED = 7  # each seventh iteration is refused

METHODS: dict[str, Callable[..., gs.MetaLearner]] = {
    "maml": gs.maml,
    "meta-sgd": gs.meta_sgd,
    "maml++": functools.partial(gs.maml_plus_plus, multi_step_iterations=100),
    "unicorn-maml": gs.unicorn_maml,
}
SHARING = (None, gs.GradientSharing(), gs.GradientSharing(), gs.RateControl())
OPTIMIZERS = (
    functools.partial(torch.optim.Adam, lr=1e-3),
    functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    functools.partial(torch.optim.RMSprop, lr=1e-3),
)


def halved_every_hundred(iteration: int) -> float:
    return float(0.5 ** (iteration // 100))


def run_of(seed: int) -> Arguments:
    """The run that is drawn by a seed."""
    choice = random.Random(seed)
    problem = choice.choice(["rows", *PROBLEMS])
    given = {"rows": rows, **PROBLEMS}[problem](
        epochs=EPOCHS,
        iterations=choice.randint(1, 4),
        val_tasks=choice.randint(2, 6),
        ensemble=choice.randint(1, 5),
        task_batch=choice.randint(1, 3),
        on_divergence=choice.choice(("record", "skip")),
        schedule=choice.choice((None, halved_every_hundred)),
        optimizer=choice.choice(OPTIMIZERS),
        seed=choice.randrange(1000),
    )
    names = [name for name in METHODS if problem == "rows" or name != "unicorn-maml"]
    learner = given["learner"]
    model: nn.Module = learner.model
    given["learner"] = METHODS[choice.choice(names)](
        model,
        steps=choice.randint(1, 3),
        inner_lr=0.01,
        sharing=choice.choice(SHARING),
        second_order=choice.random() < 0.7,
        loss=learner.loss,
    )
    if given["on_divergence"] == "skip":
        given = poisoned(given, *range(REFUSED, EPOCHS * given["iterations"], REFUSED), task=1)
    return given


def main() -> None:
    torch.set_num_threads(1)
    first = 1000 * int(os.environ.get("SOAK_SEED", "0"))
    end = time.monotonic() + 60 * MINUTES
    runs = kills = skipped = 0
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        while time.monotonic() < end:
            seed = first + runs
            expected = gs.fit(**run_of(seed), out=home / f"whole-{runs}")
            killed = home / f"killed-{runs}"
            kills += kill_often(run_of, {"seed": seed}, killed, KILLS_A_RUN, first_seed=1000 * runs)
            survived = gs.fit(**run_of(seed), out=killed, resume="auto")
            require_same_end(expected, survived)
            runs += 1
            skipped += sum(record.skipped for record in survived.history)
            print(
                f"{runs} runs, {kills} kills, {skipped} iterations skipped; the last: seed {seed}, "
                f"{len(survived.history)} epochs",
                flush=True,
            )
    print(f"each of {runs} runs ended where it would have, after {kills} kills in all")


if __name__ == "__main__":
    main()
