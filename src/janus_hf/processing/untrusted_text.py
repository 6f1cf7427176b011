"""Text of messages that is tokenized as plain text, whatever special tokens are written in it.

deepseek-ai/Janus looks for special tokens in the whole rendered prompt, so that a user who writes them can forge turns
and images. With `parse_special_tokens=False` only those that the chat template writes become special tokens. For that,
a rendered prompt says which of its characters come from messages: it is a `MarkedText`.

The ids are those of the whole prompt, tokenized at once: where no special token comes from a message, they do not
differ from those with `parse_special_tokens=True`.
"""

import copy
import re
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self
from weakref import WeakKeyDictionary

from tokenizers import AddedToken
from transformers.tokenization_utils_tokenizers import TokenizersBackend


# Planes of Unicode that have no characters: code points of the alphabet that stands in for the text of messages.
_PRIVATE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class MarkedText(str):
    """A rendered prompt that knows which of its characters come from messages.

    Slices, joined strings and the like are plain strings, of which every character counts as coming from a message.

    Args:
        text: The prompt.
        foreign: For every character, whether it comes from a message; by default all do.
    """

    foreign: tuple[bool, ...]

    def __new__(cls, text: str, foreign: Iterable[bool] | None = None) -> Self:
        self = super().__new__(cls, text)
        self.foreign = (True,) * len(text) if foreign is None else tuple(foreign)
        assert len(self.foreign) == len(text), "one mark per character"
        return self

    @classmethod
    def join_parts(cls, parts: Iterable[tuple[str, bool]]) -> Self:
        """Return the parts as one text. A part is a string, and whether it comes from a message."""
        parts = list(parts)
        marks = [is_foreign for text, is_foreign in parts for _ in text]
        return cls("".join(text for text, _ in parts), marks)

    def with_own(self, suffix: str) -> "MarkedText":
        """Return the text followed by a suffix that does not come from a message."""
        return MarkedText(str(self) + suffix, (*self.foreign, *[False] * len(suffix)))

    def __reduce__(self) -> tuple[type["MarkedText"], tuple[str, tuple[bool, ...]]]:
        """Return how to copy or pickle the text."""
        return MarkedText, (str(self), self.foreign)


def render_marked(
    render: Callable[..., str | list[str]], conversations: Any, variables: Mapping[str, Any]
) -> str | list[str]:
    """Render conversations, and return texts that know which of their characters come from messages.

    The conversations are rendered with every character of their texts, but for white space, replaced by one of an
    alphabet that no text uses, and then the characters are put back.

    Args:
        render: Function that renders conversations and takes template variables, such as `system_prompt`.
        conversations: A conversation or a list of conversations, already checked.
        variables: Variables of the template. `system_prompt` counts as the text of a message.

    Returns:
        A `MarkedText`, or a list of them for a list of conversations.

    Raises:
        ValueError: If the template does not render texts as they are, so that it cannot be told which characters come
            from messages.
    """
    plain = render(conversations, **variables)
    alphabet = _Alphabet()
    prompt = variables.get("system_prompt")
    hidden = {**variables, **({"system_prompt": alphabet.hide(prompt)} if isinstance(prompt, str) else {})}
    rendered = render(_hide_texts(conversations, alphabet), **hidden)
    found = [alphabet.reveal(one) for one in ([rendered] if isinstance(rendered, str) else rendered)]
    if [str(one) for one in found] != ([plain] if isinstance(plain, str) else plain):
        raise ValueError(
            "`chat_template` must write the texts of messages as they are with parse_special_tokens=False, got one "
            "that changes or inspects them: assign None to `processor.chat_template` to use the default."
        )
    return found[0] if isinstance(plain, str) else list(found)


