"""LoRA adapters on a pipeline, with the verbs diffusers' pipelines have.

The work is PEFT's, through transformers' adapter methods on the model. Adapters are PEFT folders or repositories
(`adapter_config.json` plus `adapter_model.safetensors`), whether made on this package's model, on transformers' own
Janus, or under the original names.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from .errors import CheckpointError


class LoraPipelineMixin:
    """Adds the adapter verbs to a pipeline whose `model` is a transformers model. Needs `peft` installed."""

    model: Any

    def load_lora_weights(
        self, pretrained_model_name_or_path: Any, adapter_name: str | None = None, **kwargs: Any
    ) -> None:
        """Load an adapter and make it the active one.

        Args:
            pretrained_model_name_or_path: Folder or repository in PEFT's format.
            adapter_name: Its name in this pipeline; `default_0`, `default_1`, ... if not given.
            kwargs: `revision`, `token`, `subfolder`, `cache_dir`, ... of the Hub.

        Raises:
            CheckpointError: If the adapter's weights do not fit the model; the model is left as it was.
            ValueError: If the name is taken.
        """
        name = adapter_name or f"default_{len(self.get_list_adapters())}"
        if name in self.get_list_adapters():
            raise ValueError(
                f"An adapter named {name!r} is loaded already: pick another adapter_name, or "
                f"delete_adapters({name!r}) first."
            )
        try:
            info = self.model.load_adapter(pretrained_model_name_or_path, adapter_name=name, adapter_kwargs=kwargs)
        except RuntimeError as error:  # transformers' report of wrong shapes
            self._forget(name)
            raise CheckpointError(
                f"The adapter {str(pretrained_model_name_or_path)!r} does not fit this model: {error}"
            ) from error
        missing, unexpected = set(info.missing_keys), set(info.unexpected_keys)
        if missing or unexpected:
            self._forget(name)
            raise CheckpointError(
                f"The adapter {str(pretrained_model_name_or_path)!r} does not fit this model, so it was not loaded. "
                "Check that it was trained on a Janus-Pro of this size.",
                missing=missing,
                unexpected=unexpected,
            )
        self.model.set_adapter(name)

    def _forget(self, name: str) -> None:
        if name in self.get_list_adapters():
            self.model.delete_adapter(name)
        if not self.get_list_adapters():
            _remove_adapter_layers(self.model)

    def get_list_adapters(self) -> list[str]:
        """Names of the loaded adapters."""
        return list(getattr(self.model, "peft_config", {}))

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters in use."""
        return self.model.active_adapters() if self.get_list_adapters() else []

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> None:
        """Use these adapters together, each scaled by its weight (1 if not given).

        Raises:
            ValueError: If a name is not loaded, or there is not one weight per name.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        weights = adapter_weights if isinstance(adapter_weights, Sequence) else [adapter_weights] * len(names)
        if len(weights) != len(names):
            raise ValueError(f"Expected one weight per adapter, {len(names)} in all, got {len(weights)}.")
        if unknown := sorted(set(names) - set(self.get_list_adapters())):
            raise ValueError(
                f"No adapter named {', '.join(unknown)} is loaded; loaded are {self.get_list_adapters()}."
            )
        self.model.set_adapter(names)
        for layer in _tuner_layers(self.model):
            for name, weight in zip(names, weights, strict=True):
                layer.set_scale(name, 1.0 if weight is None else float(weight))

    def enable_lora(self) -> None:
        """Use the loaded adapters again after `disable_lora`."""
        self.model.enable_adapters()

    def disable_lora(self) -> None:
        """Draw and answer with the base model; the adapters stay loaded."""
        self.model.disable_adapters()

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Remove these adapters; the base model's weights are untouched."""
        for name in [adapter_names] if isinstance(adapter_names, str) else list(adapter_names):
            if name not in self.get_list_adapters():
                raise ValueError(f"No adapter named {name!r} is loaded; loaded are {self.get_list_adapters()}.")
            self._forget(name)

    def fuse_lora(
        self, adapter_names: Sequence[str] | None = None, lora_scale: float = 1.0, safe_fusing: bool = False
    ) -> None:
        """Add the active adapters (or these) into the weights: full speed, and after `unload_lora_weights` a plain
        model to save.

        Args:
            lora_scale: Scales what is added.
            safe_fusing: Refuse to fuse if a weight would become NaN or infinite.
        """
        if not self.get_list_adapters():
            raise ValueError("There is nothing to fuse: load an adapter with load_lora_weights first.")
        for layer in _tuner_layers(self.model):
            layer.scale_layer(lora_scale)
            layer.merge(
                safe_merge=safe_fusing, adapter_names=list(adapter_names) if adapter_names is not None else None
            )

    def unfuse_lora(self) -> None:
        """Take fused adapters out of the weights again (exact up to rounding in the weights' dtype)."""
        for layer in _tuner_layers(self.model):
            layer.unmerge()
            layer.unscale_layer()

    def unload_lora_weights(self) -> None:
        """Remove every adapter. What was fused stays in the weights; without `fuse_lora` the base model comes back
        exactly.
        """
        _remove_adapter_layers(self.model)
        if self.get_list_adapters():
            del self.model.peft_config
        self.model._hf_peft_config_loaded = False

    def save_lora_weights(self, save_directory: Any) -> None:
        """Write the active adapter as a PEFT folder.

        Raises:
            ValueError: If not exactly one adapter is active.
        """
        if len(self.get_active_adapters()) != 1:
            raise ValueError(
                f"Exactly one adapter can be saved at a time; active are {self.get_active_adapters()}. Choose it with "
                "set_adapters."
            )
        self.model.save_pretrained(save_directory)


def _tuner_layers(model: nn.Module) -> Iterator[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return (module for module in model.modules() if isinstance(module, BaseTunerLayer))


def _remove_adapter_layers(model: nn.Module) -> None:
    """Put the wrapped layers back in the place of their wrappers.

    A module trained as a whole (`modules_to_save`) has no sum to fuse into: the trained copy stays if any layer was
    fused, else the original.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    fused = any(layer.merged for layer in _tuner_layers(model))
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            plain = module.get_base_layer()
        elif isinstance(module, ModulesToSaveWrapper):
            plain = module.modules_to_save[module.active_adapters[0]] if fused else module.original_module
        else:
            continue
        parent_name, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent_name), child, plain)
