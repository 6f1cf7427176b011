"""Every keyword of a model's call is used, or refused by name."""

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import TransformersKwargs

from janus_hf.modeling.bare_model import LANGUAGE_KEYWORDS, REFUSED_KEYWORDS
from janus_hf.modeling.vision_encoder import VISION_KEYWORDS


V, IMAGE, BOS, PER_IMAGE = 96, 90, 92, 9  # of the tiny config
IDS = torch.tensor([[BOS, 3, 4, 5, 6, 7]])
LABELS = torch.tensor([[-100, 3, 4, 5, V + 1, 7]])


def images(count, seed=0):
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def parts(model):
    """Every public class with a `forward`, with arguments that it takes."""
    return {
        "JanusProForConditionalGeneration": (model, {"input_ids": IDS}),
        "JanusProModel": (model.model, {"input_ids": IDS}),
        "JanusProVisionModel": (model.model.vision_model, {"pixel_values": images(1)}),
        "get_image_features": (model.get_image_features, {"pixel_values": images(1)}),
        "get_image_features of the bare model": (model.model.get_image_features, {"pixel_values": images(1)}),
        "JanusProVQModel": (model.model.vqmodel, {"pixel_values": torch.zeros(1, 3, 8, 8)}),
    }


PARTS = [
    "JanusProForConditionalGeneration",
    "JanusProModel",
    "JanusProVisionModel",
    "get_image_features",
    "get_image_features of the bare model",
    "JanusProVQModel",
]


# --- the table


def test_every_keyword_of_transformers_is_sorted():
    """If this fails, transformers has a new keyword: pass it on or refuse it, in the table of `bare_model.py`."""
    own = {"num_items_in_batch", "position_ids"}
    assert set(TransformersKwargs.__annotations__) <= LANGUAGE_KEYWORDS | REFUSED_KEYWORDS.keys() | own
    assert not LANGUAGE_KEYWORDS & REFUSED_KEYWORDS.keys()


@pytest.mark.parametrize("name", PARTS)
def test_unknown_keywords(tiny_model, name):
    part, arguments = parts(tiny_model)[name]
    with pytest.raises(TypeError, match="foo"):
        part(**arguments, foo=1)
    if name != "JanusProVQModel":  # its signature lists all
        part(**arguments, foo=None)


@pytest.mark.parametrize("name", sorted(REFUSED_KEYWORDS))
def test_refused_keywords(tiny_model, name):
    for part in (tiny_model, tiny_model.model):
        with pytest.raises(ValueError, match=f"`{name}` must be left out of `forward`, got 3"):
            part(input_ids=IDS, **{name: 3})


@torch.no_grad()
def test_keywords_that_are_passed_on(make_model):
    model = make_model()
    model.set_attn_implementation("eager")
    plain = model(input_ids=IDS)
    assert len(model(input_ids=IDS, output_hidden_states=True).hidden_states) == 3
    assert len(model(input_ids=IDS, output_attentions=True).attentions) == 2
    both_ways = model(input_ids=IDS, is_causal=False).logits
    assert not torch.allclose(both_ways[:, 0], plain.logits[:, 0], atol=0.1)
    kernels = {name: torch.tensor([0, 6], dtype=torch.int32) for name in ("cu_seq_lens_q", "cu_seq_lens_k")}
    lengths = {"max_length_q": 6, "max_length_k": 6}
    positions = torch.arange(6)[None]
    assert torch.equal(model(input_ids=IDS, position_ids=positions, **kernels, **lengths).logits, plain.logits)
    with pytest.raises(ValueError, match="`position_ids` must be given with `cu_seq_lens_q`"):
        model(input_ids=IDS, **kernels, **lengths)
    for name in VISION_KEYWORDS - {"interpolate_pos_encoding"}:
        assert getattr(model.get_image_features(images(1), **{name: True}), name.removeprefix("output_"))
    larger = torch.zeros(1, 3, 16, 16)
    assert model.get_image_features(larger, interpolate_pos_encoding=True).pooler_output.shape == (1, 16, 48)


# --- what comes out


@pytest.mark.parametrize("by_config", [False, True])
def test_tuples(make_model, tiny_config, by_config):
    model = make_model(tiny_config(return_dict=False)) if by_config else make_model()
    as_tuple = {} if by_config else {"return_dict": False}
    for part in (model, model.model):
        whole = part.get_image_features(images(2), return_dict=True)
        assert isinstance(whole, BaseModelOutputWithPooling)
        found = part.get_image_features(images(2), **as_tuple)
        assert isinstance(found, tuple)
        assert torch.equal(found[0], whole.last_hidden_state)
        assert torch.equal(found[1], whole.pooler_output)
        assert isinstance(part(input_ids=IDS, **as_tuple), tuple)
    ids = torch.tensor([[BOS, *[IMAGE] * PER_IMAGE, 5]])
    with torch.no_grad():
        answer = model(input_ids=ids, pixel_values=images(1), **as_tuple)
        assert torch.equal(answer[0], model(input_ids=ids, pixel_values=images(1), return_dict=True).logits)
    assert model.generate(ids, pixel_values=images(1), max_new_tokens=2, do_sample=False).shape == (1, 13)


