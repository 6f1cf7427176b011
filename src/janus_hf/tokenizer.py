"""Functions that load, complete and correct a tokenizer, so that it gives the ids of deepseek-ai/Janus with one BOS.

Model and processor of a checkpoint both take their special token ids from here, so they always agree.

The public loaders of transformers 5.23 fail at this. `AutoTokenizer` reads the byte-level tokenizer.json correctly but
drops `add_bos_token`, and with it BOS. `LlamaTokenizer`, the class that the files name, replaces the pre-tokenizer and
gives other ids.
"""

import copy
import os
from typing import Any

import torch
from transformers.tokenization_utils_base import (
    ADDED_TOKENS_FILE,
    FULL_TOKENIZER_FILE,
    SPECIAL_TOKENS_MAP_FILE,
    TOKENIZER_CONFIG_FILE,
)
from transformers.tokenization_utils_tokenizers import TokenizersBackend
from transformers.utils import PROCESSOR_NAME

from .errors import CheckpointError
from .files import read_json
from .hub.fetching import fetch_files, hub_arguments
from .layouts.special_tokens import BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, Tags


def load_tokenizer(path: str | os.PathLike[str], **kwargs: Any) -> TokenizersBackend:
    """Load a tokenizer exactly as its tokenizer.json defines it, whatever tokenizer class the other files name.

    BOS is added in front of every text, and padding is on the left.

    Args:
        path: Folder or Hub repository.
        kwargs: Further arguments of `from_pretrained`.

    Raises:
        CheckpointError: If a tokenizer file is damaged.
        OSError: If there is no tokenizer.json, or the Hub does not answer whether another tokenizer file exists.
    """
    optional = [SPECIAL_TOKENS_MAP_FILE, ADDED_TOKENS_FILE]
    found = fetch_files(
        path, needed=[FULL_TOKENIZER_FILE, TOKENIZER_CONFIG_FILE], optional=optional, **hub_arguments(kwargs)
    )
    if found[FULL_TOKENIZER_FILE] is None:
        raise OSError(
            f"{str(path)!r} must hold a tokenizer.json, got none: name the folder or repository of a checkpoint, or "
            "copy the file there."
        )
    kwargs |= {"add_bos_token": True, "padding_side": "left"}
    try:
        tokenizer: TokenizersBackend = TokenizersBackend.from_pretrained(path, **kwargs)
    except OSError:
        raise
    except Exception as error:  # tokenizers and transformers raise errors of many types on damaged files
        raise CheckpointError(
            f"The tokenizer files of {str(path)!r} must be whole, got {type(error).__name__}: {error}. Copy or "
            "download them again."
        ) from error
    if has_token(tokenizer, PAD_TOKEN):
        tokenizer.pad_token = PAD_TOKEN
    return tokenizer


def read_special_token_ids(source: str | os.PathLike[str], **hub_kwargs: Any) -> dict[str, int]:
    """Return the ids that the special tokens have in the processor of a checkpoint.

    The ids differ between released checkpoints, and no original config contains them. Tokens that the tokenizer's
    files lack are added as in the processor (`add_missing_tokens`), so they have the same ids here.

    Args:
        source: Repository id or folder of the checkpoint.
        hub_kwargs: Arguments of Hub calls (`HUB_ARGUMENTS`).

    Returns:
        Token ids under the names "bos_token_id", "eos_token_id", "pad_token_id", "image_token_id", "boi_token_id" and
        "eoi_token_id". BOS and EOS are left out if the tokenizer lacks them. If the checkpoint has no tokenizer.json,
        for example a folder with weights only, the dictionary is empty.

    Raises:
        OSError: If the Hub does not answer whether a file exists.
        CheckpointError: If processor_config.json is not JSON, or a tokenizer file is damaged.
        ValueError: If processor_config.json states tags that are not valid.
    """
    found = fetch_files(source, needed=[FULL_TOKENIZER_FILE, PROCESSOR_NAME], **hub_kwargs)
    if found[FULL_TOKENIZER_FILE] is None:
        return {}
    tokenizer, path = load_tokenizer(source, **hub_kwargs), found[PROCESSOR_NAME]
    processor_config = {} if path is None else read_json(path)
    tags = Tags.from_files(processor_config, tokenizer)
    add_missing_tokens(tokenizer, tags)
    tokens = {
        "bos_token_id": tokenizer.bos_token or BOS_TOKEN,
        "eos_token_id": tokenizer.eos_token or EOS_TOKEN,
        "pad_token_id": pad_token_for(tokenizer, tags),
        "image_token_id": tags.image_tag,
        "boi_token_id": tags.image_start_tag,
        "eoi_token_id": tags.image_end_tag,
    }
    ids = {name: tokenizer.backend_tokenizer.token_to_id(token) for name, token in tokens.items()}
    return {name: token_id for name, token_id in ids.items() if token_id is not None}


