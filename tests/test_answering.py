"""Answers do not depend on the other conversations of the batch, and end where the model's context is full."""

import numpy as np
import pytest
import torch

from janus_hf import JanusProPipeline
from janus_hf.answering import answer
from janus_hf.assets import DEFAULT_MODEL
from janus_hf.evaluation.benchmarks import protocol
from janus_hf.shapes import ask, picture, random_scene


@pytest.fixture(scope="module")
def pipe():
    return JanusProPipeline.from_pretrained(DEFAULT_MODEL, dtype=torch.float32)


def _rng():
    return np.random.default_rng(3)


def _questions(count):
    rng = _rng()
    scenes = [random_scene(rng) for _ in range(count)]
    return [(picture(scene), ask(scene, rng)) for scene in scenes]


def test_batched_answers_are_those_of_single_questions(pipe):
    asked = _questions(12)
    conversations = [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": q.question}]}]
        for image, q in asked
    ]
    conversations[3] = [{"role": "user", "content": "is there a red circle"}]  # no image
    conversations[7] = protocol.paper_conversation("\nwhat colour is the circle", [asked[0][0], asked[1][0]])
    together = answer(pipe.model, pipe.processor, conversations, max_new_tokens=6)
    assert together == [answer(pipe.model, pipe.processor, [one], max_new_tokens=6)[0] for one in conversations]
    assert len(set(together)) > 3  # equality of constants would prove little


def test_rows_end_where_their_own_context_does(pipe, monkeypatch):
    """A short row has more room for an answer than a long one, and the batch changes neither."""
    monkeypatch.setattr(pipe.model.config.text_config, "max_position_embeddings", 40)
    long = protocol.paper_conversation("is there a red circle and a blue square and a green triangle")
    short = protocol.paper_conversation("red")
    options = {"max_new_tokens": 2048, "suppress_tokens": [pipe.processor.eos_token_id]}
    both = answer(pipe.model, pipe.processor, [long, short], **options)
    assert both == [answer(pipe.model, pipe.processor, [one], **options)[0] for one in (long, short)]

    def tokens(text):
        return len(pipe.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    assert tokens(both[0]) < tokens(both[1]) < 40


def test_no_room_for_an_answer(pipe):
    scene = picture(random_scene(_rng()))
    fits, full = protocol.paper_conversation("\nred", [scene]), protocol.paper_conversation("\nred", [scene] * 4)
    with pytest.raises(ValueError, match=r"Conversation 1 takes 2\d\d tokens and the model's context holds 256"):
        answer(pipe.model, pipe.processor, [fits, full])
