"""LoRA adapters on a pipeline, with the method names of diffusers' pipelines.

PEFT does the work, through transformers' adapter methods on the model. Adapters are PEFT folders or repositories
(`adapter_config.json` plus `adapter_model.safetensors`), whether made on this package's model, on transformers' own
Janus, or under the original names.
"""

import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from diffusers.loaders.lora_base import LoraBaseMixin
from safetensors import SafetensorError

from ..errors import CheckpointError
from .adapter_layers import activate, fused_adapters, remove_adapter_layers, set_enabled, tuner_layers


if TYPE_CHECKING:
    from ..modeling import JanusProForConditionalGeneration


class LoraPipelineMixin(LoraBaseMixin):
    """Add the adapter methods to a pipeline with the component `model`. They need `peft`.

    diffusers recognises pipelines that can load LoRA adapters by `LoraBaseMixin`. Its methods are replaced: tried with
    diffusers 0.42, they handle a plain adapter exactly, but for adapters with `modules_to_save`, which this package's
    own recipes train, its `disable_lora` and `unload_lora_weights` do not bring the base model back.
    """

    model: "JanusProForConditionalGeneration"
    _lora_loadable_modules = ["model"]  # diffusers' pipelines list here the components that take adapters

    def load_lora_weights(
        self, pretrained_model_name_or_path: str | os.PathLike[str], adapter_name: str | None = None, **kwargs: Any
    ) -> None:
        """Load an adapter and make it the active one.

        Args:
            pretrained_model_name_or_path: Folder or repository in PEFT's format.
            adapter_name: Name of the adapter in this pipeline; by default the first free one of `default_0`,
                `default_1`, ...
            kwargs: Where on the Hub the adapter is: `revision`, `token`, `subfolder`, `cache_dir`, ...

        Raises:
            CheckpointError: If the adapter's weights do not fit the model. After this and every other error the model
                is as it was.
            ValueError: If the name is taken, the adapter is of another kind than LoRA, or adapters are fused.
        """
        loaded, active = self._adapter_names(), self.get_active_adapters()
        self._refuse_if_fused()
        name = adapter_name or next(free for i in count() if (free := f"default_{i}") not in loaded)
        if name in loaded:
            raise ValueError(
                f"`adapter_name` must be a new name, got {name!r}, which is loaded already: pick another adapter_name "
                f"or delete_adapters({name!r}) first."
            )
        try:
            self._load(pretrained_model_name_or_path, name, kwargs)
        except BaseException:
            self._forget(name, then_use=active)
            raise
        activate(self.model, [name])
        set_enabled(self.model, True)

    def _load(self, source: str | os.PathLike[str], name: str, hub_kwargs: dict[str, Any]) -> None:
        """Load an adapter under a name and raise unless its weights are exactly those that the model needs for it."""
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
            raise ValueError(
                f"`pretrained_model_name_or_path` must be a LoRA adapter, got {str(source)!r}, an adapter of kind "
                f"{kind}; pipelines take LoRA adapters only: train one with a LoraConfig."
            )
        # transformers also counts parameters of other adapters, and every parameter whose name contains the adapter's.
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
        """Remove an adapter, also one that was loaded in part, and make `then_use` the active ones."""
        if name in self._adapter_names():
            if then_use:  # PEFT deletes a whole module while at most one other adapter is active
                activate(self.model, then_use[:1])
            self.model.delete_adapter(name)
        if not self._adapter_names():
            self.unload_lora_weights()
        elif then_use:
            activate(self.model, then_use)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Return the names of the loaded adapters as `{"model": names}`, or `{}` if none is loaded."""
        names = self._adapter_names()
        return {"model": names} if names else {}

    def _adapter_names(self) -> list[str]:
        return list(getattr(self.model, "peft_config", {}))

    def get_active_adapters(self) -> list[str]:
        """Return the names of the active adapters, also while they are disabled."""
        return list(self.model.active_adapters()) if self._adapter_names() else []

    @property
    def fused_loras(self) -> set[str]:
        """Names of the adapters that are fused into the weights."""
        return set(fused_adapters(self.model))

    @property
    def num_fused_loras(self) -> int:
        """Number of adapters that are fused into the weights."""
        return len(self.fused_loras)

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> None:
        """Use these adapters together, each scaled by its weight (1 if not given).

        Modules that an adapter trained as a whole (`modules_to_save`) cannot be scaled, nor added to those of another
        adapter.

        Raises:
            ValueError: If a name is not loaded, there is not one weight per name, two of the adapters bring the same
                whole module, or adapters are fused.
        """
        names = self._check_loaded(adapter_names)
        weights = adapter_weights if isinstance(adapter_weights, Sequence) else [adapter_weights] * len(names)
        if len(weights) != len(names):
            raise ValueError(
                f"`adapter_weights` must have one weight per adapter, {len(names)} in all, got {len(weights)}: give "
                "one for each name, or a single number."
            )
        self._refuse_if_fused()
        activate(self.model, names)
        set_enabled(self.model, True)
        for layer in tuner_layers(self.model):
            for name, weight in zip(names, weights, strict=True):
                layer.set_scale(name, 1.0 if weight is None else float(weight))

    def enable_lora(self) -> None:
        """Use the active adapters again after `disable_lora`."""
        set_enabled(self.model, True)

    def disable_lora(self) -> None:
        """Generate and answer with the base model; the adapters stay loaded.

        Raises:
            ValueError: If adapters are fused.
        """
        self._refuse_if_fused()
        set_enabled(self.model, False)

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Remove these adapters; the base model's weights stay as they are.

        If no active adapter is left, the first one that is still loaded becomes active.

        Raises:
            ValueError: If a name is not loaded, or adapters are fused.
        """
        self._refuse_if_fused()
        for name in self._check_loaded(adapter_names):
            others = [other for other in self._adapter_names() if other != name]
            self._forget(name, then_use=[a for a in self.get_active_adapters() if a != name] or others[:1])

    def fuse_lora(
        self, adapter_names: str | Sequence[str] | None = None, lora_scale: float = 1.0, safe_fusing: bool = False
    ) -> None:
        """Add adapters into the weights: the model then has its full speed, and after `unload_lora_weights` it is a
        plain model that can be saved.

        Args:
            adapter_names: Adapters to add, which become the active ones; by default the active ones.
            lora_scale: Scales what is added, on top of the adapters' weights.
            safe_fusing: Refuse to fuse if a weight would become NaN or infinite.

        Raises:
            ValueError: If no adapter is loaded, a name is not loaded, adapters are fused already, or a weight would
                not be finite.
        """
        if not self._adapter_names():
            raise ValueError("There is nothing to fuse: load an adapter with load_lora_weights first.")
        names = self._check_loaded(self.get_active_adapters() if adapter_names is None else adapter_names)
        self._refuse_if_fused()
        activate(self.model, names)
        set_enabled(self.model, True)
        for layer in tuner_layers(self.model):
            layer.scaling_before_fusing = dict(layer.scaling)
            layer.scale_layer(lora_scale)
        try:
            for layer in tuner_layers(self.model):
                layer.merge(safe_merge=safe_fusing, adapter_names=names)
        except ValueError:
            self.unfuse_lora()
            raise

    def unfuse_lora(self) -> None:
        """Take fused adapters out of the weights again (exact up to rounding in the weights' dtype)."""
        for layer in tuner_layers(self.model):
            if layer.merged:
                layer.unmerge()
            layer.scaling.update(layer.__dict__.pop("scaling_before_fusing", {}))

    def unload_lora_weights(self) -> None:
        """Remove every adapter. Fused adapters stay in the weights; without `fuse_lora` the base model comes back
        exactly.
        """
        remove_adapter_layers(self.model)
        if self._adapter_names():
            del self.model.peft_config
        # transformers' public `delete_adapter` would reset this flag, but refuses a model that PEFT itself wrapped.
        self.model._hf_peft_config_loaded = False

    def save_lora_weights(self, save_directory: str | os.PathLike[str]) -> None:
        """Write the active adapter as a PEFT folder.

        Raises:
            ValueError: If not exactly one adapter is active.
        """
        if len(active := self.get_active_adapters()) != 1:
            raise ValueError(
                f"Exactly one adapter must be active to be saved, active are {active}. Choose it with set_adapters."
            )
        self.model.save_pretrained(save_directory)

    def _check_loaded(self, adapter_names: str | Sequence[str]) -> list[str]:
        """Return the names as a list; raise ValueError if there is none or one is not loaded."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if unknown := sorted(set(names) - set(self._adapter_names())):
            raise ValueError(
                f"`adapter_names` must be names of loaded adapters, which are {self._adapter_names()}, got "
                f"{', '.join(unknown)}: load it with load_lora_weights first."
            )
        if not names:
            raise ValueError(
                "`adapter_names` must hold at least one name, got none. To use none of them: disable_lora()."
            )
        return names

    def _refuse_if_fused(self) -> None:
        """Raise ValueError if adapters are fused."""
        if fused := fused_adapters(self.model):
            raise ValueError(
                f"Adapters {fused} are fused into the weights: take them out with unfuse_lora() first, or keep them "
                "there for good with unload_lora_weights()."
            )


@contextmanager
def _without_false_alarms() -> Iterator[None]:
    """Silence warnings about correct adapters while one is loaded; `LoraPipelineMixin` raises if weights are missing.

    PEFT warns of every second adapter. transformers reports the weights of the base model and of other adapters as
    missing from the adapter's file.
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


__all__ = ["LoraPipelineMixin"]
