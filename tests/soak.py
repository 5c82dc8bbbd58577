"""Kill runs of random settings hundreds of times, and see that each ends where it would have.

Run by `make soak`; `SOAK_MINUTES` says for how long, `SOAK_SEED` which settings are drawn.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gradshare.config import RunConfig
from gradshare.tasks.store import write_store
from gradshare.training.run import train
from tests.conftest import TINY_SIZE, tiny_classes
from tests.training.killing import kill_often, require_same_end, some_refused

MINUTES = float(os.environ.get("SOAK_MINUTES", "20"))
KILLS_A_RUN = 12


def settings_of(choice: random.Random, data_root: Path) -> dict[str, Any]:
    sharing = choice.random() < 0.7
    return {
        "dataset": "tiny",
        "data_root": str(data_root),
        "ways": 3,
        "queries": 4,
        "filters": 4,
        "test_tasks": 8,
        "device": "cpu",
        "threads": 1,
        "epochs": 80,
        "iterations_per_epoch": choice.randint(1, 4),
        "val_tasks": choice.randint(2, 6),
        "ensemble": choice.randint(1, 5),
        "task_batch": choice.randint(1, 3),
        "inner_steps": choice.randint(1, 3),
        "method": choice.choice(("maml", "meta-sgd", "maml++")),
        "order": choice.choice(("second", "second", "first")),
        "batch_norm": choice.choice(("transductive", "inductive")),
        "sharing": sharing,
        "sharing_control": choice.choice((None, None, "rate-control")) if sharing else None,
        "on_divergence": choice.choice(("record", "skip")),
        "cosine_annealing_to": choice.choice((None, 1e-5)),
        "seed": choice.randrange(1000),
    }


def main() -> None:
    torch.set_num_threads(1)
    choice = random.Random(int(os.environ.get("SOAK_SEED", "0")))
    end = time.monotonic() + 60 * MINUTES
    runs = kills = skipped = 0
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        classes = [("train", 12), ("val", 5), ("test", 5)]
        write_store(
            home / "tiny" / str(TINY_SIZE),
            [item for split, count in classes for item in tiny_classes(split, count)],
            name="tiny",
            rotate_classes=False,
            source={},
        )
        while time.monotonic() < end:
            config = RunConfig(**settings_of(choice, home))
            whole, killed = home / f"whole-{runs}", home / f"killed-{runs}"
            with some_refused(config):
                expected = train(config, whole)
            kills += kill_often(config, killed, KILLS_A_RUN, first_seed=1000 * runs)
            with some_refused(config):
                survived = train(config, killed, resume=True)
            require_same_end(expected, whole, survived, killed)
            runs += 1
            skipped += sum(record.skipped for record in survived.history)
            print(
                f"{runs} runs, {kills} kills, {skipped} iterations skipped; the last: "
                f"{config.method}, {config.arm}, {config.order} order, {config.batch_norm}, "
                f"on divergence {config.on_divergence}",
                flush=True,
            )
    print(f"every one of {runs} runs ended where it would have, after {kills} kills in all")


if __name__ == "__main__":
    main()
