"""LoRA adapters on a pipeline, with the verbs diffusers' pipelines have.

The work is PEFT's, through transformers' adapter methods on the model. Adapters are PEFT folders or repositories
(`adapter_config.json` plus `adapter_model.safetensors`), whether made on this package's model, on transformers' own
Janus, or under the original names.
"""

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

from safetensors import SafetensorError
from torch import nn

from ..errors import CheckpointError


class LoraPipelineMixin:
    """Adds the adapter verbs to a pipeline whose `model` is a transformers model. Needs `peft` installed."""

    model: Any

    def load_lora_weights(
        self, pretrained_model_name_or_path: Any, adapter_name: str | None = None, **kwargs: Any
    ) -> None:
        """Load an adapter and make it the active one.

        Args:
            pretrained_model_name_or_path: Folder or repository in PEFT's format.
            adapter_name: Its name in this pipeline; the first free one of `default_0`, `default_1`, ... if not given.
            kwargs: `revision`, `token`, `subfolder`, `cache_dir`, ... of the Hub.

        Raises:
            CheckpointError: If the adapter's weights do not fit the model. After this and every other error the model
                is as it was.
            ValueError: If the name is taken, the adapter is of another kind than LoRA, or adapters are fused.
        """
        loaded, active = self.get_list_adapters(), self.get_active_adapters()
        self._refuse_if_fused()
        name = adapter_name or next(free for i in count() if (free := f"default_{i}") not in loaded)
        if name in loaded:
            raise ValueError(
                f"An adapter named {name!r} is loaded already: pick another adapter_name, or "
                f"delete_adapters({name!r}) first."
            )
        try:
            self._load(pretrained_model_name_or_path, name, kwargs)
        except BaseException:
            self._forget(name, then_use=active)
            raise
        _choose(self.model, [name])
        _enable(self.model, True)

    def _load(self, source: Any, name: str, hub_kwargs: dict[str, Any]) -> None:
        doubt = f"The adapter {str(source)!r} does not fit this model, so it was not loaded"
        try:
            with _without_false_alarms():
                # Wrong shapes come back in the info, and are raised below together with everything else that is wrong.
                info = self.model.load_adapter(
                    source, adapter_name=name, adapter_kwargs=hub_kwargs, ignore_mismatched_sizes=True
                )
        except (RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{doubt}: {error}") from error
        kind = self.model.peft_config[name].peft_type.value
        if kind != "LORA":
            raise ValueError(f"{str(source)!r} is an adapter of kind {kind}; pipelines take LoRA adapters only.")
        # transformers also counts what other adapters have, and every parameter whose name contains the adapter's.
        own = re.compile(rf"\.(lora_\w+|modules_to_save)\.{re.escape(name)}(\.|$)")
        missing = {key for key in info.missing_keys if own.search(key)}
        if missing or info.unexpected_keys or info.mismatched_keys:
            raise CheckpointError(
                f"{doubt}. Check that it was trained on a Janus-Pro of this size.",
                missing=missing,
                unexpected=info.unexpected_keys,
                mismatched=info.mismatched_keys,
            )

    def _forget(self, name: str, *, then_use: Sequence[str]) -> None:
        if name in self.get_list_adapters():
            if then_use:  # PEFT deletes a whole module while at most one other adapter is active
                _choose(self.model, then_use[:1])
            self.model.delete_adapter(name)
        if not self.get_list_adapters():
            self.unload_lora_weights()
        elif then_use:
            _choose(self.model, then_use)

    def get_list_adapters(self) -> list[str]:
        """Names of the loaded adapters."""
        return list(getattr(self.model, "peft_config", {}))

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters in use."""
        return list(self.model.active_adapters()) if self.get_list_adapters() else []

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> None:
        """Use these adapters together, each scaled by its weight (1 if not given).

        Modules that an adapter trained as a whole (`modules_to_save`) cannot be scaled, nor summed with another
        adapter's.

        Raises:
            ValueError: If a name is not loaded, there is not one weight per name, two of the adapters bring the same
                whole module, or adapters are fused.
        """
        names = self._check_loaded(adapter_names)
        weights = adapter_weights if isinstance(adapter_weights, Sequence) else [adapter_weights] * len(names)
        if len(weights) != len(names):
            raise ValueError(f"Expected one weight per adapter, {len(names)} in all, got {len(weights)}.")
        self._refuse_if_fused()
        _choose(self.model, names)
        _enable(self.model, True)
        for layer in _tuner_layers(self.model):
            for name, weight in zip(names, weights, strict=True):
                layer.set_scale(name, 1.0 if weight is None else float(weight))

    def enable_lora(self) -> None:
        """Use the loaded adapters again after `disable_lora`."""
        _enable(self.model, True)

    def disable_lora(self) -> None:
        """Draw and answer with the base model; the adapters stay loaded.

        Raises:
            ValueError: If adapters are fused.
        """
        self._refuse_if_fused()
        _enable(self.model, False)

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Remove these adapters; the base model's weights are untouched. If none stays active, the first one left
        becomes so.

        Raises:
            ValueError: If a name is not loaded, or adapters are fused.
        """
        self._refuse_if_fused()
        for name in self._check_loaded(adapter_names):
            others = [other for other in self.get_list_adapters() if other != name]
            self._forget(name, then_use=[a for a in self.get_active_adapters() if a != name] or others[:1])

    def fuse_lora(
        self, adapter_names: str | Sequence[str] | None = None, lora_scale: float = 1.0, safe_fusing: bool = False
    ) -> None:
        """Add the active adapters (or these, which become active) into the weights: full speed, and after
        `unload_lora_weights` a plain model to save.

        Args:
            lora_scale: Scales what is added, on top of the adapters' weights.
            safe_fusing: Refuse to fuse if a weight would become NaN or infinite.

        Raises:
            ValueError: If no adapter is loaded, a name is not loaded, adapters are fused already, or a weight would
                not be finite.
        """
        if not self.get_list_adapters():
            raise ValueError("There is nothing to fuse: load an adapter with load_lora_weights first.")
        names = self._check_loaded(self.get_active_adapters() if adapter_names is None else adapter_names)
        self._refuse_if_fused()
        _choose(self.model, names)
        _enable(self.model, True)
        for layer in _tuner_layers(self.model):
            layer.scaling_before_fusing = dict(layer.scaling)
            layer.scale_layer(lora_scale)
        try:
            for layer in _tuner_layers(self.model):
                layer.merge(safe_merge=safe_fusing, adapter_names=names)
        except ValueError:
            self.unfuse_lora()
            raise

    def unfuse_lora(self) -> None:
        """Take fused adapters out of the weights again (exact up to rounding in the weights' dtype)."""
        for layer in _tuner_layers(self.model):
            if layer.merged:
                layer.unmerge()
            layer.scaling.update(layer.__dict__.pop("scaling_before_fusing", {}))

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

    def _check_loaded(self, adapter_names: str | Sequence[str]) -> list[str]:
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if unknown := sorted(set(names) - set(self.get_list_adapters())):
            raise ValueError(
                f"No adapter named {', '.join(unknown)} is loaded; loaded are {self.get_list_adapters()}."
            )
        if not names:
            raise ValueError("Expected at least one adapter's name, got none. To use none of them: disable_lora().")
        return names

    def _refuse_if_fused(self) -> None:
        if fused := _fused(self.model):
            raise ValueError(
                f"Adapters {fused} are fused into the weights: take them out with unfuse_lora() first, or keep them "
                "there for good with unload_lora_weights()."
            )


@contextmanager
def _without_false_alarms() -> Iterator[None]:
    """PEFT warns of every second adapter, and transformers reports the weights of the base model and of other adapters
    as missing from this one's file. What is missing, we raise.
    """

    def is_no_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.integrations.peft")
    logger.addFilter(is_no_report)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            yield
    finally:
        logger.removeFilter(is_no_report)


def _tuner_layers(model: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


def _whole_modules(model: nn.Module) -> list[Any]:
    """Modules of which adapters bring a trained copy (`modules_to_save`)."""
    from peft.utils import ModulesToSaveWrapper

    return [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]


def _fused(model: nn.Module) -> list[str]:
    if not hasattr(model, "peft_config"):
        return []
    return sorted({name for layer in _tuner_layers(model) for name in layer.merged_adapters})


def _choose(model: nn.Module, names: Sequence[str]) -> None:
    """Make these adapters the active ones.

    transformers' `set_adapter` fails where one of them does not bring a whole module that another does.
    """
    from peft.functional import set_adapter

    for module in _whole_modules(model):
        if len(rivals := [name for name in names if name in module.modules_to_save]) > 1:
            raise ValueError(
                f"Adapters {rivals} each bring their own copy of a whole module (modules_to_save), and there is no "
                "sum of copies: use one of them at a time."
            )
    set_adapter(model, list(names), inference_mode=True)


def _enable(model: nn.Module, enabled: bool) -> None:
    """transformers' `enable_adapters` forgets the whole modules."""
    for module in [*_tuner_layers(model), *_whole_modules(model)]:
        module.enable_adapters(enabled)


def _remove_adapter_layers(model: nn.Module) -> None:
    """Put the wrapped layers back in the place of their wrappers.

    A module trained as a whole (`modules_to_save`) has no sum to fuse into: the trained copy stays if its adapter was
    fused, else the original.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    fused = _fused(model)
    for name, module in reversed(list(model.named_modules())):  # innermost first: a whole module may hold layers
        if isinstance(module, BaseTunerLayer):
            plain = module.get_base_layer()
        elif isinstance(module, ModulesToSaveWrapper):
            kept = [copy for adapter, copy in module.modules_to_save.items() if adapter in fused]
            plain = kept[0] if kept else module.original_module
        else:
            continue
        parent_name, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent_name), child, plain)