class _Alphabet:
    """Characters that stand in for those of messages; white space stands for itself, because templates strip it."""

    def __init__(self) -> None:
        self._letters: dict[str, str] = {}

    def hide(self, text: str) -> str:
        """Return the text in this alphabet."""
        return "".join(one if one.isspace() else self._letter(one) for one in text)

    def reveal(self, text: str) -> MarkedText:
        """Return a text with the characters of messages put back and marked."""
        originals = {letter: one for one, letter in self._letters.items()}
        return MarkedText("".join(originals.get(one, one) for one in text), (one in originals for one in text))

    def _letter(self, character: str) -> str:
        """Return the character that stands in for one of a message."""
        if character not in self._letters:
            number, first = len(self._letters), _PRIVATE[0]
            code = first[number] if number < len(first) else _PRIVATE[1][number - len(first)]
            self._letters[character] = chr(code)
        return self._letters[character]


def _hide_texts(value: Any, alphabet: _Alphabet) -> Any:
    """Return conversations, messages or parts with their texts in another alphabet."""
    if isinstance(value, (list, tuple)):
        return [_hide_texts(one, alphabet) for one in value]
    hidden = dict(value)
    for key in ("content", "text"):
        content = hidden.get(key)
        if isinstance(content, str):
            hidden[key] = alphabet.hide(content)
        elif isinstance(content, (list, tuple)):
            hidden[key] = _hide_texts(content, alphabet)
    return hidden


