"""`ProcessorFiles`, which loads a processor from a folder or the Hub and saves it.

`file_formats.py` defines the contents of the files.
"""

import inspect
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, Unpack

from huggingface_hub import ModelCard
from transformers import ProcessorMixin
from transformers.tokenization_utils_base import FULL_TOKENIZER_FILE
from transformers.tokenization_utils_tokenizers import TokenizersBackend
from transformers.utils import (
    CHAT_TEMPLATE_FILE,
    IMAGE_PROCESSOR_NAME,
    LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE,
    PROCESSOR_NAME,
)

from ..arguments import check_path
from ..hub.cards import processor_card
from ..hub.fetching import fetch_files, find_file, hub_arguments
from ..hub.opening import Source, check_family, find_adapter, open_base, open_source
from ..hub.uploads import HubUploadMixin, UploadArguments, check_upload_arguments
from ..layouts import Layout
from ..layouts.special_tokens import Tags
from ..tokenizer import load_tokenizer
from .file_formats import CHAT_SETTINGS, SavableProcessor, original_processor_config, write_layout
from .image_processor import JanusProImageProcessor
from .prompts import ROLES, ROLES_BY_FORMAT, SYSTEM_PROMPT, build_chat_template


# Keys that libraries write into processor_config.json and that are no settings of the processor: its class, the
# settings of its image processor, code in the repository, and a chat template, which transformers handles.
_FILE_KEYS = {"auto_map", "chat_template", "image_processor", "image_processor_type", "processor_class"}


