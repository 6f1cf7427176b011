"""`JanusProPreTrainedModel`, which loads and saves `JanusProForConditionalGeneration` and `JanusProModel`."""

import copy
import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

import torch
from transformers.utils import is_peft_available

from ..arguments import check_path
from ..configuration import JanusProConfig
from ..errors import CheckpointError
from ..generation.devices import devices_of, has_bfloat16
from ..hub.fetching import hub_arguments
from ..hub.opening import (
    ADAPTER_ARGUMENT,
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    Checkpoint,
    Source,
    open_checkpoint,
    open_given_adapter,
    open_source,
)
from ..layouts.janus_pro import STORED_BUT_UNUSED
from ..tokenizer import read_special_token_ids
from .checkpoint import check_loaded, register_conversions
from .model_saving import SavingMixin
from .quantisation.weight_memory import warn_if_too_large
from .quantisation.weight_only import KINDS, settle_quantised, skip_all_but_language_model, weight_only_config
from .weight_files import check_configurations, check_local_files, weight_file_names


if TYPE_CHECKING:
    from transformers.utils.loading_report import LoadStateDictInfo


logger = logging.getLogger(__name__)


# Arguments that transformers still accepts and ignores, with what to do instead. `low_cpu_mem_usage` and its like ask
# for what is always done, and are no mistakes.
_IGNORED = {
    "from_tf": "weights are read from safetensors or .bin files of PyTorch",
    "from_flax": "weights are read from safetensors or .bin files of PyTorch",
    "mirror": "set the environment variable HF_ENDPOINT for another Hub",
}