def tokenize_marked(
    tokenizer: TokenizersBackend, text: MarkedText, structure: Sequence[str], *, add_special_tokens: bool
) -> list[tuple[int, tuple[int, int]]]:
    """Tokenize a text without special tokens where its characters come from messages.

    Args:
        tokenizer: The tokenizer.
        text: The text.
        structure: Further tokens that count as special, such as the names of roles.
        add_special_tokens: Whether to add BOS.

    Returns:
        For every position the token id, and the span of characters that it came from, `(0, 0)` for an added BOS.

    Raises:
        ValueError: If the vocabulary of the tokenizer makes a special token out of plain text.
    """
    special = _special_tokens(tokenizer, structure)
    ids = frozenset(special.values())
    row = _encode(tokenizer, text, add_special_tokens=add_special_tokens)
    if not _forged(row, text, ids):
        return row
    guarded = _guarded(tokenizer, special)
    breaks: set[int] = set()
    while True:
        row = guarded.encode(text, breaks, add_special_tokens=add_special_tokens)
        forged = _forged(row, text, ids)
        if not forged:
            return row
        # The vocabulary itself makes the token out of plain text: cut that text in two.
        cuts = {(first + last) // 2 for first, last in forged if last - first > 1} - breaks
        if not cuts:
            first, last = forged[0]
            raise ValueError(
                f"A message must not hold {text[first:last]!r} with parse_special_tokens=False, got it: this "
                "tokenizer makes a special token out of it. Remove it from the message."
            )
        breaks |= cuts


def _special_tokens(tokenizer: TokenizersBackend, structure: Sequence[str]) -> dict[str, int]:
    """Return the ids of all special tokens, and of those tokens of `structure` that the vocabulary was extended by."""
    added = tokenizer.added_tokens_decoder
    wanted = {*structure, *tokenizer.all_special_tokens}
    return {token.content: number for number, token in added.items() if token.special or token.content in wanted}


def _forged(row: list[tuple[int, tuple[int, int]]], text: MarkedText, ids: frozenset[int]) -> list[tuple[int, int]]:
    """Return the spans of special tokens that come from messages, wholly or in part."""
    return [span for token, span in row if token in ids and any(text.foreign[slice(*span)])]


def _encode(
    tokenizer: TokenizersBackend, text: str, *, add_special_tokens: bool, split_special_tokens: bool = False
) -> list[tuple[int, tuple[int, int]]]:
    """Tokenize a text, and return for every position the id and the span of characters."""
    encoding = tokenizer(
        str(text),
        add_special_tokens=add_special_tokens,
        split_special_tokens=split_special_tokens,
        return_offsets_mapping=True,
    )
    return list(zip(encoding["input_ids"], map(tuple, encoding["offset_mapping"]), strict=True))


class _GuardedTokenizer:
    """A copy of a tokenizer that finds no special token in a text, but others that stand in for those of the template.

    A token that stands in splits the text as the special token does, so that the ids around it are the same.

    Args:
        tokenizer: The tokenizer.
        special: Special tokens and their ids.
    """

    def __init__(self, tokenizer: TokenizersBackend, special: Mapping[str, int]) -> None:
        self._tokenizer, self._special = copy.deepcopy(tokenizer), dict(special)
        # A random name, because the text of a message could contain any other one.
        name = secrets.token_hex(8)
        self._stand_ins = {token: f"<{name}{number}>" for number, token in enumerate(special)}
        self._break = f"<{name}>"
        added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        backend = self._tokenizer.backend_tokenizer
        # Tokens that are not flagged as special would be found in the text, whatever `split_special_tokens` says.
        backend.add_special_tokens(
            [_added(token, added[token], special=True) for token in special if not added[token].special]
        )
        backend.add_tokens(
            [_added(stand_in, added[token], special=False) for token, stand_in in self._stand_ins.items()]
        )
        backend.add_tokens([AddedToken(self._break, special=False, normalized=False)])
        self._ids = {backend.token_to_id(name): special[token] for token, name in self._stand_ins.items()}
        self._break_id = backend.token_to_id(self._break)
        longest_first = sorted(map(re.escape, special), key=len, reverse=True)
        self._pattern = re.compile("|".join(longest_first))

    def encode(
        self, text: MarkedText, breaks: set[int], *, add_special_tokens: bool
    ) -> list[tuple[int, tuple[int, int]]]:
        """Tokenize a text, and return for every position the id and the span of characters in `text`.

        Args:
            text: The text.
            breaks: Characters before which the text is split.
            add_special_tokens: Whether to add BOS.
        """
        characters = zip(text, text.foreign, strict=True)
        own_text = "".join("\0" if is_foreign else one for one, is_foreign in characters)
        own = {match.start(): match.end() for match in self._pattern.finditer(own_text)}
        # The pieces of the text with tokens that stand in, and for each of their characters the place in `text`.
        pieces: list[str] = []
        places: list[int] = []
        position = 0
        while position < len(text):
            end = own.get(position, position + 1)
            piece = self._stand_ins[text[position:end]] if position in own else text[position]
            if position in breaks:
                piece = self._break + piece
            pieces.append(piece)
            places.extend([position] * len(piece))
            position = end
        row = []
        encoded = _encode(
            self._tokenizer, "".join(pieces), add_special_tokens=add_special_tokens, split_special_tokens=True
        )
        for token, (first, last) in encoded:
            if token == self._break_id:
                continue
            start = places[first] if last > first else 0
            end = own.get(start, places[last - 1] + 1) if last > first else 0
            row.append((self._ids.get(token, token), (start, end)))
        return row


def _added(content: str, like: AddedToken, *, special: bool) -> AddedToken:
    """Return an added token that takes white space as another one does."""
    return AddedToken(
        content,
        special=special,
        normalized=like.normalized,
        lstrip=like.lstrip,
        rstrip=like.rstrip,
        single_word=like.single_word and special,
    )


# Guarded copies by tokenizer, each with the number of tokens and the special tokens that it was made for.
_COPIES: "WeakKeyDictionary[TokenizersBackend, tuple[int, dict[str, int], _GuardedTokenizer]]" = WeakKeyDictionary()


def _guarded(tokenizer: TokenizersBackend, special: dict[str, int]) -> _GuardedTokenizer:
    """Return the guarded copy of a tokenizer, which is made again if tokens were added."""
    known = _COPIES.get(tokenizer)
    if known is None or known[:2] != (len(tokenizer), special):
        known = (len(tokenizer), special, _GuardedTokenizer(tokenizer, special))
        _COPIES[tokenizer] = known
    return known[2]


__all__ = ["MarkedText", "render_marked", "tokenize_marked"]
