"""Functions that write the files of a processor in one of two layouts.

Both layouts consist of the same six files; some files differ in their keys and class names.

- "original": can be read by deepseek-ai/Janus (transformers 4.48) and by this package.
- "transformers": can be read by transformers' own `JanusProcessor` and by this package.

Both layouts store the roles, the system prompt and the other chat settings in tokenizer_config.json. The original
processor raises a `TypeError` for unknown keys in processor_config.json (tried with 4.48), while the tokenizers of
every version keep unknown keys.
"""

import json
import os
from pathlib import Path
from typing import Any, Protocol, get_args

from transformers.tokenization_utils_tokenizers import TokenizersBackend

from ..layouts import Layout
from ..layouts.special_tokens import Tags
from .image_processor import JanusProImageProcessor
from .prompts import ROLES_BY_FORMAT, SYSTEM_PROMPT, CloseTurns


# Settings of a processor that tokenizer_config.json may hold.
CHAT_SETTINGS = ("roles", "system_prompt", "parse_special_tokens", "close_turns")


class SavableProcessor(Protocol):
    """Interface of a processor whose files can be written: the attributes that the files record.

    `JanusProProcessor` implements it.
    """

    image_processor: JanusProImageProcessor
    tokenizer: TokenizersBackend
    num_image_tokens: int
    sft_format: str
    roles: tuple[str, str]
    system_prompt: str
    image_token: str
    boi_token: str
    eoi_token: str
    pad_tag: str
    image_gen_tag: str | None
    mask_prompt: bool
    ignore_id: int
    parse_special_tokens: bool
    close_turns: CloseTurns
    unknown_settings: dict[str, Any]  # Any: whatever the keys of a file hold

    @property
    def chat_template(self) -> str | dict[str, str]:
        """The Jinja chat template in use, or a dictionary of several templates by name."""
        ...


def write_layout(processor: SavableProcessor, folder: str | os.PathLike[str], *, layout: Layout) -> list[str]:
    """Write all files of `processor` into `folder`, replacing existing ones, and return the paths of the files.

    Args:
        processor: The processor to save.
        folder: Folder to write into; it is created if it does not exist.
        layout: "original" for files that deepseek-ai/Janus can read, "transformers" for files that transformers' own
            `JanusProcessor` can read.

    Raises:
        ValueError: If `layout` is unknown, or the processor has several chat templates instead of one.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"`layout` must be one of {get_args(Layout)}, got {layout!r}: choose one of them.")
    template = processor.chat_template
    if not isinstance(template, str):
        raise ValueError(
            f"`processor.chat_template` must be one string to be saved, got {type(template).__name__}: assign the "
            "template that the files should hold."
        )
    Path(folder).mkdir(parents=True, exist_ok=True)
    build = _original if layout == "original" else _transformers
    for name, content in {**build(processor), "special_tokens_map.json": _special_tokens(processor)}.items():
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        Path(folder, name).write_text(text, encoding="utf-8")
    Path(folder, "chat_template.jinja").write_text(template, encoding="utf-8")
    processor.tokenizer.backend_tokenizer.save(str(Path(folder, "tokenizer.json")))
    return [str(Path(folder, name)) for name in _FILES]


_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def original_processor_config(processor: SavableProcessor) -> dict[str, Any]:
    """Return the content of processor_config.json for `processor`, with the keys that deepseek-ai/Janus writes.

    Keys that were unknown when the processor was loaded are added, with the values that they had.
    """
    used = {
        "image_start_tag": processor.boi_token,
        "image_end_tag": processor.eoi_token,
        "pad_tag": processor.pad_tag,
        "image_gen_tag": processor.image_gen_tag,
    }
    return {
        **processor.unknown_settings,
        "add_special_token": False,
        "ignore_id": processor.ignore_id,
        "image_tag": processor.image_token,
        "mask_prompt": processor.mask_prompt,
        "num_image_tokens": processor.num_image_tokens,
        "processor_class": "VLChatProcessor",
        "sft_format": processor.sft_format,
        # The released files leave out the tags that have their default value.
        **{tag: token for tag, token in used.items() if token != getattr(Tags, tag)},
    }


def _original(processor: SavableProcessor) -> dict[str, dict[str, Any]]:
    """Return the files that differ between the two layouts, for the "original" layout (deepseek-ai/Janus).

    Keys are file names, values are the contents of these JSON files.
    """
    usual = {"roles": list(ROLES_BY_FORMAT[processor.sft_format]), "system_prompt": SYSTEM_PROMPT}
    return {
        "processor_config.json": original_processor_config(processor),
        "preprocessor_config.json": {**processor.image_processor.to_dict(), "processor_class": "VLChatProcessor"},
        "tokenizer_config.json": {
            **_tokenizer(processor),
            "legacy": True,
            "processor_class": "VLChatProcessor",
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizerFast",
            "use_default_system_prompt": False,  # a setting of Llama's tokenizer, unrelated to Janus's system prompt
            # Default chat settings are left out, so that the files equal the released ones.
            **({} if _chat_settings(processor) == usual else _chat_settings(processor)),
        },
    }


def _transformers(processor: SavableProcessor) -> dict[str, dict[str, Any]]:
    """Return the files that differ between the two layouts, for the "transformers" layout (transformers' own Janus).

    Keys are file names, values are the contents of these JSON files.
    """
    images = processor.image_processor
    return {
        "processor_config.json": {
            **original_processor_config(processor),  # transformers' class ignores the keys it does not know
            "processor_class": "JanusProcessor",
            "use_default_system_prompt": False,  # the chat template adds the prompt; true would add it twice
        },
        "preprocessor_config.json": {
            **images.unknown_settings,
            "do_normalize": images.do_normalize,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": images.image_mean,
            "image_processor_type": "JanusImageProcessor",
            "image_std": images.image_std,
            "min_size": images.min_size,
            "processor_class": "JanusProcessor",
            "resample": 3,
            "rescale_factor": images.rescale_factor,
            "size": images.size,
        },
        "tokenizer_config.json": {
            **_tokenizer(processor),
            **_chat_settings(processor),
            "extra_special_tokens": {
                "image_token": processor.image_token,
                "boi_token": processor.boi_token,
                "eoi_token": processor.eoi_token,
            },
            "processor_class": "JanusProcessor",
            # This generic class uses tokenizer.json as it is, while "LlamaTokenizer" rebuilds parts of it.
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    }


def _chat_settings(processor: SavableProcessor) -> dict[str, Any]:
    """Return the entries that this package adds to tokenizer_config.json (`CHAT_SETTINGS`).

    Those that deepseek-ai/Janus does not have are left out where they have their default.
    """
    settings: dict[str, Any] = {"roles": list(processor.roles), "system_prompt": processor.system_prompt}
    if not processor.parse_special_tokens:
        settings["parse_special_tokens"] = False
    if processor.close_turns != "by_role":
        settings["close_turns"] = processor.close_turns
    return settings


def _tokenizer(processor: SavableProcessor) -> dict[str, Any]:
    """Return the entries of tokenizer_config.json that are the same in both file layouts."""
    tokenizer = processor.tokenizer
    return {
        **_special_tokens(processor),
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": tokenizer.model_max_length,
        "padding_side": "left",
    }


def _special_tokens(processor: SavableProcessor) -> dict[str, Any]:
    """Return the content of special_tokens_map.json: the named special tokens and a list of the additional ones."""
    tokenizer = processor.tokenizer
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    named = {name: token for name in names if (token := getattr(tokenizer, name)) is not None}
    return {**named, "additional_special_tokens": list(tokenizer.extra_special_tokens)}
