"""Registered names and import paths, and the objects that they lead to."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from gradshare.errors import ConfigError, GradshareError

REGISTERED: dict[str, dict[str, str]] = {
    "model": {
        "conv4": "gradshare.models:Conv4",
        "resnet12": "gradshare.models:ResNet12",
        "mlp": "gradshare.models:MLP",
    },
    "method": {
        "maml": "gradshare.methods:maml",
        "meta-sgd": "gradshare.methods:meta_sgd",
        "maml++": "gradshare.methods:maml_plus_plus",
        "unicorn-maml": "gradshare.methods:unicorn_maml",
        "anil": "gradshare.methods:anil",
        "boil": "gradshare.methods:boil",
        "alfa": "gradshare.methods:alfa",
        "proto-maml": "gradshare.methods:proto_maml",
        "reptile": "gradshare.methods:reptile",
        "imaml": "gradshare.methods:imaml",
        "protonet": "gradshare.methods:protonet",
    },
    "rule": {
        "momentum": "gradshare.inner_loop:Momentum",
        "rmsprop": "gradshare.inner_loop:RMSprop",
        "adam": "gradshare.inner_loop:Adam",
    },
    "loss": {
        "cross-entropy": "torch.nn.functional:cross_entropy",
        "mse": "torch.nn.functional:mse_loss",
    },
    "metric": {
        "accuracy": "gradshare.training.metrics:accuracy",
        "loss": "",  # the learner's own
        "mse": "torch.nn.functional:mse_loss",
    },
}
"""The import path of each registered name."""

EXAMPLE = "my_file.py:Name"


def is_import_path(name: str) -> bool:
    """Whether a name is `package.module:Name` or `file.py:Name`."""
    return ":" in name


def stored_name(kind: str, name: str) -> str:
    """A name as it is stored: with the file of an import path made absolute, so that a run can be
    opened from another folder. Raise ValueError if it is neither registered nor an import path.
    """
    if is_import_path(name):
        where, _, attribute = name.rpartition(":")
        if not where or not attribute.isidentifier():
            raise ValueError(f"not an import path; write it like {EXAMPLE}")
        is_file = where.endswith(".py")
        return f"{Path(where).expanduser().resolve()}:{attribute}" if is_file else name
    known = REGISTERED.get(kind)
    if known is None or name in known:
        return name
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    registered = f"{', '.join(known)}, or " if known else ""
    raise ValueError(
        f"there is no such {kind}; {hint}give {registered}an import path like {EXAMPLE}"
    )


def load(kind: str, name: str) -> Any:
    """The object that a registered name or an import path leads to; ConfigError if it cannot be
    imported.
    """
    where, _, attribute = REGISTERED.get(kind, {}).get(name, name).rpartition(":")
    option = f"--{kind} {name!r}"
    if where.endswith(".py") and not Path(where).is_file():
        raise ConfigError(f"{option}: there is no file {where}; correct the path")
    try:
        if where.endswith(".py"):
            module = _run_file(Path(where))
        else:
            _add_to_path(Path.cwd())  # last: nothing there hides an installed package
            module = importlib.import_module(where)
    except (Exception, SystemExit) as error:  # the latter of a program: sys.exit(main())
        if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
            raise  # Ctrl-C
        if isinstance(error, ModuleNotFoundError) and f"{where}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{option}: there is no module {error.name!r} here; install it, start gradshare in "
                f"the folder that holds it, or give a file like {EXAMPLE}"
            ) from error
        raise _own_error(option, error) from error
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, vars(module), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "correct the name"
        raise ConfigError(f"{option}: {where} has no {attribute!r}; {hint}")
    return getattr(module, attribute)


def taken_by(function: Callable[..., Any], more: Collection[str]) -> set[str]:
    """The arguments that a function takes by keyword, with `more` if it has a `**`."""
    found = inspect.signature(function).parameters.values()
    named = {p.name for p in found if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return named | (set(more) if any(p.kind is p.VAR_KEYWORD for p in found) else set())


def call(
    kind: str,
    name: str,
    options: Mapping[str, Any],
    given: Mapping[str, Any],
    more: Collection[str] = (),
) -> Any:
    """Call the function or class of a name with the user's options, and with what is given for the
    parameters that it has; see `taken_by`.

    Raises:
        ConfigError: it takes no such option, needs one that is not given, or raises an error.
        RunError: memory ran out.
    """
    function = load(kind, name)
    if not callable(function):
        raise ConfigError(f"--{kind} {name!r}: it is {function!r:.60}; name a class or a function")
    taken = taken_by(function, more)
    arguments = {**{n: v for n, v in given.items() if n in taken}, **options}
    require_arguments(kind, name, function, arguments)
    from gradshare.training.memory import explain_out_of_memory  # noqa: PLC0415  # torch

    try:
        with explain_out_of_memory():
            return function(**arguments)
    except GradshareError:
        raise
    except Exception as error:
        raise _own_error(f"--{kind} {name!r}", error) from error


def require_arguments(
    kind: str, name: str, function: Callable[..., Any], arguments: Mapping[str, Any]
) -> None:
    """Raise ConfigError if a function cannot be called with some arguments by name."""
    signature = inspect.signature(function)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"--{kind} {name!r}: {error}; it takes {', '.join(signature.parameters)}, as "
            f"--{kind}-option NAME=VALUE"
        ) from error


def _run_file(path: Path) -> ModuleType:
    """Import a file under a name that no package has."""
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    _add_to_path(path.parent)  # for the files beside it
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _add_to_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _own_error(option: str, error: BaseException) -> ConfigError:
    """An error in the user's code, with the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    place = ""
    if own and not isinstance(error, SyntaxError):  # whose text names the line
        place = f" ({own[-1].filename}, line {own[-1].lineno})"
    return ConfigError(
        f"{option}: {type(error).__name__}: {error!s:.300}{place}; correct the code, or the "
        "options that it is given"
    )
