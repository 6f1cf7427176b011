"""The pipeline methods `save_pretrained` and `push_to_hub`: save a pipeline as one folder and upload it to the Hub."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from ..checkpoints.cards import model_card
from ..files import create_and_upload
from ..layouts import Layout, layout_of


if TYPE_CHECKING:
    from ..modeling import JanusProForConditionalGeneration
    from ..processing import JanusProProcessor


class UploadArguments(TypedDict, total=False):
    """Keyword arguments of an upload to the Hub, for `push_to_hub` and for `save_pretrained(push_to_hub=True)`."""

    repo_id: str
    private: bool | None
    token: str | bool | None
    commit_message: str
    create_pr: bool


class PipelineFilesMixin:
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
        **kwargs: Unpack[UploadArguments],
    ) -> None:
        """Write the model, the processor, the pipeline's config and a model card into one flat folder.

        This pipeline, `AutoModel` and `AutoProcessor` can load the folder. Depending on `layout`, the code of
        deepseek-ai/Janus or transformers' own Janus can load it as well.

        Args:
            save_directory: Folder to write to.
            layout: File layout: "original" (that of deepseek-ai's releases) or "transformers". None is "original", but
                "transformers" for a quantised model.
            variant, max_shard_size: As in the `save_pretrained` of transformers' models.
            push_to_hub: Whether to upload the folder after writing it.
            safe_serialization: Must be True, because weights are always written as safetensors.
            kwargs: Keyword arguments of the upload, see `UploadArguments`; `repo_id` defaults to the folder's name.

        Raises:
            ValueError: If adapters are loaded, because the folder would then hold only them; if `safe_serialization`
                is False; or if the layout is unknown or cannot hold the model.
            TypeError: If an argument is unknown, or is for the upload and `push_to_hub` is False.
        """
        known = UploadArguments.__annotations__ if push_to_hub else {}
        if unknown := sorted(kwargs.keys() - known):
            raise TypeError(
                f"`save_pretrained` must receive arguments that it knows, got {unknown}: "
                + ("leave them out." if push_to_hub else "leave them out; repo_id and the like need push_to_hub=True.")
            )
        if not safe_serialization:
            raise ValueError(
                "`safe_serialization` must be True, got False: leave it out, weights are written as safetensors only."
            )
        if adapters := self.get_list_adapters().get("model"):
            raise ValueError(
                f"Adapters {adapters} are loaded. To save the adapter use save_lora_weights; to save a model with "
                "them inside, fuse_lora() and unload_lora_weights() first; to save the base model, "
                "unload_lora_weights() first."
            )
        sharding = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        self.model.save_pretrained(save_directory, layout=layout, variant=variant, **sharding)
        # The model chooses the layout if none is given; the processor's files must be in the same one.
        with open(os.path.join(save_directory, "config.json"), encoding="utf-8") as file:
            written = layout_of(json.load(file))
        self.processor.save_pretrained(save_directory, layout=written)
        self.save_config(save_directory)
        model_card(self.model).save(os.path.join(save_directory, "README.md"))
        if push_to_hub:
            upload: UploadArguments = {"repo_id": Path(save_directory).resolve().name, **kwargs}
            self._upload(save_directory, **upload)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload the pipeline with a model card to a repository on the Hub.

        Args:
            repo_id: `name` or `organisation/name`; the repository is created if it does not exist.
            kwargs: Keyword arguments of the upload (`private`, `token`, `commit_message`, `create_pr`); all others are
                arguments of `save_pretrained`.

        Returns:
            The URL of the commit.
        """
        upload = {name: kwargs.pop(name) for name in UploadArguments.__annotations__ if name in kwargs}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **kwargs)
            return self._upload(folder, repo_id=repo_id, **upload)

    def _upload(self, folder: str | os.PathLike[str], **upload: Unpack[UploadArguments]) -> str:
        """Upload the folder of a saved pipeline and return the URL of the commit.

        The folder's model card (README.md) is rewritten first, so that it names the repository.
        """

        def write_card(full_id: str) -> None:
            model_card(self.model, full_id).save(Path(folder, "README.md"))

        upload["commit_message"] = upload.get("commit_message") or "Upload JanusProPipeline"
        return create_and_upload(folder, before_upload=write_card, **upload).commit_url


__all__ = ["PipelineFilesMixin", "UploadArguments"]
