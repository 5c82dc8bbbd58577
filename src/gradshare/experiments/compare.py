"""The main job: the original against gradient sharing, and against its control.

All arms of a comparison start from the same initialisation and see the same episodes. A
comparison's folder holds `results.json`, the report and its figures, and one run for each arm;
with several seeds, one such folder for each seed below it, and one report over all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradshare.config import ARM_FIELDS, ORIGINAL, RATE_CONTROL, SHARING, RunConfig
from gradshare.errors import RunError
from gradshare.experiments.arms import arm_of
from gradshare.experiments.executors.job import Job
from gradshare.experiments.executors.loop import Executor, WatchAll, run_all
from gradshare.experiments.results import FILENAME, Results, save_results
from gradshare.experiments.speedup import results_of
from gradshare.training.folder import RunFolder, refuse_if_occupied
from gradshare.training.preflight import require_memory
from gradshare.training.run import RunResult
from gradshare.training.setup import set_up

ARMS: tuple[dict[str, Any], ...] = (
    {"sharing": False, "sharing_control": None},
    {"sharing": True, "sharing_control": None},
    {"sharing": True, "sharing_control": "rate-control"},
)


def compare(
    jobs: Mapping[str, Job], *, executor: Executor, command: str, watch: WatchAll
) -> list[Results]:
    """Train every arm for every seed, and write the results.

    Args:
        jobs: of `jobs_of`.
        executor: where the runs go.
        command: what reproduces this, for the record.
        watch: told of progress.

    Returns:
        The results of each seed.

    Raises:
        GradshareError: see `gradshare.training.run.train`.
    """
    # Whatever is wrong with the data or the settings shows before anything is done. The devices and
    # the memory of other machines are theirs to check.
    shared = next(iter(jobs.values())).config.without_arm()
    if executor.here:
        require_memory(shared, set_up(shared), at_a_time=executor.at_a_time)
    else:
        set_up(shared.model_copy(update={"device": "cpu"}))

    def record(name: str, run: RunResult) -> None:
        save_results(results_of_runs([run], command), jobs[name].folder / FILENAME)

    finished = run_all(jobs, executor, watch, record)

    comparison = []
    for home in dict.fromkeys(job.folder.parent for job in jobs.values()):  # of each seed
        runs = [finished[name] for name, job in jobs.items() if job.folder.parent == home]
        results = results_of_runs(runs, command)
        save_results(results, home / FILENAME)
        comparison.append(results)
    return comparison


def jobs_of(
    config: RunConfig, folder: Path, *, control: bool, seeds: int, resume: bool
) -> dict[str, Job]:
    """The runs of a comparison by their names, once it is sure that its folder can hold them.

    Args:
        config: what all arms have in common; its arm is ignored.
        folder: a new folder, unless `resume`.
        control: whether to run the rate-control arm too.
        seeds: how many seeds, from `config.seed` on.
        resume: continue the runs that the folder holds; see `gradshare.training.run.train`.

    Raises:
        RunError: the folder holds something else, a comparison of another number of seeds, or a
            run with other settings.
    """
    if not resume:
        refuse_if_occupied(folder, resume=False)
    _require_this_layout(folder, seeds)
    jobs = {}
    for seed in range(config.seed, config.seed + seeds):
        home = folder / f"seed-{seed}" if seeds > 1 else folder
        for arm in ARMS if control else ARMS[:2]:
            run = config.without_arm().model_copy(update={**arm, "seed": seed})
            name = run.arm if seeds == 1 else f"{run.arm} (seed {seed})"
            jobs[name] = Job(run, home / run.arm)
            RunFolder(jobs[name].folder).require_room(run, resume=resume)
    return jobs


def _require_this_layout(folder: Path, seeds: int) -> None:
    """Refuse to train beside a comparison whose runs lie elsewhere in the folder.

    Raises:
        RunError: it has one seed and there are to be several, or the other way round.
    """
    several = sorted(path.name for path in folder.glob("seed-*"))
    single = [name for name in (ORIGINAL, SHARING, RATE_CONTROL) if (folder / name).exists()]
    if single and seeds > 1:
        raise RunError(
            f"{folder} holds a comparison of one seed ({single[0]!r}); choose another --out for "
            f"--seeds {seeds}, or continue it without --seeds"
        )
    if several and seeds == 1:
        raise RunError(
            f"{folder} holds a comparison of several seeds ({several[0]!r}); choose another --out, "
            "or continue it with its --seeds"
        )


def results_of_runs(runs: Sequence[RunResult], command: str) -> Results:
    """What the runs of one seed came to, side by side."""
    config = runs[0].config
    environments = [
        {**run.environment, "images": run.images, "images_sha256": run.images_sha256}
        for run in runs
    ]
    shared = config.model_dump(mode="json", exclude=set(ARM_FIELDS))
    return results_of(
        [arm_of(run) for run in runs],
        dataset=config.dataset,
        method=config.method,
        config=shared if len(runs) > 1 else config.model_dump(mode="json"),
        environment=_together(environments),
        command=command,
    )


def _together(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One environment; where runs were trained on unlike machines, it lists what they have."""
    together: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in environments for key in one):
        values = list(dict.fromkeys(one.get(key) for one in environments))
        together[key] = values[0] if len(values) == 1 else ", ".join(map(str, values))
    return together
