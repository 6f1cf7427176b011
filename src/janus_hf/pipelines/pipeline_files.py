"""The pipeline methods `from_pretrained`, `save_pretrained` and `push_to_hub`: load, save and upload a pipeline."""

import copy
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Self, Unpack

import torch
from huggingface_hub import ModelCard
from transformers.tokenization_utils_base import FULL_TOKENIZER_FILE

from ..arguments import check_flag, check_path
from ..hub.cards import CARD_FILE, finish_card, model_card, read_card
from ..hub.fetching import hub_arguments
from ..hub.opening import open_checkpoint
from ..hub.saved_files import replaced_save
from ..hub.uploads import HubUploadMixin, UploadArguments, check_upload_arguments
from ..layouts import Layout, layout_of
from ..modeling import JanusProForConditionalGeneration
from ..processing import JanusProProcessor
from .call_arguments import check_loading


class PipelineFilesMixin(HubUploadMixin):
    """Add `from_pretrained`, `save_pretrained` and `push_to_hub` to a diffusers pipeline.

    It has the components `model` and `processor`, and adapters.
    """

    model: JanusProForConditionalGeneration
    processor: JanusProProcessor
    get_list_adapters: Callable[[], dict[str, list[str]]]
    save_config: Callable[[str | os.PathLike[str]], None]

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        model: JanusProForConditionalGeneration | None = None,
        processor: JanusProProcessor | None = None,
        torch_dtype: torch.dtype | str | dict[str, torch.dtype | str] | None = None,
        parse_special_tokens: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a pipeline from a folder or Hub repository.

        The files may be a release by deepseek-ai, a conversion for transformers' own Janus, a saved pipeline, or an
        adapter, which is loaded on its base model. All files of a repository come from one commit.

        Args:
            pretrained_model_name_or_path: Repository id or folder. `janus_hf.assets.DEFAULT_MODEL` is the folder of
                the small model inside the package, which was trained on prompts such as "a photo of a red circle".
            model, processor: Model or processor to use instead of loading it.
            torch_dtype: Name of the argument `dtype` in diffusers. As in diffusers, it may be a dict from component to
                dtype; the model gets the dtype of "model", else that of "default", else float32. It is ignored if
                `dtype` is given as well.
            parse_special_tokens: Whether special tokens that stand in messages and prompts become special tokens; it
                is set on the processor, or on a copy of a given one. None keeps the processor's setting.
            kwargs: Hub arguments (`revision`, `token`, `cache_dir`, `subfolder`, ...) go to the `from_pretrained` of
                both model and processor. For an adapter, `revision` and `subfolder` are those of the adapter; the base
                model is taken at the revision that adapter_config.json names. All other arguments (`dtype`,
                `device_map`, `quantization_config`, `variant`, ...) go to that of the model. Those that diffusers or
                transformers would accept and ignore are refused by name (`pipelines.diffusers_names`).

        Raises:
            CheckpointError: If the files do not hold exactly the model's weights.
            OSError: If the repository, that of the adapter's base model, or one of their files cannot be downloaded or
                read. The message is one line that says why and what to do.
            TypeError: If an argument is of the wrong type.
            ValueError: If the files are of another kind of model, or `model` is given together with arguments for
                loading a model.
        """
        check_path(pretrained_model_name_or_path, "pretrained_model_name_or_path", "a repository id or a folder")
        if parse_special_tokens is not None:
            check_flag(parse_special_tokens, "parse_special_tokens")
        kwargs = check_loading(model, processor, torch_dtype, kwargs)
        hub_kwargs = hub_arguments(kwargs)
        if model is None:
            # Processor and model come from one commit, because both get the checkpoint that is found here.
            checkpoint = open_checkpoint(
                pretrained_model_name_or_path,
                hub_kwargs,
                kwargs.pop("adapter_kwargs", None),
                needs_config=kwargs.get("config") is None,
            )
            if processor is None:
                holder = checkpoint.holder_of(FULL_TOKENIZER_FILE)
                processor = JanusProProcessor.from_pretrained(holder.path, **holder.hub_kwargs)
            loading = {name: value for name, value in kwargs.items() if name not in hub_kwargs}
            model = JanusProForConditionalGeneration.from_pretrained(
                checkpoint.source.path, **loading, **checkpoint.loading_arguments()
            )
        elif processor is None:
            processor = JanusProProcessor.from_pretrained(pretrained_model_name_or_path, **hub_kwargs)
        # Checkpoints released by deepseek-ai name the placeholder token of images in their tokenizer only.
        if model.config.image_token_id is None:
            model.config.image_token_id = processor.image_token_id
        if parse_special_tokens is not None:
            processor = copy.copy(processor)  # a given processor may be in use elsewhere
            processor.parse_special_tokens = parse_special_tokens
        pipeline_class: Callable[..., Self] = cls  # the pipeline, whose constructor this base class does not know
        return pipeline_class(model=model, processor=processor)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        layout: Layout | None = None,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        safe_serialization: bool = True,
        **upload: Unpack[UploadArguments],
    ) -> None:
        """Write the model, the processor, the pipeline's config and a model card into one flat folder.

        This pipeline, `AutoModel` and `AutoProcessor` can load the folder. Depending on `layout`, the code of
        deepseek-ai/Janus or transformers' own Janus can load it as well. A model card that was edited by hand is kept,
        and only metadata that it lacks is added.

        Args:
            save_directory: Folder to write to.
            layout: File layout: "original" (that of deepseek-ai's releases) or "transformers". None is "original", but
                "transformers" for a quantised model.
            variant, max_shard_size: As in the model's `save_pretrained`.
            push_to_hub: Whether to upload the files after writing them.
            safe_serialization: Must be True, because weights are always written as safetensors.
            upload: Keyword arguments of `push_to_hub`, for `push_to_hub=True`; `repo_id` defaults to the folder's
                name.

        Raises:
            ValueError: If adapters are loaded, because the folder would then hold only them; if `safe_serialization`
                is False; if the layout is unknown or cannot store the model; or if `save_directory` is a file or holds
                an adapter.
            TypeError: If an argument is of the wrong type or unknown, or is for the upload and `push_to_hub` is False.
        """
        check_path(save_directory, "save_directory", "a folder to write to")
        check_flag(safe_serialization, "safe_serialization")
        check_upload_arguments(upload, uploads=check_flag(push_to_hub, "push_to_hub"))
        if adapters := self.get_list_adapters().get("model"):
            raise ValueError(
                f"Adapters {adapters} are loaded. To save the adapter use save_lora_weights; to save a model with "
                "them inside, fuse_lora() and unload_lora_weights() first; to save the base model, "
                "unload_lora_weights() first."
            )
        with replaced_save(save_directory) as folder:
            self.model.save_pretrained(
                folder,
                layout=layout,
                variant=variant,
                max_shard_size=max_shard_size,
                safe_serialization=safe_serialization,
            )
            # The model chooses the layout if none is given; the processor's files must be in the same one.
            written = layout_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
            self.processor.save_pretrained(folder, layout=written)
            self.save_config(folder)
            card = finish_card(model_card(self.model, loading={"variant": variant}), read_card(save_directory))
            (folder / CARD_FILE).write_bytes(card.encode(errors="surrogateescape"))
            names = os.listdir(folder)
        if push_to_hub:
            self._upload(save_directory, names, upload, variant=variant)

    def _generated_card(
        self, repo_id: str, *, has_processor: bool, loading: Mapping[str, str | None], token: str | bool | None
    ) -> ModelCard:
        """Return the card of the pipeline."""
        return model_card(self.model, repo_id, loading=loading, token=token, online=True)


__all__ = ["PipelineFilesMixin"]
