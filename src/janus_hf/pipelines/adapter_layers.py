"""Functions that find, switch and remove the layers that PEFT adds to a model for its adapters.

PEFT puts a tuner layer (`BaseTunerLayer`) around each layer that an adapter changes by a low-rank product. It puts a
`ModulesToSaveWrapper` around each module that an adapter trains completely (`modules_to_save` in the adapter's
config). That wrapper holds the base model's module and one trained copy per adapter.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn


if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper


def tuner_layers(model: nn.Module) -> "list[BaseTunerLayer]":
    """Return PEFT's tuner layers in the model; each wraps a layer that adapters change by a low-rank product."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def whole_modules(model: nn.Module) -> "list[ModulesToSaveWrapper]":
    """Return PEFT's wrappers of the modules that adapters train completely (`modules_to_save`)."""
    from peft.utils import ModulesToSaveWrapper

    return [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]


def fused_adapters(model: nn.Module) -> list[str]:
    """Return the sorted names of the fused adapters: those whose low-rank products are added into the weights."""
    if not hasattr(model, "peft_config"):
        return []
    return sorted({name for layer in tuner_layers(model) for name in layer.merged_adapters})


def activate(model: nn.Module, names: Sequence[str]) -> None:
    """Make the adapters of these names the active ones and all others inactive.

    transformers' `set_adapter` is not used, because it fails if one adapter has a trained copy of a module
    (`modules_to_save`) and another adapter has none.

    Raises:
        ValueError: If two of the adapters have a trained copy of the same module, because copies cannot be added.
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
    """Turn the model's active adapters on or off; they stay loaded and active.

    transformers' `enable_adapters` is not used, because it turns on low-rank products only and leaves the trained
    copies of modules (`modules_to_save`) off.
    """
    for module in [*tuner_layers(model), *whole_modules(model)]:
        module.enable_adapters(enabled)


def remove_adapter_layers(model: nn.Module) -> None:
    """Replace every tuner layer and wrapper that PEFT added to the model by the layer or module inside it.

    The low-rank products of fused adapters stay in the weights. A module that an adapter trains completely
    (`modules_to_save`) has no product to add. For it the trained copy stays if the adapter is fused, otherwise the
    base model's module.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    fused = fused_adapters(model)
    # Innermost first, because a module that is trained completely may hold tuner layers.
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
