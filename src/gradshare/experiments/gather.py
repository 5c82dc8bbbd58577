"""Bringing the results of several folders together for one report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gradshare.errors import RunError
from gradshare.experiments.results import FILENAME, Results, load_results
from gradshare.experiments.speedup import results_of


def gather(folders: Sequence[Path]) -> list[Results]:
    """The results under some folders, one for each seed.

    A folder may be a comparison, a comparison over several seeds, or a single training run;
    single runs of one seed are put side by side as the arms of one comparison.

    Raises:
        RunError: a folder holds no results, or one arm of one seed stands twice.
    """
    by_seed: dict[int, list[Results]] = {}
    for folder in folders:
        several = sorted(folder.glob(f"seed-*/{FILENAME}"))
        for path in several or [folder]:
            results = load_results(path)
            by_seed.setdefault(results.arms[0].seed, []).append(results)
    return [_side_by_side(seed, results) for seed, results in sorted(by_seed.items())]


def _side_by_side(seed: int, results: Sequence[Results]) -> Results:
    if len(results) == 1:
        return results[0]
    arms = [arm for result in results for arm in result.arms]
    names = [arm.name for arm in arms]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise RunError(
            f"two of these folders hold the arm {twice[0]!r} for seed {seed}; leave one of them out"
        )
    first = results[0]
    return results_of(
        arms,
        dataset=first.dataset,
        method=first.method,
        config=first.config,
        environment=first.environment,
        command=" && ".join(dict.fromkeys(result.command for result in results)),
    )