def check_text_ids(
    input_ids: torch.Tensor, num_text_ids: int, *, placeholder: int | None = None, name: str | None = None
) -> None:
    """Raise unless every id of a tokenized text has a row in the model's text embedding table.

    In this package's models, ids from `num_text_ids` on are image tokens. A token that was added to the tokenizer but
    not to the model would therefore silently be read as an image token.

    Args:
        input_ids: Integer tensor of any shape with the ids of tokenized texts.
        num_text_ids: Number of rows of the embedding table (`vocab_size` of the text config), with those of the image
            tokens added where these are allowed.
        placeholder: Id of the placeholder of images, which may be beyond the table, or None.
        name: Name of the argument that holds the ids, for the message; None if a processor made them.

    Raises:
        ValueError: If an id is negative or too large.
    """
    is_wrong = (input_ids < 0) | (input_ids >= num_text_ids)
    if placeholder is not None:
        is_wrong = is_wrong & (input_ids != placeholder)
    if is_wrong.any():
        what = "The tokens of a text" if name is None else f"`{name}`, the tokens of a text,"
        raise ValueError(
            f"{what} must have ids below {num_text_ids}, the number of rows of the model's embedding table, and at "
            f"least 0, got {sorted(set(input_ids[is_wrong].tolist()))[:5]}: call "
            "model.resize_token_embeddings(len(processor.tokenizer)) after adding tokens, or use the tokenizer of "
            "this model."
        )


def has_token(tokenizer: TokenizersBackend, token: str) -> bool:
    """Return whether `token` is a single entry of the tokenizer's vocabulary."""
    return tokenizer.backend_tokenizer.token_to_id(token) is not None


def add_missing_tokens(tokenizer: TokenizersBackend, tags: Tags) -> None:
    """Add the image tokens that a tokenizer lacks as special tokens, in place, with the ids of deepseek-ai/Janus.

    Each missing token gets the next free id, in the order of `Tags.added_in_order`. Padding gets no new token; see
    `pad_token_for`.
    """
    missing = [tag for tag in tags.added_in_order() if not has_token(tokenizer, tag)]
    if missing:
        tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)


def pad_token_for(tokenizer: TokenizersBackend, tags: Tags) -> str:
    """Return the padding token: `tags.pad_tag`, or a replacement if the tokenizer lacks the default padding token.

    The replacement is the padding token that the tokenizer's own files name, otherwise end-of-sentence. JanusFlow's
    code in deepseek-ai/Janus uses end-of-sentence too, because the vocabulary of the released JanusFlow lacks the
    default padding token. No token is added, so that padding always has a trained embedding.

    Raises:
        ValueError: If the tokenizer lacks a padding token that is not the default.
    """
    if has_token(tokenizer, tags.pad_tag):
        return tags.pad_tag
    if tags.pad_tag != PAD_TOKEN:
        raise ValueError(
            f"`pad_tag` must be a token of the tokenizer, got {tags.pad_tag!r}: name another one, or leave it out to "
            "pad with end-of-sentence."
        )
    return tokenizer.pad_token or tokenizer.eos_token or EOS_TOKEN