class ProcessorFiles(HubUploadMixin, ProcessorMixin, SavableProcessor):
    """Base class of `JanusProProcessor` with the methods that load and save a processor.

    The constructor of `JanusProProcessor` sets the attributes that `SavableProcessor` lists.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return the content of processor_config.json with the keys that deepseek-ai/Janus writes."""
        return original_processor_config(self)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        push_to_hub: bool = False,
        *,
        layout: Layout = "original",
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        **upload: Unpack[UploadArguments],
    ) -> list[str]:
        """Write the processor's files into a folder and return their paths.

        Args:
            save_directory: Folder to write into; it is created if it does not exist.
            push_to_hub: Also upload the files that were written, and no others.
            layout: "original" for files that deepseek-ai/Janus and this package can read, "transformers" for files
                that transformers' own `JanusProcessor` and this package can read. In this package a processor loaded
                from either behaves identically. transformers' class gives the same ids, but rounds image sizes where
                deepseek-ai/Janus truncates.
            variant, max_shard_size: Accepted so that the calls for a model and for its processor can be alike. They
                concern weight files, of which a processor has none.
            upload: Keyword arguments of `push_to_hub`, for `push_to_hub=True`; `repo_id` defaults to the folder's
                name.

        Raises:
            ValueError: If `layout` is unknown, or the processor has several chat templates instead of one.
            TypeError: If an argument is unknown, or is for the upload and `push_to_hub` is False.
        """
        check_upload_arguments(upload, uploads=push_to_hub)
        files = write_layout(self, save_directory, layout=layout)
        if push_to_hub:
            self._upload(save_directory, [Path(file).name for file in files], upload)
        return files

    _card_belongs_to_others = True

    def _generated_card(
        self, repo_id: str, *, has_processor: bool, loading: Mapping[str, str | None], token: str | bool | None
    ) -> ModelCard:
        """Return the card of a repository that holds only a processor."""
        return processor_card(repo_id, loading.get("revision"))

    @classmethod
    def get_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read processor_config.json and the chat template, as the method of transformers' `ProcessorMixin` does.

        Raises:
            OSError: If the Hub does not answer whether one of the files exists. The method of transformers takes such
                a file for absent.
        """
        fetch_files(
            pretrained_model_name_or_path,
            needed=[PROCESSOR_NAME],
            optional=[CHAT_TEMPLATE_FILE, LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE],
            **hub_arguments(kwargs),
        )
        # Any: the contents of JSON files
        found: tuple[dict[str, Any], dict[str, Any]] = super().get_processor_dict(
            pretrained_model_name_or_path, **kwargs
        )
        return found

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load a processor from a folder or Hub repository.

        All files of a repository come from one commit. For an adapter without a tokenizer, the processor is that of
        the base model, at the revision that the adapter's config names.

        Args:
            pretrained_model_name_or_path: Folder or repository id.
            kwargs: Arguments of Hub calls (`revision`, `token`, `subfolder`, `cache_dir`, ...); settings of the
                constructor that replace those of the files.

        Raises:
            OSError: If the repository or one of its files cannot be had. A file counts as absent only if the Hub or
                the cache says so.
            TypeError: If `pretrained_model_name_or_path` is neither a string nor a path.
            ValueError: If config.json is that of another model family, or the tokenizer is not Janus's.
        """
        check_path(pretrained_model_name_or_path, "pretrained_model_name_or_path", "a repository id or a folder")
        hub_kwargs = hub_arguments(kwargs)
        source = _find_processor(open_source(pretrained_model_name_or_path, hub_kwargs))
        settings = {name: value for name, value in kwargs.items() if name not in hub_kwargs}
        return super().from_pretrained(source.path, **settings, **source.hub_kwargs)

    # The next two methods override private ones of transformers; tests/processing/test_processing_canary.py checks
    # that these exist. The public classes AutoTokenizer and AutoImageProcessor were tried: the first drops BOS from
    # these files (see tokenizer.py), the second refuses a folder without preprocessor_config.json.

    @classmethod
    def _load_tokenizer_from_pretrained(
        cls, sub_processor_type: str, pretrained_model_name_or_path: Any, subfolder: str = "", **kwargs: Any
    ) -> TokenizersBackend:
        """Load the tokenizer with `load_tokenizer` of this package instead of transformers' `AutoTokenizer`."""
        return load_tokenizer(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Load the image processor and the tokenizer and return them in this order.

        `JanusProImageProcessor` is used in place of `AutoImageProcessor`: it reads files that name any of three image
        processor classes, and it is built with its default settings if preprocessor_config.json is missing.
        """
        own = set(inspect.signature(cls).parameters)
        kwargs = {key: value for key, value in kwargs.items() if key not in own}
        has_file = find_file(pretrained_model_name_or_path, IMAGE_PROCESSOR_NAME, **hub_arguments(kwargs))
        if has_file or "image_processor" in (processor_dict or {}):
            image_processor = JanusProImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        else:
            image_processor = JanusProImageProcessor.from_dict(JanusProImageProcessor().to_dict(), **kwargs)
        tokenizer = cls._load_tokenizer_from_pretrained("tokenizer", pretrained_model_name_or_path, **kwargs)
        return [image_processor, tokenizer]

    @classmethod
    def from_args_and_dict(cls, args: list[Any], processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build the processor from its image processor, its tokenizer and its saved settings.

        This overrides the method of transformers' `ProcessorMixin`.

        Args:
            args: `[image processor, tokenizer]`. If tokenizer_config.json contains `CHAT_SETTINGS`, these
                replace those of `processor_dict`. If the tokenizer names image tokens, as that of transformers' own
                Janus does, they are the tags that `processor_dict` does not state.
            processor_dict: Content of processor_config.json. Unknown keys are kept in `unknown_settings`, and a
                warning names them.
            kwargs: Settings that replace those of the files.
        """
        tokenizer = args[1]
        saved = {key: tokenizer.init_kwargs[key] for key in CHAT_SETTINGS if key in tokenizer.init_kwargs}
        tags = Tags.from_files(processor_dict, tokenizer)
        settings = {**processor_dict, **asdict(tags), **saved}
        # The constructor refuses roles and formats that are none; here they only must not fail before it.
        roles = settings.get("roles") or ROLES_BY_FORMAT.get(str(settings.get("sft_format", "deepseek")))
        built = build_chat_template(
            roles=roles if isinstance(roles, (list, tuple)) else ROLES,
            system_prompt=settings.get("system_prompt", SYSTEM_PROMPT),
            image_token=tags.image_tag,
            close_turns=settings.get("close_turns", "by_role"),
        )
        # The template that transformers' own JanusProcessor saves has no system prompt, because that class adds it.
        is_foreign = settings.get("processor_class") == "JanusProcessor" and not saved
        if is_foreign or settings.get("chat_template") == built:
            # If no template is passed, the processor builds one from `roles` and `system_prompt`.
            settings.pop("chat_template", None)
        # Arguments of the caller are not in `processor_dict`.
        known = set(inspect.signature(cls).parameters) | _FILE_KEYS
        unknown = {key: value for key, value in processor_dict.items() if key not in known}
        if unknown:
            warnings.warn(
                f"processor_config.json must hold settings of {cls.__name__}, got {sorted(unknown)} too: they are "
                "kept and saved again and have no other effect. Check their spelling, or whether a newer version of "
                "this package knows them.",
                stacklevel=2,
            )
        result = super().from_args_and_dict(args, settings, **kwargs)
        # With `return_unused_kwargs=True` the result is a tuple of the processor and these arguments.
        (result[0] if isinstance(result, tuple) else result).unknown_settings = unknown
        return result


def _find_processor(source: Source) -> Source:
    """Return the folder or repository of the processor, which for an adapter may be that of its base model.

    Raises:
        OSError: If a repository or a file cannot be had.
        ValueError: If config.json is that of another model family.
    """
    check_family(source, required=False)
    if not source.download(FULL_TOKENIZER_FILE) and (adapter_config := find_adapter(source)):
        return open_base(source, adapter_config)
    return source