# --- labels


@torch.no_grad()
def test_shifted_labels(tiny_model):
    plain = tiny_model(input_ids=IDS, labels=LABELS)
    shifted = torch.cat([LABELS[:, 1:], torch.full((1, 1), -100)], dim=1)
    others = torch.where(shifted >= 0, 50, -100)
    for labels in ({}, {"labels": LABELS}, {"labels": others}):
        found = tiny_model(input_ids=IDS, shift_labels=shifted, **labels)
        for name in ("loss", "text_loss", "image_loss", "num_text_labels", "num_image_labels"):
            torch.testing.assert_close(found[name], plain[name], atol=1e-6, rtol=0)
    assert (tiny_model(input_ids=IDS, labels=LABELS, shift_labels=others).loss - plain.loss).abs() > 0.01
    halved = tiny_model(input_ids=IDS, shift_labels=shifted, num_items_in_batch=10).loss
    torch.testing.assert_close(halved, plain.loss / 2, atol=1e-6, rtol=0)


def test_shifted_labels_see_the_last_position(tiny_model):
    """Under context parallelism the last label of a slice is that of the next slice's first token."""
    last = torch.tensor([[-100] * 5 + [9]])
    assert tiny_model(input_ids=IDS, shift_labels=last).num_text_labels == 1


@pytest.mark.parametrize("name", ["labels", "shift_labels"])
def test_labels_of_another_shape(tiny_model, name):
    with pytest.raises(ValueError, match=r"`labels` must be of the shape of the sequence, \(1, 6\), got \(1, 5\)"):
        tiny_model(input_ids=IDS, **{name: LABELS[:, 1:]})


@torch.no_grad()
def test_logits_beside_labels(make_model):
    """In training they are left out, because they are large; an evaluation may compute metrics of them."""
    model = make_model()
    expected = model(input_ids=IDS).logits
    assert torch.equal(model(input_ids=IDS, labels=LABELS).logits, expected)
    assert model(input_ids=IDS, labels=LABELS, skip_logits=True).logits is None
    assert model(input_ids=IDS, skip_logits=True).logits is None
    loss = model(input_ids=IDS, labels=LABELS).loss
    model.train()
    assert model(input_ids=IDS, labels=LABELS).logits is None
    assert torch.equal(model(input_ids=IDS, labels=LABELS, skip_logits=False).logits, expected)
    assert torch.equal(model(input_ids=IDS, labels=LABELS).loss, loss)
    with pytest.raises(TypeError, match="`skip_logits` must be True or False"):
        model(input_ids=IDS, labels=LABELS, skip_logits="yes")


# --- packed documents


FIRST, SECOND = [BOS, 3, 4], [BOS, 8, 9, 10]
PACKED = {"input_ids": torch.tensor([FIRST + SECOND]), "position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3]])}


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("mask", [None, torch.ones(1, 7, dtype=torch.long), torch.ones(1, 7, dtype=torch.bool)])
@torch.no_grad()
def test_packed_documents_do_not_see_each_other_beside_a_mask(make_model, kernel, mask):
    model = make_model()
    model.set_attn_implementation(kernel)
    found = model(**PACKED, attention_mask=mask).logits
    alone = torch.cat([model(input_ids=torch.tensor([document])).logits for document in (FIRST, SECOND)], dim=1)
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=0)


def test_packed_documents_that_would_see_each_other(tiny_model):
    padded = torch.tensor([[1, 1, 1, 1, 1, 1, 0]])
    with pytest.raises(ValueError, match="`attention_mask` must be left out with `position_ids` that start again"):
        tiny_model(**PACKED, attention_mask=padded)
    with pytest.raises(ValueError, match="`use_cache` must be False"):
        tiny_model(**PACKED, use_cache=True)
    cache = tiny_model(input_ids=IDS, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="`past_key_values` None"):
        tiny_model(**PACKED, past_key_values=cache)


@torch.no_grad()
def test_positions_of_padded_rows_are_not_packed(tiny_model):
    """`generate` counts positions without the padding, so they start where the padding ends."""
    ids, mask = torch.tensor([[91, 91, BOS, 3, 4]]), torch.tensor([[0, 0, 1, 1, 1]])
    positions = torch.tensor([[1, 1, 0, 1, 2]])
    found = tiny_model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, 2:]
    torch.testing.assert_close(found, tiny_model(input_ids=ids[:, 2:]).logits, atol=1e-4, rtol=0)


# --- ids and length


@pytest.mark.parametrize("token", [V + 40, V + 1000, -1])
def test_ids_of_neither_vocabulary_are_named(tiny_model, token):
    with pytest.raises(IndexError, match=rf"in \[0, 96\) or of image codes in \[96, 136\), got \[{token}\]"):
        tiny_model(input_ids=torch.tensor([[BOS, token]]))


def test_the_context_counts_the_cache(tiny_model):
    cache = tiny_model(input_ids=torch.full((1, 150), 3), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="the model's context of 160 tokens, got 161"):
        tiny_model(input_ids=torch.full((1, 11), 3), past_key_values=cache)
    assert tiny_model(input_ids=torch.full((1, 10), 3), past_key_values=cache).logits.shape == (1, 10, V)
