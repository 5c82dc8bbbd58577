"""The table of methods: nine methods with and without sharing, and two yardsticks.

`reproduction/methods.sh` trains them. Their results are kept without pictures, which are those of
the datasets' owners.
"""

from __future__ import annotations

import gzip
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.memory import peak_over_resident
from gradshare import Interval, RunConfig, RunError
from gradshare.comparison.results import FILENAME, Results, load_results
from gradshare.comparison.summary import difference
from gradshare.config.comparing import LINEAR_PROBE, plan_of
from gradshare.tasks.source import prepared
from gradshare.training.distributed import OneProcess
from gradshare.training.files import null_where_not_finite
from gradshare.training.layout import choose_layout
from gradshare.training.outer_loop import outer_gradient
from gradshare.training.records import VALIDATION
from gradshare.training.statistics import over_seeds_and_tasks
from reproduction.plan import HOME
from reproduction.tables import Row, markdown

PLAN: Final = HOME / "plans" / "methods.yaml"
PUBLISHED: Final = HOME / "results" / "methods"
COST: Final = "cost.json"
PACKED: Final = ".json.gz"
TITLES: Final = {
    "omniglot-1-shot": "Omniglot, 1-shot",
    "omniglot-5-shot": "Omniglot, 5-shot",
    "mini-imagenet-1-shot": "mini-ImageNet at 32×32, 1-shot",
    "mini-imagenet-5-shot": "mini-ImageNet at 32×32, 5-shot",
}
MEASURED_STEPS: Final = 15
INTRODUCTION: Final = HOME / "plans" / "methods.md"
ARM = re.compile(r"(?P<method>.+?)(?P<sharing>\+sharing)?(?: \[inner-lr (?P<rate>[\d.]+)\])?$")


def pack(runs: Path) -> list[Path]:
    """Keep the results of the finished comparisons in a folder, OUT of methods.sh, and return the
    files.
    """
    PUBLISHED.mkdir(parents=True, exist_ok=True)
    written = []
    for place in sorted(runs.glob(f"*/{FILENAME}")):
        results = load_results(place).model_copy(update={"samples": ()})
        text = json.dumps(null_where_not_finite(results.model_dump()))
        for folder, name in ((str(results.settings["data_root"]), "data"), (str(runs), "runs")):
            if Path(folder).is_absolute():  # which says nothing on other machines
                text = text.replace(folder, name)
        path = PUBLISHED / f"{place.parent.name}{PACKED}"
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
        written.append(path)
    return written


def read(path: Path) -> Results:
    """The results of one condition."""
    return Results.model_validate_json(gzip.decompress(path.read_bytes()))


def settings_of_plan() -> dict[str, Any]:
    """What `gradshare compare --config` reads."""
    settings: dict[str, Any] = yaml.safe_load(PLAN.read_text("utf-8"))
    return settings


def costs(data_root: Path) -> dict[str, dict[str, float]]:
    """For each arm of the plan, on Omniglot, 1-shot: "ms", the CPU time of a meta-step in one
    thread, and "MB", the peak memory over what was resident. Each arm has its own process.
    """
    found = {}
    for word in settings_of_plan()["methods"]:
        if word != LINEAR_PROBE:  # which has no meta-steps
            command = [sys.executable, "-m", "reproduction.methods", word, str(data_root)]
            found[word] = json.loads(subprocess.check_output(command, text=True))
    return found


def table(folder: Path = PUBLISHED) -> str:
    """The tables of all conditions as Markdown.

    Raises:
        RunError: there are no results.
    """
    page = ""
    for name, title in TITLES.items():
        path = folder / f"{name}{PACKED}"
        if path.is_file():
            results = read(path)
            seeds = ", ".join(map(str, results.seeds))
            page += f"\n## {title}\n\nSeeds: {seeds}.\n\n{markdown(_rows(results))}"
    if not page:
        raise RunError(
            f"{folder} holds no results; run reproduction/methods.sh, and give its folder as --from"
        )
    if (folder / COST).is_file():
        cost = json.loads((folder / COST).read_text("utf-8"))
        rows = [
            {"arm": arm, "CPU ms a meta-step": f"{c['ms']:.0f}", "peak MB": f"{c['MB']:.0f}"}
            for arm, c in cost.items()
        ]
        page += (
            "\n## Time and memory\n\nA meta-step of 4 tasks, Omniglot, 1-shot, in one thread: the "
            f"median of {MEASURED_STEPS}, and the peak memory over what was resident.\n\n"
            f"{markdown(rows)}"
        )
    return INTRODUCTION.read_text("utf-8") + page


