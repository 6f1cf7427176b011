"""The pipeline methods `save_pretrained` and `push_to_hub`: save a pipeline as one folder and upload it to the Hub."""

import json
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Unpack

from huggingface_hub import ModelCard

from ..arguments import check_flag, check_path
from ..hub.cards import CARD_FILE, finish_card, model_card, read_card
from ..hub.saved_files import replaced_save
from ..hub.uploads import HubUploadMixin, UploadArguments, check_upload_arguments
from ..layouts import Layout, layout_of


if TYPE_CHECKING:
    from ..modeling import JanusProForConditionalGeneration
    from ..processing import JanusProProcessor


class PipelineFilesMixin(HubUploadMixin):
    """Add `save_pretrained` and `push_to_hub` to a diffusers pipeline with a `model`, a `processor` and adapters."""

    model: "JanusProForConditionalGeneration"
    processor: "JanusProProcessor"
    get_list_adapters: Callable[[], dict[str, list[str]]]
    save_config: Callable[[str | os.PathLike[str]], None]

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