def fit_tokenizer(tokenizer: TokenizersBackend, tags: Tags) -> TokenizersBackend:
    """Return `tokenizer` if it meets Janus's requirements, otherwise a corrected copy. `tokenizer` is never changed.

    The requirements are: every special token is in the vocabulary, padding is on the left with the token of
    `pad_token_for`, and a text is encoded as exactly one BOS followed by ids that decode to the text.

    Args:
        tokenizer: A tokenizer backed by the `tokenizers` library.
        tags: The special tokens for images and padding. Those for images are added if the vocabulary lacks them.

    Raises:
        TypeError: If the tokenizer is not backed by the `tokenizers` library.
        ValueError: If BOS, EOS or a padding token other than the default is missing, or the tokenizer loses text.
    """
    if not isinstance(tokenizer, TokenizersBackend):
        raise TypeError(
            "`tokenizer` must be a tokenizer backed by tokenizer.json (TokenizersBackend), got "
            f"{type(tokenizer).__name__}: load it with JanusProProcessor.from_pretrained."
        )
    bos_token, eos_token = tokenizer.bos_token or BOS_TOKEN, tokenizer.eos_token or EOS_TOKEN
    if missing := [token for token in (bos_token, eos_token) if not has_token(tokenizer, token)]:
        raise ValueError(
            f"`tokenizer` must have Janus's special tokens, got {tokenizer.name_or_path!r} without {missing}: load "
            "the tokenizer of a Janus checkpoint, or add these tokens and resize the model's embeddings."
        )
    pad_token = pad_token_for(tokenizer, tags)
    settings = {"bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token, "padding_side": "left"}
    is_set = all(getattr(tokenizer, name) == value for name, value in settings.items())
    is_complete = all(has_token(tokenizer, tag) for tag in tags.added_in_order())
    if not (is_set and is_complete and _adds_bos_only(tokenizer)):
        tokenizer = copy.deepcopy(tokenizer)
        for name, value in settings.items():
            setattr(tokenizer, name, value)
        add_missing_tokens(tokenizer, tags)
        # Setting either attribute makes transformers replace the post-processor of tokenizer.json, so this is done
        # only if that post-processor is wrong.
        if not _adds_bos_only(tokenizer):
            for name, value in {"add_eos_token": False, "add_bos_token": True}.items():
                setattr(tokenizer, name, value)
    _check_encoding(tokenizer)
    return tokenizer


def _adds_bos_only(tokenizer: TokenizersBackend) -> bool:
    """Return whether the tokenizer, when it adds special tokens, adds one BOS in front of a text and nothing else."""
    bare, full = (tokenizer.encode("a", add_special_tokens=added) for added in (False, True))
    return bool(full == [tokenizer.bos_token_id, *bare])


def _check_encoding(tokenizer: TokenizersBackend) -> None:
    """Raise `ValueError` unless the tokenizer encodes a sample text as one BOS and ids that decode to that text."""
    ids = tokenizer.encode("a a")
    text = str(tokenizer.decode(ids[1:]))
    if not _adds_bos_only(tokenizer) or text.strip() != "a a":
        raise ValueError(
            f"`tokenizer` must encode 'a a' as one BOS ({tokenizer.bos_token_id}) and ids that decode to 'a a', got "
            f"{ids}, which decode to {text!r}: {type(tokenizer).__name__} does not follow its tokenizer.json, so load "
            "it with JanusProProcessor.from_pretrained or TokenizersBackend.from_pretrained."
        )


__all__ = [
    "add_missing_tokens",
    "check_text_ids",
    "fit_tokenizer",
    "has_token",
    "load_tokenizer",
    "pad_token_for",
    "read_special_token_ids",
]
