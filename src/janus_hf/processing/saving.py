"""How a processor gets from and to disk; `processor.py` says what it does, `layouts.py` what the files hold."""

import inspect
import os
from pathlib import Path
from typing import Any

from transformers import ProcessorMixin
from transformers.tokenization_utils_tokenizers import TokenizersBackend
from transformers.utils import IMAGE_PROCESSOR_NAME
from transformers.utils.hub import cached_file

from ..files import create_and_upload, hub_arguments
from ..layouts import Layout
from .file_formats import original_processor_config, write_layout
from .image_processor import JanusProImageProcessor
from .prompts import IMAGE_TOKEN, ROLES, SYSTEM_PROMPT, build_chat_template
from .tokenizer import load_tokenizer


class ProcessorFiles(ProcessorMixin):
    """Loading and saving for `JanusProProcessor`, which sets these attributes."""

    num_image_tokens: int
    roles: tuple[str, str]
    system_prompt: str
    image_token: str
    boi_token: str
    eoi_token: str
    mask_prompt: bool
    ignore_id: int

    def to_dict(self) -> dict[str, Any]:
        """The contents of processor_config.json in the "original" layout."""
        return original_processor_config(self)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        *,
        layout: Layout = "original",
        repo_id: str | None = None,
        commit_message: str = "Upload processor",
        token: str | bool | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Writes the processor's files and returns their paths.

        Args:
            save_directory: Folder, created if need be.
            push_to_hub: Also upload the files.
            layout: "original": for deepseek-ai/Janus and this package. "transformers": for transformers' own
                `JanusProcessor` and this package. Both reopen here with identical behaviour; transformers' class
                gives the same ids, but rounds sizes that the original truncates.
            repo_id, commit_message, token: Of the upload; `repo_id` defaults to the folder's name.
            kwargs: Passed to `create_repo` (`private`, ...).
        """
        files = write_layout(self, save_directory, layout=layout)
        if push_to_hub:
            create_and_upload(
                save_directory,
                repo_id or Path(save_directory).resolve().name,
                commit_message=commit_message,
                token=token,
                allow_patterns=[Path(file).name for file in files],
                **kwargs,
            )
        return files

    @classmethod
    def _load_tokenizer_from_pretrained(
        cls, sub_processor_type: str, pretrained_model_name_or_path: Any, subfolder: str = "", **kwargs: Any
    ) -> TokenizersBackend:
        return load_tokenizer(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Not via AutoImageProcessor: this class opens files under three class names, and folders without the file."""
        own = set(inspect.signature(cls).parameters)
        kwargs = {key: value for key, value in kwargs.items() if key not in own}
        has_file = cached_file(
            pretrained_model_name_or_path,
            IMAGE_PROCESSOR_NAME,
            **hub_arguments(kwargs),
            _raise_exceptions_for_missing_entries=False,
        )
        if has_file or "image_processor" in (processor_dict or {}):
            image_processor = JanusProImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        else:
            image_processor = JanusProImageProcessor.from_dict(JanusProImageProcessor().to_dict(), **kwargs)
        tokenizer = cls._load_tokenizer_from_pretrained("tokenizer", pretrained_model_name_or_path, **kwargs)
        return [image_processor, tokenizer]

    @classmethod
    def from_args_and_dict(cls, args: list[Any], processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Adds the chat settings kept with the tokenizer (see `layouts`) to those of processor_config.json."""
        saved = {key: args[1].init_kwargs[key] for key in ("roles", "system_prompt") if key in args[1].init_kwargs}
        settings = {**processor_dict, **saved}
        built = build_chat_template(
            roles=settings.get("roles", ROLES),
            system_prompt=settings.get("system_prompt", SYSTEM_PROMPT),
            image_token=settings.get("image_tag", IMAGE_TOKEN),
        )
        # A foreign JanusProcessor's template leaves the system prompt to that class.
        is_foreign = settings.get("processor_class") == "JanusProcessor" and not saved
        if is_foreign or settings.get("chat_template") == built:
            settings.pop("chat_template", None)  # ours, which follows `roles` and `system_prompt` in `kwargs`
        return super().from_args_and_dict(args, settings, **kwargs)