class JanusProPreTrainedModel(SavingMixin):
    """Base class of `JanusProModel` and `JanusProForConditionalGeneration` that loads and saves checkpoints.

    It handles two file layouts: "original" (deepseek-ai/Janus) and "transformers" (transformers' own Janus). The class
    attributes with an underscore declare to transformers what the models support; transformers has no public names for
    them.
    """

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

    loaded_commit: str | None = None
    """Hash of the commit on the Hub that the model was loaded from; None if it is not from the Hub."""

    def get_submodule(self, target: str) -> torch.nn.Module:
        """Return the submodule with this dotted name, as in PyTorch's `Module`.

        Under the name that it has in BERT, the table of text embeddings is found too. PEFT's prompt tuning looks for
        it there, and otherwise takes the first weight with as many rows as the vocabulary, which may be another one.
        """
        if target == "embeddings.word_embeddings":
            table: torch.nn.Module = self.get_input_embeddings()
            return table
        return super().get_submodule(target)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None = None, *args: Any, **kwargs: Any
    ) -> Self:
        """Load a checkpoint, or an adapter with its base model, and return the model.

        A checkpoint may have the file layout of deepseek-ai/Janus (`.bin` or safetensors) or that of transformers' own
        Janus. Special token ids that its config lacks are read from its tokenizer. All files of a repository come from
        one commit, whose hash the model's attribute `loaded_commit` states. The arguments are those of
        `PreTrainedModel.from_pretrained`; the following differ from transformers or need explanation:

        Args:
            pretrained_model_name_or_path: Repository id or folder of a checkpoint, or of an adapter that names a
                checkpoint as its base model.
            dtype: Dtype of the loaded model; by default ("auto") that of the checkpoint. Where `device_map` names a
                GPU without bfloat16 (T4, V100, RTX 20), "auto" loads a half-precision checkpoint in float16 and its
                image codec in float32, and a warning is logged.
            device_map: As in transformers. If it names a single GPU that has too little free memory for the weights
                and the generation of one image, a warning is logged before loading, with the settings that need less.
            revision, subfolder: Branch, tag or commit of the repository, and folder in it. For an adapter they are
                those of the adapter; its base model is taken at the revision that adapter_config.json names.
            quantization_config: "int8", "int4" or "fp8" for torchao's weight-only quantisation with the kernels of the
                device that `device_map` names (the CPU if it names none), or the configuration of any of transformers'
                quantisers. All weights but those of the language model's layers stay in full precision, unless the
                configuration itself lists modules to skip.

        Returns:
            The model, or with `output_loading_info=True` the tuple of the model and transformers' loading info.

        Raises:
            CheckpointError: If weights are missing, unexpected or of the wrong shape, a configuration file or a local
                weight file or index is broken or missing, or the tokenizer's special tokens have ids beyond the
                embedding table. Weights are never left at random values.
            OSError: If the repository, that of the adapter's base model, or one of their files cannot be downloaded or
                read. A file counts as absent only if the Hub or the cache says so.
            ValueError: If the checkpoint is of another model family; if the quantisation method cannot skip the
                modules that must stay in full precision, or does not fit the device or the layers; or if
                `ignore_mismatched_sizes=True`, `weights_only=False`, a dict of dtypes, or an argument that
                transformers ignores (`from_tf`, `from_flax`, `mirror`) is given.
            TypeError: If `pretrained_model_name_or_path` is neither a string nor a path.
            ImportError: If `quantization_config` is "int8", "int4" or "fp8" and torchao is missing, or the files are
                those of an adapter and peft is missing.
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
        for name, advice in _IGNORED.items():
            if kwargs.get(name):
                raise ValueError(f"`{name}` must be left out, got {kwargs[name]!r}, which has no effect: {advice}.")
        for name in ("dtype", "torch_dtype"):
            if isinstance(dtypes := kwargs.get(name), dict) and dtypes.keys() != {""}:
                # transformers would load the whole model in float32, whatever the other keys say.
                raise ValueError(
                    f"`{name}` must be one dtype for the whole model, got a dict with {sorted(dtypes)}: pass the "
                    'dtype itself, such as "bfloat16".'
                )
        if source is not None:
            check_path(source, "pretrained_model_name_or_path", "a repository id or a folder")
        checkpoint = _find_checkpoint(source, kwargs)
        if checkpoint is not None:
            source = checkpoint.source.path
            _check_files(checkpoint, kwargs)
        if isinstance(bits := kwargs.get("quantization_config"), str):
            kwargs["quantization_config"] = weight_only_config(bits, kwargs.get("device_map"))
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = skip_all_but_language_model(kwargs["quantization_config"])

        codec_dtype = None
        if checkpoint is not None:
            codec_dtype = cls._fit_to_device(checkpoint.source, kwargs, bits)
        config = kwargs.get("config")
        register_conversions((config if isinstance(config, JanusProConfig) else cls.config_class).model_type)

        want_info = kwargs.pop("output_loading_info", False)
        # With ignore_mismatched_sizes, transformers lists weights of the wrong shape in `info` instead of raising an
        # error, and check_loaded raises one error that names these and all other faulty weights.
        model, info = super().from_pretrained(
            source, *args, **kwargs, output_loading_info=True, ignore_mismatched_sizes=True
        )
        # If `source` is an adapter, `info` describes the adapter; the base model was checked in
        # _finalize_model_loading.
        check_loaded(info, pretrained_model_name_or_path)
        settle_quantised(model)
        if codec_dtype is not None:
            model.get_submodule("model.vqmodel" if hasattr(model, "model") else "vqmodel").to(codec_dtype)
        if checkpoint is not None:
            model.loaded_revision, model.loaded_commit = checkpoint.source.revision, checkpoint.source.commit
            model._fill_special_tokens(checkpoint.source)
        # Any: a tuple if the caller asks for the loading info, a case that transformers' annotation leaves out too.
        result: Any = (model, info) if want_info else model
        return result

    @classmethod
    def _fit_to_device(cls, source: Source, kwargs: dict[str, Any], quantization: Any) -> torch.dtype | None:
        """Choose the dtype for a GPU without bfloat16, and warn if the model will not fit into the memory of its GPU.

        Args:
            source: Folder or repository of the checkpoint.
            kwargs: The arguments of `from_pretrained`, whose `dtype` may be replaced.
            quantization: The caller's argument `quantization_config`.

        Returns:
            The dtype of the image codec if it differs from the dtype of the model, otherwise None.
        """
        devices = devices_of(kwargs.get("device_map"))
        lacking = [device for device in devices if not has_bfloat16(device)]
        if not lacking and (len(devices) != 1 or devices[0].type == "cpu"):
            return None
        config = kwargs.get("config")
        if not isinstance(config, JanusProConfig):
            config = cls.config_class.from_pretrained(source.path, **source.hub_kwargs)
        dtype, codec_dtype = kwargs.get("dtype") or kwargs.get("torch_dtype") or "auto", None
        if dtype == "auto":
            dtype = config.dtype
            if lacking and dtype in (torch.bfloat16, torch.float16):
                dtype, codec_dtype = torch.float16, torch.float32
                kwargs["dtype"] = dtype
                logger.warning(
                    f"{lacking[0]} has no bfloat16, so the model is loaded in float16, and its image codec in "
                    "float32: pass dtype='float32' if values overflow, or another `dtype` to choose it yourself."
                )
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype, None)
        known = quantization in (None, *KINDS) and getattr(config, "quantization_config", None) is None
        if known and isinstance(dtype, torch.dtype):
            # On the meta device the model takes no memory. It gets a copy of the config, because models change theirs.
            with torch.device("meta"):
                model = cls(copy.deepcopy(config))
            warn_if_too_large(model, config, kwargs.get("device_map"), dtype, quantization, codec_dtype)
        return codec_dtype

    def _fill_special_tokens(self, source: Source) -> None:
        """Set the special token ids that the configuration lacks, from the checkpoint's tokenizer."""
        generation_config = getattr(self, "generation_config", None)
        ids: dict[str, int] = {}
        if self.config.image_token_id is None or getattr(generation_config, "pad_token_id", 0) is None:
            ids = read_special_token_ids(source.path, **source.hub_kwargs)
            if self.config.image_token_id is None:
                self.config.image_token_id = ids.get("image_token_id")
            for name in ("bos_token_id", "eos_token_id"):
                # The original language_config does not state these ids, so they still have Llama's defaults.
                # pad_token_id stays None: otherwise the embedding of padding would get no gradient (`padding_idx`),
                # but the unconditional prompt consists of padding tokens.
                setattr(self.config.text_config, name, ids.get(name, getattr(self.config.text_config, name)))
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                if generation_config is not None and name in ids:
                    setattr(generation_config, name, ids[name])
        rows = self.config.text_config.vocab_size
        known = {**ids, "image_token_id": self.config.image_token_id or 0}
        if beyond := {name: token_id for name, token_id in known.items() if token_id >= rows}:
            raise CheckpointError(
                f"The special tokens of {str(source.path)!r} must have ids below {rows}, the number of rows of its "
                f"embedding table, got {beyond}: use the tokenizer with which the weights were saved, or load "
                "the model with a config.json that states `image_token_id`, and call resize_token_embeddings."
            )

    def load_adapter(
        self,
        peft_model_id: str | os.PathLike[str] | None = None,
        adapter_name: str | None = None,
        *args: Any,
        adapter_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> "LoadStateDictInfo":
        """Load an adapter in addition to those that are loaded, and make it the active one.

        A warning is logged if the adapter was trained on another base model, or on another revision of it, than the
        one that this model was loaded from. The arguments are those of `PreTrainedModel.load_adapter`; the following
        differ from transformers or need explanation:

        Args:
            peft_model_id: Folder or repository id of the adapter in PEFT's format.
            adapter_name: Name to give to the adapter in this model; None is "default".
            adapter_kwargs: Arguments that say where on the Hub the adapter is: `revision`, `token`, `subfolder`, ...

        Raises:
            OSError: If the repository or one of its files cannot be downloaded or read.
            ValueError: If the folder or repository holds no adapter, or the name is in use.
            ImportError: If peft is missing.
        """
        import_module("peft")  # raises an ImportError before anything is downloaded
        if (
            peft_model_id is not None
            and kwargs.get("peft_config") is None
            and kwargs.get("adapter_state_dict") is None
        ):
            load_config = kwargs.get("load_config")
            found_by = {**getattr(load_config, "download_kwargs", {}), **(adapter_kwargs or {})}
            if kwargs.pop("local_files_only", False):
                found_by["local_files_only"] = True
            adapter = open_source(peft_model_id, found_by, first=ADAPTER_CONFIG_FILE)
            adapter_config = adapter.read_json(ADAPTER_CONFIG_FILE)
            if adapter_config is None:
                raise ValueError(
                    f"`peft_model_id` must be an adapter in PEFT's format, got {str(peft_model_id)!r}, which has no "
                    f"{ADAPTER_CONFIG_FILE}: name another folder or repository."
                )
            # If this download failed, transformers would read the .bin file instead, whatever the reason.
            adapter.download(ADAPTER_WEIGHTS_FILE)
            if load_config is None:  # otherwise from_pretrained has just chosen the base model that the adapter names
                self._check_base(adapter, adapter_config)
            adapter_kwargs = adapter.adapter_arguments
        return super().load_adapter(peft_model_id, adapter_name, *args, adapter_kwargs=adapter_kwargs, **kwargs)

    def _check_base(self, adapter: Source, adapter_config: dict[str, Any]) -> None:
        """Log a warning if an adapter was trained on another base model or revision than this model.

        Nothing is logged if one of the two models is a folder, because a folder may be a copy of any repository.
        """
        base, own = adapter_config.get("base_model_name_or_path"), self.config.name_or_path
        if not (base and own) or os.path.exists(base) or os.path.exists(own) or self.loaded_commit is None:
            return
        trained, loaded = adapter_config.get("revision") or "main", self.loaded_revision or "main"
        if base == own:
            if trained in (loaded, self.loaded_commit):
                return
            try:
                where = {name: value for name, value in adapter.hub_kwargs.items() if name != "subfolder"}
                if open_source(base, {**where, "revision": trained}).commit == self.loaded_commit:
                    return
            except OSError:
                pass  # the revision cannot be opened, so it is not known to be that of this model
        logger.warning(
            f"The adapter {str(adapter.path)!r} was trained on {base!r} at revision {trained!r}, but this model is "
            f"{own!r} at revision {loaded!r}: unless both have the same weights, load the model that the adapter "
            "names."
        )


def _find_checkpoint(source: str | os.PathLike[str] | None, kwargs: dict[str, Any]) -> Checkpoint | None:
    """Find the files that `from_pretrained` is to load, and put the arguments that locate them into `kwargs`.

    Args:
        source: Repository id or folder of a checkpoint or an adapter. If `kwargs` names an adapter, as transformers'
            `AutoModel` does, it is that of the base model. None if the model is not loaded from files.
        kwargs: The arguments of `from_pretrained`, which are changed in place.

    Returns:
        The checkpoint; None if the model is not loaded from files, or from a GGUF file.

    Raises:
        OSError, ValueError: See `open_checkpoint` and `open_given_adapter`.
        ImportError: If the files are those of an adapter and peft is missing.
    """
    if source is None or kwargs.get("gguf_file"):
        return None
    hub_kwargs = hub_arguments(kwargs)
    given = dict(kwargs.pop("adapter_kwargs", None) or {})
    adapter_kwargs = {name: value for name, value in given.items() if name != ADAPTER_ARGUMENT}
    if given.get(ADAPTER_ARGUMENT, source) == source:
        checkpoint = open_checkpoint(source, hub_kwargs, adapter_kwargs, needs_config=kwargs.get("config") is None)
    else:
        checkpoint = open_given_adapter(source, given[ADAPTER_ARGUMENT], hub_kwargs, adapter_kwargs)
    if checkpoint.adapter is not None and not is_peft_available():
        raise ImportError(
            f"peft must be installed to load {str(checkpoint.adapter.path)!r}, which is an adapter: run "
            "`pip install peft`."
        )
    for name in hub_kwargs:
        del kwargs[name]
    kwargs.update({"adapter_kwargs": given} | checkpoint.loading_arguments())
    return checkpoint


def _check_files(checkpoint: Checkpoint, kwargs: dict[str, Any]) -> None:
    """Raise an error if a file of the checkpoint is broken (in a folder) or cannot be downloaded (from the Hub).

    Args:
        checkpoint: The checkpoint.
        kwargs: The arguments of `from_pretrained`.
    """
    source = checkpoint.source
    check_configurations(source.path, has_config=kwargs.get("config") is not None, **source.hub_kwargs)
    if os.path.isdir(source.path):
        check_local_files(
            source.path,
            source.hub_kwargs.get("subfolder") or "",
            kwargs.get("variant"),
            kwargs.get("use_safetensors"),
        )
        return
    if not source.is_offline:
        # If a download failed, transformers would go on to the next of these names, whatever the reason.
        names = weight_file_names(kwargs.get("variant"), kwargs.get("use_safetensors"))
        next((name for name in names if source.download(name)), None)


__all__ = ["JanusProPreTrainedModel"]
