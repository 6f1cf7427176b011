"""Pipeline methods that load, combine, fuse and remove LoRA adapters, named as in diffusers' pipelines.

PEFT does the work, through transformers' adapter methods of the model. An adapter is a folder or Hub repository in
PEFT's format (`adapter_config.json` and `adapter_model.safetensors`). Its weights may have the names of this package's
model, of transformers' own Janus, or of the code of deepseek-ai/Janus.
"""

import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, Unpack

from diffusers.loaders.lora_base import LoraBaseMixin
from safetensors import SafetensorError

from ..arguments import check_flag, check_path, describe
from ..errors import CheckpointError
from ..hub.fetching import hub_arguments
from ..hub.uploads import UploadArguments
from .adapter_layers import activate, fused_adapters, remove_adapter_layers, set_enabled, tuner_layers
from .call_arguments import check_adapter_source, check_scale, check_scales


if TYPE_CHECKING:
    from ..modeling import JanusProForConditionalGeneration


class LoraPipelineMixin(LoraBaseMixin):
    """Add the methods for LoRA adapters to a pipeline that has the component `model`. They need the package `peft`.

    `LoraBaseMixin` is a base class because diffusers recognises by it which pipelines can load LoRA adapters. Its
    methods are overridden. With diffusers 0.42 they handle adapters that consist of low-rank products correctly. But
    this package's recipes also train adapters with complete copies of modules (`modules_to_save`), and with these
    `disable_lora` and `unload_lora_weights` of `LoraBaseMixin` do not restore the base model.
    """

    model: "JanusProForConditionalGeneration"
    _lora_loadable_modules = ["model"]  # diffusers' pipelines list here the components that take adapters

    def load_lora_weights(
        self, pretrained_model_name_or_path: str | os.PathLike[str], adapter_name: str | None = None, **kwargs: Any
    ) -> None:
        """Load a LoRA adapter and make it the only active one.

        After any error the model is the same as before the call. A warning is logged if the adapter was trained on
        another repository, or another revision of it, than the one that the model was loaded from.

        Args:
            pretrained_model_name_or_path: Folder or Hub repository of the adapter in PEFT's format.
            adapter_name: Name of the adapter in this pipeline; by default the first of `default_0`, `default_1`, ...
                that is not in use.
            kwargs: Arguments that say where on the Hub the adapter is: `revision`, `token`, `subfolder`, `cache_dir`,
                ...

        Raises:
            CheckpointError: If the adapter's weights do not fit the model.
            OSError: If the repository or one of its files cannot be downloaded or read. The message says why and what
                to do.
            TypeError: If an argument is of the wrong type or unknown.
            ValueError: If `adapter_name` is in use or contains a dot, the adapter is not a LoRA adapter, or adapters
                are fused into the weights (`fuse_lora`).
        """
        check_adapter_source(pretrained_model_name_or_path, adapter_name, kwargs)
        loaded, active = self._adapter_names(), self.get_active_adapters()
        self._refuse_if_fused()
        name = adapter_name or next(free for i in count() if (free := f"default_{i}") not in loaded)
        if name in loaded:
            raise ValueError(
                f"`adapter_name` must be a new name, got {name!r}, which is loaded already: pick another adapter_name "
                f"or delete_adapters({name!r}) first."
            )
        try:
            self._load(pretrained_model_name_or_path, name, hub_arguments(kwargs))
        except BaseException:
            self._remove(name, then_use=active)
            raise
        activate(self.model, [name])
        set_enabled(self.model, True)

    def _load(self, source: str | os.PathLike[str], name: str, hub_kwargs: dict[str, Any]) -> None:
        """Load an adapter into the model and check that the file holds exactly the weights that the adapter needs.

        After an error, the part of the adapter that was loaded stays in the model; `_remove` removes it.

        Args:
            source: Folder or Hub repository of the adapter.
            name: Name of the adapter in this pipeline.
            hub_kwargs: Arguments that say where on the Hub the adapter is, for example `revision`.

        Raises:
            CheckpointError: If weights are missing, unexpected or of the wrong shape.
            OSError: If the Hub does not answer whether the adapter exists.
            ValueError: If the adapter is not a LoRA adapter.
        """
        doubt = f"The adapter {str(source)!r} does not fit this model, so it was not loaded"
        try:
            with _without_false_warnings():
                # With ignore_mismatched_sizes, `info` lists weights of the wrong shape instead of an error that names
                # only them. One error below names these and all other faulty weights.
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
        # As missing, transformers also lists parameters of other adapters, and all whose names contain this one's
        # name.
        own = re.compile(rf"\.(lora_\w+|modules_to_save)\.{re.escape(name)}(\.|$)")
        missing = {key for key in info.missing_keys if own.search(key)}
        if missing or info.unexpected_keys or info.mismatched_keys:
            raise CheckpointError(
                f"{doubt}. Check that it was trained on a Janus-Pro of this size.",
                missing=missing,
                unexpected=info.unexpected_keys,
                mismatched=info.mismatched_keys,
            )

    def _remove(self, name: str, *, then_use: Sequence[str]) -> None:
        """Remove the adapter `name`, even if only a part of it was loaded, and make the adapters `then_use` active."""
        if name in self._adapter_names():
            if then_use:  # PEFT cannot delete a trained copy of a module while several other adapters are active
                activate(self.model, then_use[:1])
            self.model.delete_adapter(name)
        if not self._adapter_names():
            self.unload_lora_weights()
        elif then_use:
            activate(self.model, then_use)

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Return the names of all loaded adapters as `{"model": [name, ...]}`, or `{}` if none is loaded."""
        names = self._adapter_names()
        return {"model": names} if names else {}

    def _adapter_names(self) -> list[str]:
        return list(getattr(self.model, "peft_config", {}))

    def get_active_adapters(self) -> list[str]:
        """Return the names of the active adapters, even while `disable_lora` has turned them off."""
        return list(self.model.active_adapters()) if self._adapter_names() else []

    @property
    def fused_loras(self) -> set[str]:
        """Names of the adapters that `fuse_lora` has added into the model's weights."""
        return set(fused_adapters(self.model))

    @property
    def num_fused_loras(self) -> int:
        """Number of adapters that `fuse_lora` has added into the model's weights."""
        return len(self.fused_loras)

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] | None = None
    ) -> None:
        """Make these adapters the active ones; the model adds their low-rank products, each scaled by a weight.

        If an adapter has a trained copy of a whole module (`modules_to_save`), the copy replaces the module. It cannot
        be scaled, nor combined with another adapter's copy of the same module.

        Args:
            adapter_names: One name of a loaded adapter, or several.
            adapter_weights: One weight for all adapters, or one per adapter; None is 1.

        Raises:
            TypeError: If a name is not a string, or a weight is not a number.
            ValueError: If no adapter of a name is loaded, a weight is not finite, the number of weights is not the
                number of names, two of the adapters have a trained copy of the same module, or adapters are fused into
                the weights.
        """
        names = self._check_loaded(adapter_names)
        weights = check_scales(adapter_weights, len(names))
        self._refuse_if_fused()
        activate(self.model, names)
        set_enabled(self.model, True)
        for layer in tuner_layers(self.model):
            for name, weight in zip(names, weights, strict=True):
                layer.set_scale(name, weight)

    def enable_lora(self) -> None:
        """Turn the active adapters on again after `disable_lora`."""
        set_enabled(self.model, True)

    def disable_lora(self) -> None:
        """Turn the adapters off, so that the pipeline generates and answers with the base model.

        The adapters stay loaded; `enable_lora` turns them on again.

        Raises:
            ValueError: If adapters are fused into the weights.
        """
        self._refuse_if_fused()
        set_enabled(self.model, False)

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Remove the adapters of these names from the model, without changing the base model's weights.

        If this removes all active adapters, the first adapter that is still loaded becomes active.

        Raises:
            ValueError: If no adapter of a name is loaded, or adapters are fused into the weights.
        """
        self._refuse_if_fused()
        for name in self._check_loaded(adapter_names):
            others = [other for other in self._adapter_names() if other != name]
            self._remove(name, then_use=[a for a in self.get_active_adapters() if a != name] or others[:1])

    def fuse_lora(
        self,
        adapter_names: str | Sequence[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        *,
        components: Sequence[str] | None = None,
    ) -> None:
        """Fuse adapters: add their low-rank products into the model's weights.

        The model is then as fast as without adapters. After `unload_lora_weights` it is a plain model that can be
        saved.

        Args:
            adapter_names: Names of the adapters to fuse, which become the active ones; by default all active adapters.
            lora_scale: Factor by which the products are multiplied, in addition to the weights of `set_adapters`.
            safe_fusing: Whether to raise an error and fuse nothing if a weight would become NaN or infinite.
            components: Names of the components to fuse into, as in diffusers: None or ["model"].

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If `lora_scale` is not finite, no adapter is loaded, no adapter of a name is loaded, adapters
                are fused already, or `safe_fusing` is set and a weight would not be finite.
        """
        _check_components(components)
        scale, safe = check_scale(lora_scale, "lora_scale"), check_flag(safe_fusing, "safe_fusing")
        if not self._adapter_names():
            raise ValueError("There is nothing to fuse: load an adapter with load_lora_weights first.")
        names = self._check_loaded(self.get_active_adapters() if adapter_names is None else adapter_names)
        self._refuse_if_fused()
        activate(self.model, names)
        set_enabled(self.model, True)
        for layer in tuner_layers(self.model):
            layer.scaling_before_fusing = dict(layer.scaling)
            layer.scale_layer(scale)
        try:
            for layer in tuner_layers(self.model):
                layer.merge(safe_merge=safe, adapter_names=names)
        except ValueError:
            self.unfuse_lora()
            raise

    def unfuse_lora(self, components: Sequence[str] | None = None) -> None:
        """Subtract fused adapters from the weights again; this is exact up to rounding in the weights' dtype.

        Args:
            components: Names of the components, as in diffusers: None or ["model"].
        """
        _check_components(components)
        for layer in tuner_layers(self.model):
            if layer.merged:
                layer.unmerge()
            layer.scaling.update(layer.__dict__.pop("scaling_before_fusing", {}))

    def unload_lora_weights(self) -> None:
        """Remove all adapters from the model.

        Products that `fuse_lora` has added to the weights stay in them. If no adapter was fused, the model is exactly
        the base model afterwards.
        """
        remove_adapter_layers(self.model)
        if self._adapter_names():
            del self.model.peft_config
        # transformers' public `delete_adapter` would reset this flag, but refuses a model that PEFT itself wrapped.
        self.model._hf_peft_config_loaded = False

    def save_lora_weights(
        self,
        save_directory: str | os.PathLike[str],
        *,
        push_to_hub: bool = False,
        **upload: Unpack[UploadArguments],
    ) -> None:
        """Write the active adapter to a folder in PEFT's format.

        Args:
            save_directory: Folder to write to.
            push_to_hub: Also upload the adapter, with a model card.
            upload: Keyword arguments of `push_to_hub`, for `push_to_hub=True`; `repo_id` defaults to the folder's
                name.

        Raises:
            ValueError: If not exactly one adapter is active.
            TypeError: If an argument is unknown, or is for the upload and `push_to_hub` is False.
        """
        check_path(save_directory, "save_directory", "a folder to write to")
        if len(active := self.get_active_adapters()) != 1:
            raise ValueError(
                f"Exactly one adapter must be active to be saved, got {active}: choose it with set_adapters."
            )
        self.model.save_pretrained(save_directory, push_to_hub=push_to_hub, **upload)

    def _check_loaded(self, adapter_names: str | Sequence[str]) -> list[str]:
        """Return one or several adapter names as a list.

        Raises:
            TypeError: If a name is not a string.
            ValueError: If there is no name, a name occurs twice, or no adapter of a name is loaded.
        """
        is_list = isinstance(adapter_names, (list, tuple))
        if isinstance(adapter_names, dict):
            raise TypeError(
                f"`adapter_names` must be a name or a list of names, got {describe(adapter_names)}: write "
                f"set_adapters({list(adapter_names)}, {list(adapter_names.values())})."
            )
        if not isinstance(adapter_names, str) and not (is_list and all(isinstance(one, str) for one in adapter_names)):
            raise TypeError(
                f"`adapter_names` must be a name or a list of names, got {describe(adapter_names)}: choose among "
                f"{self._adapter_names()}."
            )
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if unknown := sorted(set(names) - set(self._adapter_names())):
            raise ValueError(
                f"`adapter_names` must be names of loaded adapters, which are {self._adapter_names()}, got "
                f"{', '.join(unknown)}: load it with load_lora_weights first."
            )
        if len(set(names)) != len(names):
            raise ValueError(f"`adapter_names` must be different names, got {names}: name each adapter once.")
        if not names:
            raise ValueError(
                "`adapter_names` must hold at least one name, got none. To use none of them: disable_lora()."
            )
        return names

    def _refuse_if_fused(self) -> None:
        """Raise a ValueError if adapters are fused into the model's weights (`fuse_lora`)."""
        if fused := fused_adapters(self.model):
            raise ValueError(
                f"Adapters {fused} are fused into the weights: take them out with unfuse_lora() first, or keep them "
                "there for good with unload_lora_weights()."
            )


def _check_components(components: Sequence[str] | None) -> None:
    """Raise a ValueError unless the argument `components` of this name is None or names the model alone."""
    if components is not None and list(components) != ["model"]:
        raise ValueError(
            f"`components` must be ['model'], the only one that takes adapters, got {describe(components)}: leave it "
            "out."
        )


@contextmanager
def _without_false_warnings() -> Iterator[None]:
    """Silence two false warnings of PEFT and transformers while an adapter is loaded inside the `with` block.

    PEFT warns when a second adapter is loaded. transformers reports the weights of the base model and of other
    adapters as missing from the adapter's file. `LoraPipelineMixin` itself raises an error if weights of the adapter
    are missing.
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
