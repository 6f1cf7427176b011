"""Load a processor from a folder or the Hub, and save it. `file_formats.py` knows what the files hold."""

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
from .file_formats import SavableProcessor, original_processor_config, write_layout
from .image_processor import JanusProImageProcessor
from .prompts import IMAGE_TOKEN, ROLES, SYSTEM_PROMPT, build_chat_template
from .tokenizer import load_tokenizer


class ProcessorFiles(ProcessorMixin, SavableProcessor):
    """Loading and saving for `JanusProProcessor`, whose constructor sets the attributes of `SavableProcessor`."""

    def to_dict(self) -> dict[str, Any]:
        """Return the content of processor_config.json in the "original" layout."""
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
        """Write the processor's files and return their paths.

        Args:
            save_directory: Folder to write into; it is created if it does not exist.
            push_to_hub: Also upload the files that were written, and no others.
            layout: "original" is read by deepseek-ai/Janus and this package, "transformers" by transformers' own
                `JanusProcessor` and this package. This package reopens both with identical behaviour. transformers'
                class gives the same ids, but rounds image sizes where deepseek-ai/Janus truncates.
            repo_id: Repository of the upload; defaults to the folder's name.
            commit_message: Title of the upload's commit.
            token: Hub token of the upload.
            kwargs: Further arguments of `create_repo` for the upload, such as `private`.

        Raises:
            ValueError: If `layout` is unknown, or the processor has several chat templates instead of one.
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

    # The two overrides below are private in transformers; tests/processing/test_processing_canary.py watches them. The
    # public way, AutoTokenizer and AutoImageProcessor, was tried: the first drops BOS from these files (see
    # tokenizer.py), the second refuses a folder without preprocessor_config.json.

    @classmethod
    def _load_tokenizer_from_pretrained(
        cls, sub_processor_type: str, pretrained_model_name_or_path: Any, subfolder: str = "", **kwargs: Any
    ) -> TokenizersBackend:
        """Load the tokenizer with `load_tokenizer` instead of `AutoTokenizer`."""
        return load_tokenizer(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Return the image processor and the tokenizer.

        `JanusProImageProcessor` opens the files of three class names and stands in for a missing file, which
        `AutoImageProcessor` does not.
        """
        own = set(inspect.signature(cls).parameters)
        kwargs = {key: value for key, value in kwargs.items() if key not in own}
        # The private argument tells a missing file from an unreachable Hub. The public `has_file` takes no subfolder
        # and calls both "False"; catching the OSError of `cached_file` would hide an unreachable Hub.
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
        """Build the processor from its parts and its settings, as in transformers' `ProcessorMixin`.

        Args:
            args: Image processor and tokenizer. Roles and system prompt that tokenizer_config.json holds (see
                `file_formats`) replace those of `processor_dict`.
            processor_dict: Content of processor_config.json.
            kwargs: Settings that replace those of the files.
        """
        saved = {key: args[1].init_kwargs[key] for key in ("roles", "system_prompt") if key in args[1].init_kwargs}
        settings = {**processor_dict, **saved}
        built = build_chat_template(
            roles=settings.get("roles", ROLES),
            system_prompt=settings.get("system_prompt", SYSTEM_PROMPT),
            image_token=settings.get("image_tag", IMAGE_TOKEN),
        )
        # The template that transformers' own JanusProcessor saves leaves the system prompt to that class.
        is_foreign = settings.get("processor_class") == "JanusProcessor" and not saved
        if is_foreign or settings.get("chat_template") == built:
            # Without a template of its own the processor builds one, which follows `roles` and `system_prompt`.
            settings.pop("chat_template", None)
        return super().from_args_and_dict(args, settings, **kwargs)
