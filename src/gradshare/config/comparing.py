"""From a configuration to a comparison: arms by name."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from gradshare.comparison.plan import Plan, seeds_from
from gradshare.config.parts import build, learner_of, resolved, splits_of
from gradshare.config.settings import ORIGINAL, RATE_CONTROL, SHARING, RunConfig
from gradshare.errors import ConfigError
from gradshare.methods import Learner


def plan_of(config: RunConfig, *, control: bool, seeds: int) -> Plan:
    """The comparison of a configuration with the original.

    The original has neither a rule of its own nor sharing. It is compared with the configuration's
    rule, or with gradient sharing if there is none.

    Args:
        config: what all arms have in common.
        control: whether the rate-control is an arm too.
        seeds: how many, from `config.seed` on.

    Raises:
        GradshareError: see `gradshare.config.build`.
    """
    arms = _arms(resolved(config), control=control)
    parts = build(list(arms.values())[1])
    if parts.test is None:
        raise ConfigError(
            f"--dataset {config.dataset} has no test tasks, which a comparison needs; return "
            "gradshare.Splits(train, validation, test)"
        )
    settings = {name: arm.model_dump(mode="json") for name, arm in arms.items()}
    return Plan(
        arms={name: functools.partial(make_learner, settings[name]) for name in arms},
        baseline=ORIGINAL,
        controls=(RATE_CONTROL,) if control else (),
        train=parts.train,
        validation=parts.validation,
        test=parts.test,
        options=parts.options,
        seeds=seeds_from(seeds, config.seed),
        settings=settings,
    )


def make_learner(settings: Mapping[str, Any]) -> Learner:
    """The learner of some settings, initialised from torch's generator as it is."""
    config = RunConfig(**settings)
    return learner_of(config, splits_of(config).train)


def _arms(config: RunConfig, *, control: bool) -> dict[str, RunConfig]:
    alone: dict[str, Any] = {"rule": None, "rule_option": {}}
    bare = config.without_arm()
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
