"""Rows whose text has tokens that the model lacks, and processors that read no special tokens in messages."""

import copy
from typing import Any

import pytest

from janus_hf import JanusProForConditionalGeneration, JanusProProcessor
from janus_hf.data import prepare_rows


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        (["messages"], lambda word: {"messages": _turns("hi", word)}),
        (["text"], lambda word: {"text": f"a {word}"}),
        (["prompt", "image"], lambda word: {"prompt": word}),
    ],
    ids=["conversation", "text", "drawing"],
)
def test_tokens_that_the_model_lacks(
    model: JanusProForConditionalGeneration, processor: JanusProProcessor, make_image: Any, columns: Any, row: Any
) -> None:
    """Their ids are those of image codes, and the model would be trained on these."""
    processor, rows = copy.deepcopy(processor), model.config.text_config.vocab_size
    processor.tokenizer.add_tokens([f"<word{n}>" for n in range(rows - len(processor.tokenizer) + 3)])
    words = processor.tokenizer.convert_ids_to_tokens([rows - 1, rows + 1])
    known, unknown = ({"image": make_image(1), **row(word)} for word in words)
    for one in (known, unknown):
        if "image" not in columns:
            del one["image"]
    assert len(prepare_rows([known], model, processor)) == 1
    with pytest.raises(ValueError, match=rf"must have ids below {rows}, .*got \[{rows + 1}\]"):
        prepare_rows([known, unknown], model, processor)


def test_a_processor_without_special_tokens_in_messages(
    model: JanusProForConditionalGeneration, processor: JanusProProcessor
) -> None:
    processor = copy.copy(processor)
    processor.parse_special_tokens = False
    with pytest.raises(ValueError, match="`processor.parse_special_tokens` must be True to prepare"):
        prepare_rows([{"text": "hi"}], model, processor)


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
