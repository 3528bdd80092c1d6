"""What an import path in a config names."""

from __future__ import annotations

import importlib
from typing import Any

from grpo_lightning.environments.episode import EnvironmentContractError


def imported(path: str, setting: str) -> Any:
    """The attribute at ``package.module.attribute``.

    Args:
        path: Its import path.
        setting: Where it was named, for the error.

    Raises:
        EnvironmentContractError: If there is no such module or attribute.

    Example:
        >>> imported("math.gcd", "model.tools")
        <built-in function gcd>
    """
    module_name, _, attribute = path.rpartition(".")
    try:
        module = importlib.import_module(module_name) if module_name else None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it imports is not
        raise EnvironmentContractError(
            f"{setting}={path}: there is no module {error.name!r}. Check the spelling, and that the command runs where the "
            "module can be imported."
        ) from error
    if module is None or not hasattr(module, attribute):
        has = (
            ", ".join(name for name, value in vars(module).items() if callable(value) and name[0] != "_")
            if module
            else ""
        )
        raise EnvironmentContractError(
            f"{setting}={path} names nothing: write package.module.name. {f'{module_name} has {has}.' if has else ''}"
        )
    return getattr(module, attribute)
