"""`StartTokenizer`, the tokenizer of a language model with the special tokens of Janus-Pro that it lacked."""

from dataclasses import dataclass
from typing import Any

from transformers.tokenization_utils_base import FULL_TOKENIZER_FILE
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from ...hub.opening import Source
from ...layouts.special_tokens import BOI_TOKEN, BOS_TOKEN, EOI_TOKEN, EOS_TOKEN, IMAGE_TOKEN, PAD_TOKEN
from ...tokenizer import has_token, load_tokenizer


# In the order of their ids in the vocabularies of Janus-Pro-1B and 7B.
SPECIAL_TOKENS = (BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, BOI_TOKEN, EOI_TOKEN, IMAGE_TOKEN)


@dataclass(frozen=True)
class StartTokenizer:
    """A tokenizer for the assembled model.

    Args:
        tokenizer: The tokenizer, with all special tokens of Janus-Pro.
        known: Ids of the tokens that the language model was trained with.
        added: Ids of the tokens that it has no trained vectors for.
    """

    tokenizer: TokenizersBackend
    known: frozenset[int]
    added: frozenset[int]


def make_tokenizer(language_model: Source, given: Source | None, rows: int) -> StartTokenizer:
    """Return the tokenizer of a language model, or another one that extends it, with the special tokens of Janus-Pro.

    Missing tokens get the next free ids, in the order of `SPECIAL_TOKENS`. Ids of tokens that exist stay as they are.

    Args:
        language_model: Folder or repository of the language model.
        given: Folder or repository of the tokenizer to use, such as that of a released Janus-Pro; None takes the one
            of the language model.
        rows: Number of rows of the language model's embedding table.

    Raises:
        OSError: If there is no tokenizer.json.
        CheckpointError: If a tokenizer file is damaged.
        ValueError: If a token of the language model is missing in the given tokenizer, or has another id there.
    """
    own = None
    if given is None or language_model.find(FULL_TOKENIZER_FILE):
        own = load_tokenizer(language_model.path, **language_model.hub_kwargs).get_vocab()
    source = given or language_model
    tokenizer = load_tokenizer(source.path, **source.hub_kwargs)
    if own is not None:
        _check_extends(tokenizer.get_vocab(), own, source)
    # A tokenizer whose own files name other tokens for the beginning and the end of a text keeps them.
    named = {BOS_TOKEN: tokenizer.bos_token, EOS_TOKEN: tokenizer.eos_token}
    missing = [token for token in SPECIAL_TOKENS if not has_token(tokenizer, named.get(token) or token)]
    if missing:
        tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
    tokenizer.pad_token = PAD_TOKEN
    ids = set(tokenizer.get_vocab().values())
    known = frozenset(range(rows)) if own is None else frozenset(i for i in own.values() if i < rows)
    return StartTokenizer(tokenizer, known, frozenset(ids - known))


def _check_extends(vocabulary: dict[str, Any], own: dict[str, Any], source: Source) -> None:
    """Raise a ValueError unless a vocabulary has every token of the language model with the same id."""
    changed = [token for token, token_id in own.items() if vocabulary.get(token) != token_id]
    if changed:
        token = min(changed, key=own.__getitem__)
        raise ValueError(
            f"`tokenizer` must give every token of the language model its id, got {str(source.path)!r}, in which "
            f"{len(changed)} of {len(own)} differ, such as {token!r} with {vocabulary.get(token)} instead of "
            f"{own[token]}: leave it out, or name a tokenizer that extends that of the language model."
        )


__all__ = ["SPECIAL_TOKENS", "StartTokenizer", "make_tokenizer"]