def _rows(results: Results) -> list[Row]:
    arms: dict[str, dict[bool, str]] = {}
    rates = {}
    for arm in results.arms:
        found = ARM.match(arm)
        assert found is not None
        arms.setdefault(found["method"], {})[found["sharing"] is not None] = arm
        rates[arm] = found["rate"]
    level = max(_curve(results, arms["maml"][False]))
    rows = []
    for method, pair in arms.items():
        alone, sharing = pair[False], pair.get(True)
        both = None if sharing is None else difference(results, sharing, alone).interval
        rows.append(
            {
                "method": method,
                "inner rate": " / ".join(rates[arm] or "–" for arm in pair.values()),
                "accuracy": _shown(_accuracy(results, alone)),
                "with sharing": _shown(None if sharing is None else _accuracy(results, sharing)),
                "difference": _shown(both, sign="+"),
                f"iterations to {100 * level:.1f} %": " / ".join(
                    _reached(results, arm, level) for arm in pair.values()
                ),
            }
        )
    return rows


def _accuracy(results: Results, arm: str) -> Interval | None:
    rows = [run.test["accuracy"] for run in results.of(arm) if run.trained]
    return over_seeds_and_tasks(rows) if rows else None  # type: ignore[arg-type]


def _shown(interval: Interval | None, sign: str = "") -> str:
    if not interval:
        return "–"
    return f"{100 * interval.mean:{sign}.1f} ± {100 * (interval.ci95 or 0):.1f}".replace("-", "−")


def _curve(results: Results, arm: str) -> list[float]:
    """The validation accuracy after each epoch, the mean of the seeds."""
    histories = [run.history for run in results.of(arm)]
    return [
        statistics.fmean(record.metrics[VALIDATION]["accuracy"].mean for record in epoch)
        for epoch in zip(*histories, strict=False)
    ]


def _reached(results: Results, arm: str, level: float) -> str:
    if arm.startswith(LINEAR_PROBE):
        return "–"  # it has no outer iterations
    records = results.of(arm)[0].history
    for record, accuracy in zip(records, _curve(results, arm), strict=False):
        if accuracy >= level:
            return str(record.iterations)
    return "–"


def _cost(word: str, data_root: str) -> dict[str, float]:
    own = {n: v for n, v in settings_of_plan().items() if n not in ("methods", "sweep")}
    config = RunConfig(dataset="omniglot", data_root=data_root, shots=1, **own)
    plan = plan_of(config, control=False, seeds=1, methods=[word])
    (make,) = plan.arms.values()
    learner: Any = make()
    meta, carried = learner.init()
    meta = {name: tensor.detach().requires_grad_() for name, tensor in meta.items()}
    tasks = prepared(plan.train, plan.train.batch(range(config.task_batch)))
    layout = choose_layout(
        learner, (meta, carried), tasks[:2], task_batch=len(tasks), tasks="auto", memory="auto"
    )
    learner, share = layout.applied(learner), OneProcess().share(range(len(tasks)))
    seconds = []

    def step(number: int) -> None:
        began = time.process_time()
        outer_gradient(learner, meta, carried, tasks, iteration=number, share=share)
        seconds.append(time.process_time() - began)

    peak = peak_over_resident(step, 3 + MEASURED_STEPS)
    return {"ms": 1e3 * statistics.median(seconds[3:]), "MB": peak / 1e6}


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    print(json.dumps(_cost(*sys.argv[1:])))
