"""The settings with which the authors of Janus-Pro evaluated it, for the adapters of both harnesses."""

import string
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..answering import Conversation, answer
from ..evaluation.benchmarks import protocol


if TYPE_CHECKING:
    from ..pipelines import JanusProPipeline


def answer_as_authors(
    pipe: "JanusProPipeline", conversations: Sequence[Conversation], *, system_prompt: str, **generate_kwargs: Any
) -> list[str]:
    """Answer conversations with the authors' names of the roles and their settings: greedy, at most 2048 new tokens.

    Args:
        pipe: The pipeline.
        conversations: Conversations whose prompts come from `evaluation.benchmarks.protocol`.
        system_prompt: "" except for MM-Vet.
        generate_kwargs: Arguments of `answering.answer` that replace the authors' settings.
    """
    settings = {"max_new_tokens": protocol.MAX_NEW_TOKENS} | generate_kwargs
    return answer(
        pipe.model, pipe.processor, conversations, system_prompt=system_prompt, roles=protocol.ROLES, **settings
    )


def lettered_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a row that are named by a capital letter: the options of a multiple-choice question."""
    return {letter: row[letter] for letter in string.ascii_uppercase if letter in row}


__all__ = ["answer_as_authors", "lettered_options"]
