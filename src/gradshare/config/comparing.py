"""From a configuration to a comparison: arms by name."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, get_args

from gradshare.comparison.plan import Plan, seeds_from, with_candidates
from gradshare.config.fields import PLUS_FIELDS, SharingControl, option_name
from gradshare.config.parts import (
    build,
    learner_of,
    options_of,
    resolved,
    settings_read,
    splits_of,
    unread_by,
)
from gradshare.config.settings import (
    ARM_FIELDS,
    ORIGINAL,
    RATE_CONTROL,
    SHARING,
    RunConfig,
    check_keys,
    default_of,
    heading_of,
)
from gradshare.errors import ConfigError
from gradshare.methods import Learner

LINEAR_PROBE: Final = "linear-probe"
PROBE: Final[Mapping[str, Any]] = {
    "method": "anil",
    "inner_steps": 50,
    "start": "supervised",
    "epochs": 1,
    "iterations_per_epoch": 1,
    "outer_lr": 0.0,
}
"""The settings of a linear probe: a classifier of all training classes, with a new head for each
task. Its body takes as many steps as the other arms take inner steps in all of their iterations."""

PARTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "sharing": {"sharing": True, "sharing_control": None},
    "first-order": {"order": "first"},
    **{each: {"sharing": True, "sharing_control": each} for each in get_args(SharingControl)},
}
"""What may follow the name of a method, as in maml+first-order+sharing."""

SWEPT_HEADINGS: Final = ("Inner loop and sharing", "Outer loop")


def plan_of(
    config: RunConfig,
    *,
    control: bool,
    seeds: int,
    methods: Sequence[str] = (),
    sweep: Mapping[str, Sequence[Any]] | None = None,
) -> Plan:
    """The comparison of methods, such as maml and maml+sharing. Without any, the configuration's
    rule, or gradient sharing, is compared with the original: gradient descent that shares nothing.

    Args:
        config: what all arms have in common, as it was asked for.
        control: whether the rate-control is an arm too.
        seeds: their number; the first is `config.seed`.
        methods: the arms.
        sweep: for some settings, the values among which the best is chosen for each arm.
    """
    swept = _swept(config, methods, sweep or {}, control=control)
    arms, candidates = with_candidates(swept)
    parts = build(next(iter(arms.values())))
    if parts.test is None:
        raise ConfigError(
            f"--dataset {config.dataset} has no test tasks, which a comparison needs; return "
            "gradshare.Splits(train, validation, test)"
        )
    firsts = [each[0] for each in candidates.values()]
    settings = {name: arm.model_dump(mode="json") for name, arm in arms.items()}
    return Plan(
        arms={name: functools.partial(make_learner, settings[name]) for name in arms},
        baseline=firsts[0],
        controls=tuple(n for n in firsts[1:] if arms[n].sharing_control == RATE_CONTROL),
        train=parts.train,
        validation=parts.validation,
        test=parts.test,
        options=parts.options,
        seeds=seeds_from(seeds, config.seed),
        settings=settings,
        own_options={n: options_of(arm, parts.options.metrics) for n, arm in arms.items()},
        candidates=tuple(each for each in candidates.values() if len(each) > 1),
    )


def make_learner(settings: Mapping[str, Any]) -> Learner:
    """The learner of some settings, initialised from torch's generator as it is."""
    config = RunConfig(**settings)
    return learner_of(config, splits_of(config).train)


def settings_shown(plan: Plan) -> dict[str, Any]:
    """The settings for the report: those of the first arm, and the differing ones of others."""
    read = {arm: settings_read(RunConfig(**settings)) for arm, settings in plan.settings.items()}
    first = next(iter(read.values()))
    own = {
        f"{arm}: {name}": value
        for arm, settings in read.items()
        for name, value in settings.items()
        if first.get(name) != value
    }
    return first | own


