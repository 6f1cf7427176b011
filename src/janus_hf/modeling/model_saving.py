"""`SavingMixin`, the base class that gives models the methods `save_pretrained` and `push_to_hub`."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

import torch
from huggingface_hub import ModelCard
from transformers.core_model_loading import WeightTransform
from transformers.utils import ADAPTER_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from ..configuration import JanusProConfig, writing_layout
from ..hub.cards import Contents, model_card, published_base, repository_of
from ..hub.saved_files import replaced_save
from ..hub.uploads import HubUploadMixin, UploadArguments, check_upload_arguments
from ..layouts import Layout
from .checkpoint import all_conversions, copy_tied_head, with_own_names
from .quantisation.int4_weights import portable_int4
from .weight_files import LoadedWholeMixin


logger = logging.getLogger(__name__)


class SavingMixin(HubUploadMixin, LoadedWholeMixin):
    """Base class of `JanusProPreTrainedModel` that saves models and adapters in both file layouts and uploads them."""

    config: JanusProConfig
    _weight_conversions: list[WeightTransform] | None  # set by loading; absent on a model built from a config

    loaded_revision: str | None = None
    """Branch, tag or commit that the caller asked for when the model, or its adapter's base model, was loaded from the
    Hub; None if the caller named none, or the model is not from the Hub. `config.name_or_path` is the repository."""

    def __init__(self, config: JanusProConfig) -> None:
        super().__init__(config)
        # When a `PeftModel` is saved, `state_dict` is the only method of its base model that PEFT calls before it
        # writes adapter_config.json, so the revision is stated there.
        self.register_state_dict_pre_hook(_state_revision_of_base)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str | None = None,
        variant: str | None = None,
        *,
        layout: Layout | None = None,
        save_original_format: bool | None = None,
        safe_serialization: bool = True,
        save_peft_format: bool = True,
        distributed_checkpoint: bool = False,
        **upload: Unpack[UploadArguments],
    ) -> None:
        """Write the weights (safetensors), `config.json` and `generation_config.json` to a folder.

        If adapters are loaded, only the active adapter is written, in PEFT's format. All weight files of an earlier
        save of the same variant are replaced. If an error is raised before all new files are written, the earlier
        files stay as they are.

        Args:
            save_directory: Folder to write to.
            is_main_process, state_dict, save_peft_format, distributed_checkpoint: As in
                `PreTrainedModel.save_pretrained`.
            push_to_hub: Also upload the files that were written, with a model card.
            max_shard_size: Largest size of one weight file, in bytes or as a string such as "5GB"; None is "50GB".
            variant: Word that is added to the names of the weight files, such as "fp16" for `model.fp16.safetensors`.
            layout: File layout. `"original"` (the default) can be read by this package and by deepseek-ai/Janus,
                `"transformers"` by this package and by transformers' own Janus. Weights reload bit-equal from both. A
                quantised model can be saved in the transformers layout only, which is then the default.
            save_original_format: transformers' name for the same choice: True is `layout="original"`, False is
                `layout="transformers"`.
            safe_serialization: Must be True, because weights are always written as safetensors.
            upload: Keyword arguments of `push_to_hub`, for `push_to_hub=True`; `repo_id` defaults to the folder's
                name.

        Raises:
            ValueError: If the layout is unknown, contradicts `save_original_format` or cannot store this model; if
                `state_dict` has names that the model does not have; if `safe_serialization` is False; if both
                `distributed_checkpoint` and `push_to_hub` are True; if `save_directory` is a file, or holds an adapter
                and a whole model is saved; if the model is inside a `PeftModel`; or if an adapter is to be saved as a
                variant or in several files. Nothing is written then.
            TypeError: If an argument is unknown, or is for the upload and `push_to_hub` is False.
        """
        check_upload_arguments(upload, uploads=push_to_hub)
        if not safe_serialization:
            raise ValueError(
                "`safe_serialization` must be True, got False: leave it out, weights are written as safetensors only."
            )
        if distributed_checkpoint and push_to_hub:
            raise ValueError(
                "`distributed_checkpoint` must be False for an upload, got True: leave it out, or push_to_hub."
            )
        self._check_adapters(variant)
        if save_original_format is not None:
            same: Layout = "original" if save_original_format else "transformers"
            if layout not in (None, same):
                raise ValueError(
                    f"save_original_format={save_original_format} means layout={same!r}, got layout={layout!r} too: "
                    "pass one of the two."
                )
            layout = same
        quantised = getattr(self, "hf_quantizer", None) is not None
        layout = layout or ("transformers" if quantised else "original")
        if layout not in ("original", "transformers"):
            raise ValueError(
                f"`layout` must be 'original' or 'transformers', got {layout!r}: choose one of them, or leave it out."
            )
        if layout == "original" and quantised:
            raise ValueError(
                "layout must be 'transformers' for a quantised model, got 'original', which has no names for its "
                "weights: use layout='transformers', or save the unquantised model."
            )
        self.config.to_file_dict(layout)  # raises before anything is written
        _state_revision_of_base(self)
        if state_dict is not None:
            state_dict = with_own_names(self, state_dict)
        elif layout == "original" and self.config.tie_word_embeddings:
            state_dict = copy_tied_head(self.state_dict())
        if self.can_generate():
            # transformers writes this flag into generation_config.json. When it reads a file in which the flag is
            # True, it drops fields that it does not know, such as this package's image_guidance_scale.
            # GenerationConfig has no public way to clear the flag.
            self.generation_config._from_model_config = False

        def write(folder: str | os.PathLike[str]) -> None:
            with portable_int4(self), writing_layout(layout):
                super(SavingMixin, self).save_pretrained(
                    folder,
                    is_main_process=is_main_process,
                    state_dict=state_dict,
                    variant=variant,
                    save_peft_format=save_peft_format,
                    save_original_format=layout == "original",
                    distributed_checkpoint=distributed_checkpoint,
                    **({} if max_shard_size is None else {"max_shard_size": max_shard_size}),
                )

        # Saving reverts the conversions in this attribute, which after loading are those of the layout that was
        # loaded. The public way, a registered mapping, is used only for models that were not loaded from files.
        loaded_with = getattr(self, "_weight_conversions", None)
        self._weight_conversions = all_conversions(self)
        try:
            if distributed_checkpoint:  # all processes write into this folder, so it cannot be a temporary one
                write(save_directory)
                return
            with replaced_save(save_directory) as folder:
                write(folder)
                names = os.listdir(folder)
                if ADAPTER_CONFIG_NAME in names and SAFE_WEIGHTS_INDEX_NAME in names:
                    raise ValueError(
                        "`max_shard_size` must not divide an adapter into files, of which PEFT reads only one, "
                        f"got {max_shard_size!r}: leave it out."
                    )
        finally:
            self._weight_conversions = loaded_with
        if push_to_hub and self.should_save_on_this_rank(is_main_process):
            self._upload(save_directory, names, upload, variant=variant)

    def _check_adapters(self, variant: str | None) -> None:
        """Raise a ValueError if the model's adapters cannot be saved at all, or cannot be saved as this variant."""
        is_adapter = getattr(self, "_hf_peft_config_loaded", False)
        has_layers = any(name.endswith((".base_layer", ".original_module")) for name, _ in self.named_modules())
        if has_layers and not is_adapter:  # then the weights have names of PEFT's, which no loader of models knows
            raise ValueError(
                "The model to be saved must be without layers that get_peft_model put into it, got a model with them: "
                "save the PeftModel instead, or merge_and_unload() it first."
            )
        if variant and is_adapter:
            raise ValueError(
                f"`variant` must be None for an adapter, which has no variants, got {variant!r}: leave it out."
            )

    def _generated_card(
        self, repo_id: str, *, has_processor: bool, loading: Mapping[str, str | None], token: str | bool | None
    ) -> ModelCard:
        """Return the card of the model, of a pipeline if the repository also holds a processor, or of an adapter."""
        if getattr(self, "_hf_peft_config_loaded", False):
            contents: Contents = "adapter"
        else:
            contents = "pipeline" if has_processor and self.can_generate() else "model"
        return model_card(self, repo_id, contents=contents, loading=loading, token=token, online=True)

    def _publishable(self, path: Path) -> Path | bytes:
        """Return the path of a file, or for adapter_config.json its content with a base model that others can load.

        If the base model was loaded from a folder, the content names it `./NAME`, and a warning is logged.
        """
        if path.name != ADAPTER_CONFIG_NAME:
            return path
        config = json.loads(path.read_text(encoding="utf-8"))
        source = config.get("base_model_name_or_path")
        base = repository_of(source) or repository_of(self.config.name_or_path)
        if base is None:
            logger.warning(
                "The uploaded adapter does not name its base model, because that was loaded from the folder %s, which "
                "others do not have: load the base model from the Hub, or set model.config.name_or_path to its "
                "repository.",
                source,
            )
        config["base_model_name_or_path"] = base or published_base(source)
        return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def _state_revision_of_base(model: SavingMixin, *others: object) -> None:
    """Write the revision of the base model into the configs of those of its adapters that state no revision.

    PEFT records the id of the base model but not its revision, so the adapter would be loaded on the main branch.

    Args:
        model: The base model, with or without adapters.
        others: Further arguments that torch passes to hooks.
    """
    for adapter_config in getattr(model, "peft_config", {}).values():
        # PEFT writes the name of the base model into the config of a second adapter only while it saves that adapter.
        is_base = adapter_config.base_model_name_or_path in (None, model.config.name_or_path)
        if is_base and model.loaded_revision:
            adapter_config.revision = adapter_config.revision or model.loaded_revision


__all__ = ["SavingMixin"]
