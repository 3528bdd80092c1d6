"""Layers that adapters are meant for, and linear ones that no adapter can stand in for: their model does more than call them."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

logger = logging.getLogger(__name__)


def unfit_layers(model: nn.Module) -> dict[str, str]:
    """Full names of linear layers on which an adapter would have no effect or break the model, each with the reason.

    Routers that subclass ``nn.Linear`` give more than one tensor (PhiMoE, Llama 4). State-space mixers hand the weights of
    ``dt_proj`` and ``out_proj`` to their scan, in torch or only in its kernel: training would not see an adapter there,
    and merging it would change the model.
    """
    unfit = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and type(module).__module__.startswith("transformers."):
            unfit[name] = f"{type(module).__name__} gives more than one tensor"
        own = module._parameters
        if "A_log" in own and "D" in own:
            for child in ("dt_proj", "out_proj"):
                if isinstance(getattr(module, child, None), nn.Linear):
                    unfit[f"{name}.{child}"] = f"{type(module).__name__} reads its weight without calling it"
    return unfit


def refuse_unmatched(model: nn.Module, config: Any) -> None:
    """Refuses names that no layer has, which peft would pass over as long as others are found.

    Args:
        model: The base, before it is wrapped; its weights are not looked at.
        config: peft's, with its layers chosen.

    Raises:
        ValueError: With the names, and what the layers are called.
    """
    names = [name for name, _ in model.named_modules() if name]
    targets = getattr(config, "target_modules", None) or ()
    if isinstance(targets, str):
        if targets != "all-linear" and not any(re.fullmatch(targets, name) for name in names):
            example = next((name for name, module in model.named_modules() if isinstance(module, nn.Linear)), names[-1])
            raise ValueError(
                f"model.lora_target={targets!r} fits no layer of {type(model).__name__}. A regular expression has to fit a whole "
                f"name, such as {example}."
            )
        targets = ()
    with_weights = [name for name, module in model.named_modules() if module._parameters]
    saved = getattr(config, "modules_to_save", None) or ()
    _refuse_unknown_names("model.lora_target (target_modules of model.peft_config)", targets, with_weights, model)
    _refuse_unknown_names("modules_to_save of model.peft_config", saved, names, model)


def _refuse_unknown_names(setting: str, given: Collection[str], layers: Collection[str], model: nn.Module) -> None:
    unknown = sorted(name for name in given if not any(f".{layer}".endswith(f".{name}") for layer in layers))
    if not unknown:
        return
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    known = sorted({name.rpartition(".")[2] for name in linear})
    near = [meant for name in unknown for meant in get_close_matches(name, known, 1)]
    hint = f" Did you mean {' and '.join(near)}?" if near else ""
    raise ValueError(
        f"{setting} names {', '.join(unknown)}, and no layer of {type(model).__name__} is called so.{hint} Its linear layers "
        f"are {', '.join(known)}."
    )


def exclude(config: Any, names: Iterable[str], why: str, otherwise: str = "") -> None:
    """Adds layers to those that an adapter leaves out.

    Args:
        config: peft's.
        names: Of the layers.
        why: There are such, for the error.
        otherwise: What else helps.

    Raises:
        ValueError: If it has an ``exclude_modules`` that is not a list, to which nothing can be added.
    """
    excluded = getattr(config, "exclude_modules", None) or []
    if isinstance(excluded, str):
        raise ValueError(
            f"model.peft_config has exclude_modules={excluded!r}, and {why}. Write exclude_modules as a list of names, to which "
            f"they are added{otherwise}."
        )
    config.exclude_modules = [*excluded, *names]


def leave_out_unfit(model: nn.Module, config: Any) -> None:
    """Takes the unfit layers out of an adapter on all linear layers, and says so.

    Args:
        model: The base, before it is wrapped.
        config: peft's, whose target_modules is all-linear.
    """
    unfit = unfit_layers(model)
    if not unfit:
        return
    exclude(config, unfit, f"{describe(unfit)}, which take no adapter", ", or name the layers in target_modules")
    logger.warning(
        "The adapter leaves out %s. To choose the layers yourself, set model.lora_target to names, such as q_proj,v_proj.",
        describe(unfit),
    )


def refuse_unfit(model: nn.Module, unfit: dict[str, str]) -> None:
    """Refuses adapters on unfit layers, which a config has named.

    Args:
        model: With its adapters injected, under the names of the base.
        unfit: As from ``unfit_layers`` of the base before.

    Raises:
        ValueError: With the layers and the reason.
    """
    adapted = {
        name: unfit[name] for name, m in model.named_modules() if isinstance(m, BaseTunerLayer) and name in unfit
    }
    if adapted:
        raise ValueError(
            f"model.lora_target / model.peft_config put adapters on {describe(adapted)}. Name other layers, such as "
            "q_proj,v_proj, or use model.lora_target=all, which leaves these out."
        )


def why_no_adapter(model: nn.Module, config: Any, error: ValueError) -> str:
    """What peft's error says of a configuration, in the words of ours.

    Args:
        model: The base.
        config: peft's.
        error: Of wrapping the one with the other.
    """
    reason = str(error).splitlines()[0]
    if "lora_dropout" in reason:  # of an adapter on a parameter: lora_target=all puts them on experts, too
        return (
            f"model.lora_dropout={config.lora_dropout:g} (or that of model.peft_config): the experts of {type(model).__name__} "
            "are parameters, whose adapters have no dropout. Set model.lora_dropout=0, or leave the experts out by naming "
            "layers, such as model.lora_target=q_proj,k_proj,v_proj,o_proj."
        )
    return f"model.lora_target / model.peft_config do not fit the model: {reason}"


def describe(unfit: dict[str, str]) -> str:
    """The last words of the layers' names with the reason, each once: a model has many alike.

    Example:
        >>> describe({"layers.0.mlp.router": "Router gives two tensors", "layers.1.mlp.router": "Router gives two tensors"})
        'mlp.router (Router gives two tensors)'
    """
    kinds = {".".join(name.split(".")[-2:]): reason for name, reason in unfit.items()}
    return ", ".join(f"{name} ({reason})" for name, reason in sorted(kinds.items()))
