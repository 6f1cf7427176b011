"""Functions that load or correct a tokenizer, so that it gives the ids of deepseek-ai/Janus with exactly one BOS.

The public loaders of transformers 5.23 fail at this. `AutoTokenizer` reads the byte-level tokenizer.json correctly but
drops `add_bos_token`, and with it BOS. `LlamaTokenizer`, the class that the files name, replaces the pre-tokenizer and
gives other ids.
"""

import copy
import os
from typing import Any

from transformers.tokenization_utils_base import FULL_TOKENIZER_FILE
from transformers.tokenization_utils_tokenizers import TokenizersBackend
from transformers.utils.hub import cached_file

from ..files import hub_arguments
from .prompts import BOS_TOKEN, EOS_TOKEN, PAD_TOKEN


def load_tokenizer(path: str | os.PathLike[str], **kwargs: Any) -> TokenizersBackend:
    """Load a tokenizer exactly as its tokenizer.json defines it, whatever tokenizer class the other files name.

    BOS is added in front of every text, and padding is on the left.

    Args:
        path: Folder or Hub repository.
        kwargs: Further arguments of `from_pretrained`.

    Raises:
        OSError: If there is no tokenizer.json.
    """
    cached_file(path, FULL_TOKENIZER_FILE, **hub_arguments(kwargs))  # the error names the missing file and folder
    kwargs |= {"add_bos_token": True, "padding_side": "left"}
    tokenizer: TokenizersBackend = TokenizersBackend.from_pretrained(path, **kwargs)
    if has_token(tokenizer, PAD_TOKEN):
        tokenizer.pad_token = PAD_TOKEN
    return tokenizer


def has_token(tokenizer: TokenizersBackend, token: str) -> bool:
    """Return whether `token` is a single entry of the tokenizer's vocabulary."""
    return tokenizer.backend_tokenizer.token_to_id(token) is not None


def fit_tokenizer(
    tokenizer: TokenizersBackend, *, pad_token: str, boi_token: str, eoi_token: str, image_token: str
) -> TokenizersBackend:
    """Return `tokenizer` if it meets Janus's requirements, otherwise a corrected copy. `tokenizer` is never changed.

    The requirements are: every special token is in the vocabulary, padding is on the left with `pad_token`, and a text
    is encoded as exactly one BOS followed by ids that decode to the text.

    Args:
        tokenizer: A tokenizer backed by the `tokenizers` library.
        pad_token: Padding token.
        boi_token: Begin-of-image token.
        eoi_token: End-of-image token.
        image_token: Placeholder token of images; it is added if the vocabulary lacks it, as in deepseek-ai/Janus.

    Raises:
        TypeError: If the tokenizer is not backed by the `tokenizers` library.
        ValueError: If a special token other than `image_token` is missing, or the tokenizer loses text.
    """
    if not isinstance(tokenizer, TokenizersBackend):
        raise TypeError(
            "`tokenizer` must be a tokenizer backed by tokenizer.json (TokenizersBackend), got "
            f"{type(tokenizer).__name__}: load it with JanusProProcessor.from_pretrained."
        )
    bos_token, eos_token = tokenizer.bos_token or BOS_TOKEN, tokenizer.eos_token or EOS_TOKEN
    required = (bos_token, eos_token, pad_token, boi_token, eoi_token)
    if missing := [token for token in required if not has_token(tokenizer, token)]:
        raise ValueError(
            f"`tokenizer` must have Janus's special tokens, got {tokenizer.name_or_path!r} without {missing}: load "
            "the tokenizer of a Janus checkpoint, or add these tokens and resize the model's embeddings."
        )
    settings = {"bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token, "padding_side": "left"}
    is_set = all(getattr(tokenizer, name) == value for name, value in settings.items())
    if not (is_set and _adds_bos_only(tokenizer) and has_token(tokenizer, image_token)):
        tokenizer = copy.deepcopy(tokenizer)
        for name, value in settings.items():
            setattr(tokenizer, name, value)
        if not has_token(tokenizer, image_token):
            tokenizer.add_special_tokens({"extra_special_tokens": [image_token]}, replace_extra_special_tokens=False)
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
