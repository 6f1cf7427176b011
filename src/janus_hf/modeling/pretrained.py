"""`JanusProPreTrainedModel`, which loads and saves `JanusProForConditionalGeneration` and `JanusProModel`."""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

import torch
from huggingface_hub import ModelCard
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightTransform
from transformers.utils import ADAPTER_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from ..configuration import JanusProConfig, writing_layout
from ..errors import CheckpointError
from ..files import hub_arguments
from ..hub.cards import Contents, model_card, repository_of
from ..hub.saved_files import replaced_save
from ..hub.uploads import HubUploadMixin, UploadArguments, check_upload_arguments
from ..layouts import Layout
from ..layouts.janus_pro import STORED_BUT_UNUSED
from ..protocols import TypedModel
from ..tokenizer import read_special_token_ids
from .checkpoint import all_conversions, check_loaded, copy_tied_head, register_conversions
from .int4_weights import portable_int4
from .quantisation import settle_quantised, skip_all_but_language_model, weight_only_config
from .weight_files import check_configurations, check_local_files


if TYPE_CHECKING:
    from transformers.modeling_utils import LoadStateDictConfig
    from transformers.utils.loading_report import LoadStateDictInfo


logger = logging.getLogger(__name__)


class JanusProPreTrainedModel(HubUploadMixin, TypedModel):
    """Base class of `JanusProModel` and `JanusProForConditionalGeneration`, which loads and saves checkpoints.

    It handles two file layouts: "original" (deepseek-ai/Janus) and "transformers" (transformers' own Janus). The class
    attributes with an underscore declare to transformers what the models support; transformers has no public names for
    them.
    """

    config: JanusProConfig
    config_class = JanusProConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ("past_key_values",)
    _supports_flash_attn = True
    _supports_sdpa = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _keys_to_ignore_on_load_unexpected: tuple[str, ...] = STORED_BUT_UNUSED
    _weight_conversions: list[WeightTransform] | None  # set by loading; absent on a model built from a config

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None = None, *args: Any, **kwargs: Any
    ) -> Self:
        """Load a checkpoint, or an adapter with its base model, and return the model.

        A checkpoint may have the file layout of deepseek-ai/Janus (`.bin` or safetensors) or that of transformers' own
        Janus. Special token ids that its config lacks are read from its tokenizer. The arguments are those of
        `PreTrainedModel.from_pretrained`; the following have a meaning of their own:

        Args:
            pretrained_model_name_or_path: Repository id or folder of a checkpoint, or of an adapter that names a
                checkpoint as its base model.
            dtype: Dtype of the loaded model; by default that of the checkpoint.
            quantization_config: "int8" or "int4" for torchao's weight-only quantisation with the kernels of the device
                that `device_map` names (the CPU if it names none), or the configuration of any of transformers'
                quantisers. All weights but those of the language model's layers stay in full precision, unless the
                configuration itself lists modules to skip.

        Returns:
            The model, or with `output_loading_info=True` the tuple of the model and transformers' loading info.

        Raises:
            CheckpointError: If weights are missing, unexpected or of the wrong shape, a configuration file or a local
                weight file or index is broken or missing, or the tokenizer's special tokens have ids beyond the
                embedding table. Weights are never left at random values.
            OSError: If the Hub does not answer whether a file exists.
            ValueError: If the checkpoint is of another model family; if the quantisation method cannot skip the
                modules that must stay in full precision, or does not fit the device or the layers; or if
                `ignore_mismatched_sizes=True` or `weights_only=False` is given.
            ImportError: If `quantization_config` is "int8" or "int4" and torchao is missing.
        """
        source = pretrained_model_name_or_path
        if kwargs.pop("ignore_mismatched_sizes", False):
            raise ValueError(
                "ignore_mismatched_sizes must be False, got True, which would leave randomly initialised weights in "
                "the model: load the checkpoint with its own config, then change the model (for example with "
                "resize_token_embeddings)."
            )
        if kwargs.get("weights_only") is False:
            raise ValueError(
                "weights_only must be True, got False: leave it out (weights_only=True), because other pickles can "
                "run code."
            )
        if source is not None:
            hub_kwargs = {name: value for name, value in hub_arguments(kwargs).items() if value is not None}
            check_configurations(source, has_config=kwargs.get("config") is not None, **hub_kwargs)
        if source is not None and os.path.isdir(source):
            check_local_files(
                source, kwargs.get("subfolder") or "", kwargs.get("variant"), kwargs.get("use_safetensors")
            )
        if isinstance(bits := kwargs.get("quantization_config"), str):
            kwargs["quantization_config"] = weight_only_config(bits, kwargs.get("device_map"))
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = skip_all_but_language_model(kwargs["quantization_config"])

        config = kwargs.get("config")
        register_conversions((config if isinstance(config, JanusProConfig) else cls.config_class).model_type)

        want_info = kwargs.pop("output_loading_info", False)
        # With ignore_mismatched_sizes, weights of the wrong shape are reported in the info, and check_loaded names
        # them in one error with everything else that is wrong.
        model, info = super().from_pretrained(
            source, *args, **kwargs, output_loading_info=True, ignore_mismatched_sizes=True
        )
        # If `source` is an adapter, `info` describes the adapter; the base model was checked in
        # _finalize_model_loading.
        check_loaded(info, source)
        settle_quantised(model)
        if source is not None:
            model._fill_special_tokens(model.config.name_or_path or source, kwargs)
        # Any: a tuple if the caller asks for the loading info, which transformers' own annotation omits too.
        result: Any = (model, info) if want_info else model
        return result

    @staticmethod
    def _finalize_model_loading(
        model: PreTrainedModel, load_config: "LoadStateDictConfig", loading_info: "LoadStateDictInfo"
    ) -> "LoadStateDictInfo":
        """Finish loading as transformers does, and raise a `CheckpointError` if a weight was not taken from the files.

        This overrides a private method of transformers, because every way to load a model calls it. The public loading
        info (`output_loading_info`) is not enough: for the folder of an adapter it describes the adapter and not its
        base model.
        """
        loading_info = PreTrainedModel._finalize_model_loading(model, load_config, loading_info)
        check_loaded(loading_info.to_dict(), load_config.pretrained_model_name_or_path)
        return loading_info

    def _fill_special_tokens(self, source: str | os.PathLike[str], kwargs: dict[str, Any]) -> None:
        """Set the special token ids that the configuration lacks, from the checkpoint's tokenizer.

        Args:
            source: Repository id or folder of the checkpoint.
            kwargs: The arguments of `from_pretrained`; only those that locate files on the Hub are used.
        """
        generation_config = getattr(self, "generation_config", None)
        ids: dict[str, int] = {}
        if self.config.image_token_id is None or getattr(generation_config, "pad_token_id", 0) is None:
            hub_kwargs = {name: value for name, value in hub_arguments(kwargs).items() if value is not None}
            ids = read_special_token_ids(source, **hub_kwargs)
            if self.config.image_token_id is None:
                self.config.image_token_id = ids.get("image_token_id")
            for name in ("bos_token_id", "eos_token_id"):
                # The original language_config does not state these ids, so they still have Llama's defaults.
                # pad_token_id stays None, because the embedding row at padding_idx gets no gradient, and the
                # unconditional prompt consists of padding tokens.
                setattr(self.config.text_config, name, ids.get(name, getattr(self.config.text_config, name)))
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                if generation_config is not None and name in ids:
                    setattr(generation_config, name, ids[name])
        rows = self.config.text_config.vocab_size
        known = {**ids, "image_token_id": self.config.image_token_id or 0}
        if beyond := {name: token_id for name, token_id in known.items() if token_id >= rows}:
            raise CheckpointError(
                f"The special tokens of {str(source)!r} must have ids below {rows}, the number of rows of its "
                f"embedding table, got {beyond}: use the tokenizer with which the weights were saved, or load "
                "the model with a config.json that states `image_token_id`, and call resize_token_embeddings."
            )

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
        safe_serialization: bool = True,
        save_peft_format: bool = True,
        distributed_checkpoint: bool = False,
        **upload: Unpack[UploadArguments],
    ) -> None:
        """Write the weights (safetensors), `config.json` and `generation_config.json` to a folder.

        If adapters are loaded, only the active adapter is written, in PEFT's format. Weight files of an earlier save
        of the same variant are replaced, whatever their number; an error before all files are written leaves them as
        they are.

        Args:
            save_directory: Folder to write to.
            is_main_process, state_dict, save_peft_format, distributed_checkpoint: As in
                `PreTrainedModel.save_pretrained`.
            push_to_hub: Also upload the files that were written, with a model card.
            max_shard_size: Largest size of one weight file, in bytes or as a string such as "5GB"; None is "50GB".
            variant: Name that is added to those of the weight files, such as "fp16" for `model.fp16.safetensors`.
            layout: File layout. `"original"` (the default) can be read by this package and by deepseek-ai/Janus,
                `"transformers"` by this package and by transformers' own Janus. Weights reload bit-equal from both. A
                quantised model can be saved in the transformers layout only, which is then the default.
            safe_serialization: Must be True, because weights are always written as safetensors.
            upload: Keyword arguments of `push_to_hub`, for `push_to_hub=True`; `repo_id` defaults to the folder's
                name.

        Raises:
            ValueError: If the layout is unknown or cannot store this model; if `safe_serialization` is False; if
                `distributed_checkpoint` is to be uploaded; if `save_directory` is a file, or holds an adapter and a
                whole model is saved; if the model is inside a `PeftModel`; or if an adapter is to be saved as a
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
        quantised = getattr(self, "hf_quantizer", None) is not None
        layout = layout or ("transformers" if quantised else "original")
        if layout not in ("original", "transformers"):
            raise ValueError(f"layout must be 'original' or 'transformers', got {layout!r}.")
        if layout == "original" and quantised:
            raise ValueError(
                "layout must be 'transformers' for a quantised model, got 'original', which has no names for its "
                "weights: use layout='transformers', or save the unquantised model."
            )
        self.config.to_file_dict(layout)  # raises before anything is written
        if layout == "original" and state_dict is None and self.config.tie_word_embeddings:
            state_dict = copy_tied_head(self.state_dict())
        if self.can_generate():
            # When transformers reads a file with this mark, it drops fields that it does not know, such as this
            # package's image_guidance_scale. GenerationConfig has no public way to clear the mark.
            self.generation_config._from_model_config = False

        def write(folder: str | os.PathLike[str]) -> None:
            with portable_int4(self), writing_layout(layout):
                super(JanusProPreTrainedModel, self).save_pretrained(
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
            if distributed_checkpoint:  # all processes write into one folder, whose name they have to know
                write(save_directory)
                return
            with replaced_save(save_directory) as folder:
                write(folder)
                _open_to_others(folder)
                names = os.listdir(folder)
                if ADAPTER_CONFIG_NAME in names and SAFE_WEIGHTS_INDEX_NAME in names:
                    raise ValueError(
                        "`max_shard_size` must not divide an adapter, of which PEFT opens one file only, got "
                        f"{max_shard_size!r}: leave it out."
                    )
        finally:
            self._weight_conversions = loaded_with
        if push_to_hub and self.should_save_on_this_rank(is_main_process):
            self._upload(save_directory, names, upload, variant=variant)

    def _check_adapters(self, variant: str | None) -> None:
        """Raise ValueError if the model's adapters cannot be saved, or not as this variant."""
        is_adapter = getattr(self, "_hf_peft_config_loaded", False)
        has_layers = any(name.endswith((".base_layer", ".original_module")) for name, _ in self.named_modules())
        if has_layers and not is_adapter:  # the weights then have PEFT's names, which no loader of models knows
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
        """Return the file, or for an adapter's config its content without a local folder as the base model."""
        if path.name != ADAPTER_CONFIG_NAME:
            return path
        config = json.loads(path.read_text(encoding="utf-8"))
        source = config.get("base_model_name_or_path")
        base = repository_of(source) or repository_of(self.config.name_or_path)
        config["base_model_name_or_path"] = base
        if base is None:
            logger.warning(
                "The uploaded adapter does not name its base model, because that was loaded from the folder %s, which "
                "others do not have: load the base model from the Hub, or set model.config.name_or_path to its "
                "repository.",
                source,
            )
        return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def _open_to_others(folder: Path) -> None:
    """Give weight files the permissions of the configuration beside them, which are those of the user's umask.

    safetensors 0.8 writes files that only their owner can read, which locks colleagues on a shared disk out.
    """
    for config in (folder / "config.json", folder / ADAPTER_CONFIG_NAME):
        if config.is_file():
            for weights in folder.glob("*.safetensors"):
                shutil.copymode(config, weights)


__all__ = ["JanusProPreTrainedModel"]
