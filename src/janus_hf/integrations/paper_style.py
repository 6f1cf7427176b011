"""Functions that the adapters for lmms-eval and VLMEvalKit share to evaluate Janus-Pro as its authors did."""

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
    """Return the answers to conversations, with the role names and settings of Janus-Pro's authors.

    The authors decode greedily, at most 2048 new tokens.

    Args:
        pipe: Pipeline whose model answers.
        conversations: Conversations whose prompts come from `evaluation.benchmarks.protocol`.
        system_prompt: System prompt of all conversations. The authors use "" except for MM-Vet.
        generate_kwargs: Arguments of `answering.answer` that replace the authors' settings.
    """
    settings = {"max_new_tokens": protocol.MAX_NEW_TOKENS} | generate_kwargs
    return answer(
        pipe.model, pipe.processor, conversations, system_prompt=system_prompt, roles=protocol.ROLES, **settings
    )


def lettered_options(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a multiple-choice question by letter.

    They are those columns of the question's row whose name is a capital letter.
    """
    return {letter: row[letter] for letter in string.ascii_uppercase if letter in row}


__all__ = ["answer_as_authors", "lettered_options"]