def _swept(
    config: RunConfig, methods: Sequence[str], sweep: Mapping[str, Sequence[Any]], *, control: bool
) -> dict[str, RunConfig | dict[str, RunConfig]]:
    """The arms. One that reads swept settings is a dictionary of candidates, one for each
    combination of their values.
    """
    check_keys(sweep)
    for setting, values in sweep.items():
        in_common = (
            setting in (*ARM_FIELDS, "method", "init_from")
            or heading_of(setting) not in SWEPT_HEADINGS
        )
        if in_common or not values:
            raise ConfigError(
                f"--sweep {setting}: give values of a setting of the inner or outer loop, such as "
                "inner-lr=0.03,0.1; all arms have the others in common"
            )
    made: dict[str, list[tuple[RunConfig, RunConfig]]] = {}
    for values in itertools.product(*sweep.values()):
        asked = config.model_copy(update=dict(zip(sweep, values, strict=True)))
        for name, arm in _arms(asked, methods, control=control).items():
            made.setdefault(name, []).append((asked, arm))
    read = {
        name: [setting for setting in sweep if _changes(setting, sweep, candidates)]
        for name, candidates in made.items()
    }
    for setting, values in sweep.items():
        if len(values) > 1 and all(setting not in settings for settings in read.values()):
            said = f"--sweep {setting}: no arm of {', '.join(made)} reads it; leave it out"
            raise ConfigError(said)
    arms: dict[str, RunConfig | dict[str, RunConfig]] = {}
    for name, candidates in made.items():
        labelled = {
            ", ".join(f"{option_name(n).strip('-')} {getattr(asked, n)}" for n in read[name]): arm
            for asked, arm in candidates
        }
        arms[name] = labelled if len(labelled) > 1 else candidates[0][1]
    return arms


def _changes(
    setting: str, sweep: Collection[str], candidates: Sequence[tuple[RunConfig, RunConfig]]
) -> bool:
    """Whether another value of a swept setting makes another arm, all others being the same.

    Args:
        candidates: what was asked for, and the arm that was made of it.
    """
    first: dict[str, RunConfig] = {}
    for asked, arm in candidates:
        others = str([getattr(asked, name) for name in sweep if name != setting])
        if first.setdefault(others, arm) != arm:
            return True
    return False


def _arms(asked: RunConfig, methods: Sequence[str], *, control: bool) -> dict[str, RunConfig]:
    """The configuration of each arm: of the methods, or of sharing or a rule and its original."""
    if methods:
        arms = dict(_of_method(asked, word) for word in methods)
        if len(arms) < len(methods):
            raise ConfigError(
                f"--methods {','.join(methods)}: two have the same name; rename or remove one"
            )
        return arms
    config = resolved(asked)
    alone: dict[str, Any] = {"rule": None, "rule_option": {}}
    if (config.rule is None or control) and "sharing_control" in unread_by(config, "method"):
        raise ConfigError(
            f"--method {config.method} cannot share gradients, so there is nothing to compare it "
            f"with; compare methods, such as --methods maml,{config.method}, or give a --rule"
        )
    bare = config.model_copy(update={name: default_of(name) for name in ARM_FIELDS})
    arms = {ORIGINAL: bare.model_copy(update={**alone, "sharing": False})}
    if config.rule is None:
        arms[SHARING] = bare
    else:
        name = config.rule.rpartition(":")[2]
        if name.casefold() == ORIGINAL:
            raise ConfigError(f"--rule {config.rule}: the baseline has this name; rename the rule")
        arms[name] = bare.model_copy(update={"sharing": False})
    if control:
        arms[RATE_CONTROL] = bare.model_copy(update={**alone, "sharing_control": "rate-control"})
    return arms


def _of_method(asked: RunConfig, word: str) -> tuple[str, RunConfig]:
    """The name and the configuration of an arm such as maml or maml+first-order+sharing."""
    method, changes = word, dict[str, Any]()
    while (parted := method.rpartition("+"))[2] in PARTS:
        if not changes.keys().isdisjoint(PARTS[parted[2]]):
            raise ConfigError(f"--methods {word}: two of its words set the same; leave one out")
        method, changes = parted[0], {**PARTS[parted[2]], **changes}
    settings = {**dict.fromkeys(ARM_FIELDS), "sharing": False, "method": method}
    if method == LINEAR_PROBE:
        whole = resolved(asked)
        settings |= {**PROBE, "start_iterations": whole.iterations * whole.inner_steps}
    if method != "maml++":
        settings |= {name: default_of(name) for name in PLUS_FIELDS}
    config = asked.model_copy(update={**settings, **changes})
    unread = unread_by(config, "method")
    if not unread.keys().isdisjoint(changes) or (changes and method == LINEAR_PROBE):
        raise ConfigError(
            f"--methods {word}: {method} learns nothing through an inner loop; give {method} alone"
        )
    config = config.model_copy(update={setting: default_of(setting) for setting in unread})
    return word.rpartition(":")[2], resolved(config)
