"""Finding, switching and removing the layers that PEFT puts into a model.

An adapter adds a tuner layer around each layer that it changes by a low-rank product. Modules that it trains as a
whole (`modules_to_save` of its config) get a wrapper that holds the original and one trained copy per adapter.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn


if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper


def tuner_layers(model: nn.Module) -> "list[BaseTunerLayer]":
    """Return the layers that adapters change by a low-rank product."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def whole_modules(model: nn.Module) -> "list[ModulesToSaveWrapper]":
    """Return the wrappers of modules of which adapters bring a trained copy."""
    from peft.utils import ModulesToSaveWrapper

    return [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]


def fused_adapters(model: nn.Module) -> list[str]:
    """Return the names of the adapters whose products are added into the weights, sorted."""
    if not hasattr(model, "peft_config"):
        return []
    return sorted({name for layer in tuner_layers(model) for name in layer.merged_adapters})


def activate(model: nn.Module, names: Sequence[str]) -> None:
    """Make these adapters the active ones.

    transformers' `set_adapter` fails where an adapter does not bring a whole module that another one does.

    Raises:
        ValueError: If two of the adapters bring a copy of the same whole module.
    """
    from peft.functional import set_adapter

    for module in whole_modules(model):
        if len(rivals := [name for name in names if name in module.modules_to_save]) > 1:
            raise ValueError(
                f"`adapter_names` must name one adapter with its own copy of a whole module (modules_to_save), got "
                f"{rivals}: copies cannot be added, use one of them at a time."
            )
    set_adapter(model, list(names), inference_mode=True)


def set_enabled(model: nn.Module, enabled: bool) -> None:
    """Let the active adapters take effect, or not.

    transformers' `enable_adapters` and `disable_adapters` leave whole modules as they are.
    """
    for module in [*tuner_layers(model), *whole_modules(model)]:
        module.enable_adapters(enabled)


def remove_adapter_layers(model: nn.Module) -> None:
    """Replace tuner layers and wrappers by the layers and modules inside them.

    A whole module has no sum to fuse into: the trained copy stays if its adapter is fused, else the original.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    fused = fused_adapters(model)
    # Innermost first, because a whole module may hold tuner layers.
    for name, module in reversed(list(model.named_modules())):
        if isinstance(module, BaseTunerLayer):
            plain = module.get_base_layer()
        elif isinstance(module, ModulesToSaveWrapper):
            copies = [copy for adapter, copy in module.modules_to_save.items() if adapter in fused]
            plain = copies[0] if copies else module.original_module
        else:
            continue
        parent_name, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent_name), child, plain)


__all__ = [
    "activate",
    "fused_adapters",
    "remove_adapter_layers",
    "set_enabled",
    "tuner_layers",
    "whole_modules",
]
