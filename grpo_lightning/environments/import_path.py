"""What an import path in a config names."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from grpo_lightning.environments.episode import EnvironmentContractError


def imported(path: str, setting: str) -> Any:
    """What stands at ``package.module.name``, or at ``package.module.registry.name``: of a module, a class or another object.

    Args:
        path: Its import path.
        setting: Where it was named, for the error.

    Raises:
        EnvironmentContractError: If it is no path of names, or there is no such module or attribute.

    Example:
        >>> imported("math.gcd", "model.tools"), imported("string.Template.delimiter", "model.tools")
        (<built-in function gcd>, '$')
    """
    found, attributes = _module(path, setting)
    where = found.__name__
    for name in attributes:
        if not hasattr(found, name):
            names = vars(found) if inspect.ismodule(found) else dir(found)
            has = ", ".join(each for each in names if each[0] != "_" and callable(getattr(found, each, None)))
            raise EnvironmentContractError(
                f"{setting}={path} names nothing: write package.module.name. {f'{where} has {has}.' if has else ''}"
            )
        found, where = getattr(found, name), f"{where}.{name}"
    return found


def _module(path: str, setting: str) -> tuple[Any, list[str]]:
    """The longest part of the path that is a module, and what is left of it."""
    parts = path.split(".")
    if not all(part.isidentifier() for part in parts):
        raise EnvironmentContractError(
            f"{setting}={path} is no import path: write package.module.name, with neither folders nor .py, and start in the "
            "folder of the module."
        )
    missing: ModuleNotFoundError | None = None
    for cut in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:cut])
        try:
            return importlib.import_module(name), parts[cut:]
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there, and something that it imports is not
            missing = missing or error
    if missing is None:
        raise EnvironmentContractError(f"{setting}={path} names nothing: write package.module.name.")
    raise EnvironmentContractError(
        f"{setting}={path}: there is no module {missing.name!r}. Check the spelling, and that the command runs where the "
        "module can be imported."
    ) from missing
