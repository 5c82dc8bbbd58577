"""The main job: the original against gradient sharing, and against its control.

All arms of a comparison start from the same initialisation and see the same episodes. A
comparison's folder holds `results.json`, the report and its figures, and one run for each arm;
with several seeds, one such folder for each seed below it, and one report over all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradshare.config import ARM_FIELDS, ORIGINAL, RATE_CONTROL, SHARING, Parts, build, require_room
from gradshare.errors import ConfigError, RunError
from gradshare.experiments.arms import ACCURACY, Finished
from gradshare.experiments.executors.job import Job
from gradshare.experiments.executors.loop import Executor, WatchAll, run_all
from gradshare.experiments.results import FILENAME, Results, save_results
from gradshare.experiments.speedup import results_of
from gradshare.training.device import choose_device
from gradshare.training.fit import memory_needed, prepare_run
from gradshare.training.folder import refuse_if_occupied
from gradshare.training.layout import Layout
from gradshare.training.preflight import memory_errors, require_memory
from gradshare.training.randomness import generators_kept

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
        GradshareError: see `gradshare.fit`.
    """
    require_trainable(next(iter(jobs.values())).config.without_arm(), executor)

    def record(name: str, run: Finished) -> None:
        save_results(results_of_runs([run], command), jobs[name].folder / FILENAME)

    finished = run_all(jobs, executor, watch, record)

    comparison = []
    for home in dict.fromkeys(job.folder.parent for job in jobs.values()):  # of each seed
        runs = [finished[name] for name, job in jobs.items() if job.folder.parent == home]
        results = results_of_runs(runs, command)
        save_results(results, home / FILENAME)
        comparison.append(results)
    return comparison


def require_trainable(config: Any, executor: Executor) -> Parts:
    """Make the parts of a run, and check that as many such runs as go side by side on this machine
    fit into its memory.

    Raises:
        GradshareError: the data is missing, the settings do not fit it, checkpoints are not
            selected by accuracy, or memory is missing.
    """
    parts = build(config)
    if executor.here:  # other machines check their own devices and memory
        device = choose_device(parts.options.device)
        sources = (parts.train, parts.validation, parts.test)
        with generators_kept(device), memory_errors():
            state, _, score, contents = prepare_run(
                parts.learner, sources, parts.options, device, None
            )
            if score != ACCURACY:
                raise ConfigError(
                    f"runs are compared by their accuracy, and these select checkpoints by {score};"
                    " use --metric accuracy, or train each with `gradshare train`"
                )
            need = memory_needed(Layout(**contents["layout"]), parts.options, state, processes=1)
            try:
                require_memory(need * executor.at_a_time, device)
            except RunError as error:
                raise RunError(f"with --jobs {executor.at_a_time}, {error}") from error
    return parts


def jobs_of(
    config: Any, folder: Path, *, control: bool, seeds: int, resume: bool
) -> dict[str, Job]:
    """The runs of a comparison by their names, once it is sure that its folder can hold them.

    Args:
        config: what all arms have in common; its arm is ignored.
        folder: a new folder, unless `resume`.
        control: whether to run the rate-control arm too.
        seeds: how many seeds, from `config.seed` on.
        resume: continue the runs that the folder holds; see `gradshare.fit`.

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
            require_room(run, jobs[name].folder, resume=resume)
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


def results_of_runs(runs: Sequence[Finished], command: str) -> Results:
    """What the runs of one seed came to, side by side."""
    config = runs[0].config
    shared = config.model_dump(mode="json", exclude=set(ARM_FIELDS))
    return results_of(
        [run.arm for run in runs],
        dataset=config.dataset,
        method=config.method,
        config=shared if len(runs) > 1 else config.model_dump(mode="json"),
        environment=_together([run.environment for run in runs]),
        command=command,
    )


def _together(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One environment; where runs were trained on unlike machines, it lists what they have."""
    together: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in environments for key in one):
        values = list(dict.fromkeys(one.get(key) for one in environments))
        together[key] = values[0] if len(values) == 1 else ", ".join(map(str, values))
    return together
