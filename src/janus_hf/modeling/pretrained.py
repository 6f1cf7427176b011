"""Loading, saving and quantising: what both models share besides their networks."""

import os
from typing import Any

from transformers import PreTrainedModel

from ..configuration import JanusProConfig
from ..layouts import Layout
from ..layouts.janus_pro import STORED_BUT_UNUSED
from .checkpoint import (
    all_conversions,
    check_loaded,
    clone_tied_head,
    special_token_ids,
)
from .int4_weights import portable_int4
from .quantisation import settle_quantised, skip_all_but_language_model, weight_only_config
from .weight_files import check_local_files


class JanusProPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by both models."""

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

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint: original layout (`.bin` or safetensors), transformers layout, or an adapter folder on
        either.

        Takes the arguments of `PreTrainedModel.from_pretrained`. The dtype is the checkpoint's own unless `dtype` says
        otherwise. `quantization_config` may be "int8" or "int4", which is torchao's weight-only quantisation by the
        kernels of the device that `device_map` names (the CPU if it names none), or the configuration of any of
        transformers' quantisers. Everything but the language model's layers stays in full precision, unless the config
        names its own modules to skip. Special token ids that the config lacks are read from the
        checkpoint's tokenizer.

        Raises:
            CheckpointError: If keys are missing, unexpected or of the wrong shape, or a local shard or index is
                broken. Weights are never left at random values.
            ValueError: If the checkpoint is of another family, the quantisation method cannot spare what must be
                spared or do what is asked, or `ignore_mismatched_sizes` or `weights_only=False` is asked for.
            ImportError: If "int8" or "int4" is asked for and torchao is missing.
        """
        source = pretrained_model_name_or_path
        if kwargs.pop("ignore_mismatched_sizes", False):
            raise ValueError(
                "ignore_mismatched_sizes=True would leave randomly initialised weights in the model. Load the "
                "checkpoint with its own config, then change the model (for example with resize_token_embeddings)."
            )
        if kwargs.get("weights_only") is False:
            raise ValueError("Pickled checkpoints are loaded with weights_only=True: other pickles can run code.")
        if source is not None and os.path.isdir(source):
            check_local_files(
                source, kwargs.get("subfolder") or "", kwargs.get("variant"), kwargs.get("use_safetensors")
            )
        if isinstance(bits := kwargs.get("quantization_config"), str):
            kwargs["quantization_config"] = weight_only_config(bits, kwargs.get("device_map"))
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = skip_all_but_language_model(kwargs["quantization_config"])

        want_info = kwargs.pop("output_loading_info", False)
        # Wrong shapes come back in the info, and are raised by check_loaded together with everything else that is
        # wrong.
        model, info = super().from_pretrained(
            source, *args, **kwargs, output_loading_info=True, ignore_mismatched_sizes=True
        )
        check_loaded(info, source)  # of the adapter, where `source` is one; the model itself was checked on the way
        settle_quantised(model)
        if source is not None:
            model._adopt_special_tokens(model.config.name_or_path or source, kwargs)
        return (model, info) if want_info else model

    @staticmethod
    def _finalize_model_loading(model: Any, load_config: Any, loading_info: Any) -> Any:
        """The one place every loading path of transformers passes: an adapter's info would hide its base model's."""
        loading_info = PreTrainedModel._finalize_model_loading(model, load_config, loading_info)
        check_loaded(loading_info.to_dict(), load_config.pretrained_model_name_or_path)
        return loading_info

    def _adopt_special_tokens(self, source: Any, kwargs: dict[str, Any]) -> None:
        """Fill ids that the original files state only in their tokenizer."""
        generation_config = getattr(self, "generation_config", None)
        if self.config.image_token_id is not None and getattr(generation_config, "pad_token_id", 0) is not None:
            return
        names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
        hub_kwargs = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        ids = special_token_ids(source, **hub_kwargs)
        if self.config.image_token_id is None:
            self.config.image_token_id = ids.pop("image_token_id", None)
        for name in ("bos_token_id", "eos_token_id"):
            # Unstated in the original's language_config, hence Llama's own defaults; pad stays None there, because an
            # embedding row that is the padding_idx gets no gradient and the unconditional prompt is made of pads.
            setattr(self.config.text_config, name, ids.get(name, getattr(self.config.text_config, name)))
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if generation_config is not None and name in ids:
                setattr(generation_config, name, ids[name])

    def save_pretrained(self, save_directory: Any, *args: Any, layout: Layout | None = None, **kwargs: Any) -> None:
        """Write safetensors, `config.json` and `generation_config.json`.

        Args:
            save_directory: Folder to write to.
            layout: `"original"` (the default) is readable by this package and by the original code; `"transformers"`
                by this package and by transformers' own Janus. Both reload bit-equal. A quantised model exists in the
                transformers layout only, which then is the default.
            args, kwargs: As in `PreTrainedModel.save_pretrained` (`max_shard_size`, `push_to_hub`, ...).

        Raises:
            ValueError: If the layout is unknown or cannot hold this model.
        """
        quantised = getattr(self, "hf_quantizer", None) is not None
        layout = layout or ("transformers" if quantised else "original")
        if layout not in ("original", "transformers"):
            raise ValueError(f"layout must be 'original' or 'transformers', got {layout!r}.")
        if layout == "original" and quantised:
            raise ValueError("The original layout has no place for quantised weights: use layout='transformers'.")
        self.config.to_file_dict(layout)  # refuses before anything is written
        if layout == "original" and kwargs.get("state_dict") is None and self.config.tie_word_embeddings:
            kwargs["state_dict"] = clone_tied_head(self, self.state_dict())
        if self.can_generate():
            # A file marked as derived from the model's configuration is read without what transformers does not know.
            self.generation_config._from_model_config = False

        loaded_with: Any = getattr(self, "_weight_conversions", None)
        self._weight_conversions = all_conversions(self)
        self.config._file_layout = layout
        try:
            with portable_int4(self):
                super().save_pretrained(save_directory, *args, save_original_format=layout == "original", **kwargs)
        finally:
            self._weight_conversions = loaded_with
            del self.config._file_layout


__all__ = ["JanusProPreTrainedModel"]
