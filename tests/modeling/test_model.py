"""Reading sequences of text, images and codes, and generating text: padding, packing, beams, caches, kernels."""

import copy

import pytest
import torch
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from janus_hf import JanusProForConditionalGeneration


V, IMAGE, PAD, BOS = 96, 90, 91, 92  # of the tiny config
PER_IMAGE = 9


def images(count, seed=0, size=12):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def left_padded(*rows):
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


PLACEHOLDERS = [IMAGE] * PER_IMAGE
ONE = [BOS, *PLACEHOLDERS, 5, 6]
TWO = [BOS, 3, *PLACEHOLDERS, 4, *PLACEHOLDERS, 7, 8, 9]
NONE = [BOS, 10, 11]
MIXED = [BOS, *PLACEHOLDERS, 5, V + 1, V + 39, 6, V]


@torch.no_grad()
def logits(model, ids, pixel_values=None, **kwargs):
    return model(input_ids=torch.as_tensor(ids), pixel_values=pixel_values, **kwargs).logits


# --- what goes in


@pytest.mark.parametrize("token", [V + 40, -1])
def test_ids_of_neither_vocabulary_are_an_error(tiny_model, token):
    with pytest.raises(IndexError):
        logits(tiny_model, [[BOS, token]])


def test_a_image_changes_the_logits_after_it_only(tiny_model):
    first, second = (logits(tiny_model, [[*NONE, *PLACEHOLDERS, 5]], images(1, seed)) for seed in (0, 1))
    assert torch.equal(first[:, :3], second[:, :3])
    assert (first[:, 3:] - second[:, 3:]).abs().amax(dim=(0, 2)).min() > 0.1


def test_images_are_used_in_reading_order(tiny_model):
    both = images(2)
    swapped = logits(tiny_model, [TWO], both.flip(0))
    assert not torch.allclose(logits(tiny_model, [TWO], both), swapped, atol=0.1)
    ids, mask = left_padded(TWO, NONE, ONE)
    three = images(3, seed=4)
    together = logits(tiny_model, ids, three, attention_mask=mask)
    # Measured 3.3e-6 on logits up to 5; padded rows count their positions differently, which rotary embeddings undo.
    tolerance = {"atol": 3e-4, "rtol": 0}
    torch.testing.assert_close(together[0], logits(tiny_model, [TWO], three[:2])[0], **tolerance)
    torch.testing.assert_close(together[1, -3:], logits(tiny_model, [NONE])[0], **tolerance)
    torch.testing.assert_close(together[2, -len(ONE) :], logits(tiny_model, [ONE], three[2:])[0], **tolerance)


def test_joint_ids_are_embedded_by_their_kind(tiny_model):
    inner = tiny_model.model
    ids = torch.tensor([[0, V - 1, V, V + 39]])
    with torch.no_grad():
        embeds = inner.embed_ids(ids)
        assert torch.equal(embeds[0, :2], inner.get_input_embeddings().weight[[0, V - 1]])
        codes = inner.generation_aligner(inner.generation_embeddings.weight[[0, 39]])
    torch.testing.assert_close(embeds[0, 2:], codes, atol=1e-6, rtol=0)  # measured 3e-8
    assert embeds.unique(dim=1).shape[1] == 4


@pytest.mark.parametrize("placeholder", [V, V + 1000])
def test_a_placeholder_past_the_vocabulary(make_model, tiny_config, placeholder):
    """A tokenizer that had to add the placeholder may give it the id of a code. The id then means the placeholder."""
    usual, added = make_model(), make_model(tiny_config(image_token_id=placeholder))
    added.load_state_dict(usual.state_dict())
    ids = torch.tensor([MIXED[:-1]])
    with_added = torch.where(ids == IMAGE, placeholder, ids)
    assert torch.equal(logits(added, with_added, images(1)), logits(usual, ids, images(1)))


def test_embeddings_instead_of_ids(tiny_model):
    ids = torch.tensor([NONE])
    with torch.no_grad():
        embeds = tiny_model.model.embed_ids(ids)
        assert torch.equal(tiny_model(inputs_embeds=embeds).logits, logits(tiny_model, ids))
    generated = tiny_model.generate(inputs_embeds=embeds, max_new_tokens=4, do_sample=False)
    assert torch.equal(generated, tiny_model.generate(ids, max_new_tokens=4, do_sample=False)[:, 3:])


def test_encoded_images_instead_of_pixels(tiny_model):
    with torch.no_grad():
        encoded = {"image": tiny_model.get_image_features(images(2))}
    assert torch.equal(logits(tiny_model, [TWO], mm_encoder_outputs=encoded), logits(tiny_model, [TWO], images(2)))


@pytest.mark.parametrize(
    ("ids", "count", "message"),
    [
        ([TWO], 1, r"9 image placeholders for each of the 1 images .*, got 18 placeholders \(2 images\)"),
        ([ONE], 2, r"9 image placeholders for each of the 2 images .*, got 9 placeholders \(1 images\)"),
        ([ONE[:-3]], 1, r"for each of the 1 images .*, got 8 placeholders \(0\.888889 images\)"),
        ([NONE], 1, "for each of the 1 images .*, got 0 placeholders"),
        ([ONE], None, "for each of the 0 images .*, got 9 placeholders"),
    ],
)
def test_placeholders_and_images_must_agree(tiny_model, ids, count, message):
    pixel_values = {} if count is None else {"pixel_values": images(count)}
    for call in (tiny_model, tiny_model.generate):
        with pytest.raises(ValueError, match=message):
            call(input_ids=torch.tensor(ids), **pixel_values)


def test_other_bad_inputs(tiny_model, make_model, tiny_config):
    ids = torch.tensor([ONE])
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds must be given, got neither"):
        tiny_model(pixel_values=images(1))
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds must be given, got both"):
        tiny_model(input_ids=ids, inputs_embeds=torch.zeros(1, 12, 48), pixel_values=images(1))
    encoded = {"image": tiny_model.get_image_features(images(1))}
    with pytest.raises(ValueError, match="not both"):
        tiny_model(input_ids=ids, pixel_values=images(1), mm_encoder_outputs=encoded)
    with pytest.raises(ValueError, match="pass input_ids"):
        tiny_model(inputs_embeds=torch.zeros(1, 12, 48), pixel_values=images(1))
    with pytest.raises(ValueError, match="image_token_id"):
        make_model(tiny_config(image_token_id=None))(input_ids=ids, pixel_values=images(1))
    with pytest.raises(ValueError, match="the model's context of 160 tokens, got 161 tokens"):
        tiny_model(input_ids=torch.full((1, 161), 3))
    assert logits(tiny_model, torch.full((1, 160), 3)).shape == (1, 160, V)


def test_inputs_are_not_written_to(tiny_model):
    ids, pixel_values = torch.tensor([MIXED]), images(1)
    with torch.no_grad():
        embeds = tiny_model.model.embed_ids(ids)
    before = ids.clone(), pixel_values.clone(), embeds.clone()
    logits(tiny_model, ids, pixel_values)
    tiny_model(inputs_embeds=embeds)
    assert torch.equal(ids, before[0])
    assert torch.equal(pixel_values, before[1])
    assert torch.equal(embeds, before[2])


# --- what comes out


def test_logits_to_keep(tiny_model):
    full = logits(tiny_model, [ONE], images(1))
    assert full.shape == (1, len(ONE), V)
    for keep, positions in ((2, [-2, -1]), (torch.tensor([1, 5]), [1, 5])):
        kept = logits(tiny_model, [ONE], images(1), logits_to_keep=keep)
        # Measured 7.2e-7: a smaller matrix may be summed in another order.
        torch.testing.assert_close(kept, full[:, positions], atol=1e-5, rtol=0)


def test_optional_outputs(make_model):
    model = make_model()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(
            input_ids=torch.tensor([ONE]),
            pixel_values=images(1),
            output_hidden_states=True,
            output_attentions=True,
        )
        assert [tuple(h.shape) for h in outputs.hidden_states] == [(1, 12, 48)] * 3
        assert [tuple(a.shape) for a in outputs.attentions] == [(1, 4, 12, 12)] * 2
        assert torch.equal(outputs.image_hidden_states, model.get_image_features(images(1)).pooler_output)
        assert torch.equal(model.lm_head(outputs.hidden_states[-1]), outputs.logits)
        as_tuple = model(input_ids=torch.tensor([ONE]), pixel_values=images(1), return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], outputs.logits)


# --- kernels and precision


def test_eager_equals_sdpa(make_model):
    eager = make_model()
    eager.set_attn_implementation("eager")
    assert eager.model.language_model.config._attn_implementation == "eager"
    assert eager.model.vision_model.config._attn_implementation == "eager"
    sdpa = make_model()
    assert sdpa.config._attn_implementation == "sdpa"
    ids, mask = left_padded(TWO, ONE)
    real = mask.bool()
    found = logits(eager, ids, images(3), attention_mask=mask)[real]
    # Measured 8.5e-6 on logits up to 5; a scale or mask that differs between the kernels moves them by units.
    torch.testing.assert_close(found, logits(sdpa, ids, images(3), attention_mask=mask)[real], atol=5e-4, rtol=0)


def test_attention_kernel_can_be_chosen_when_loading(golden_checkpoint):
    model = JanusProForConditionalGeneration.from_pretrained(golden_checkpoint, attn_implementation="eager")
    assert model.model.language_model.config._attn_implementation == "eager"
    assert model.model.vision_model.config._attn_implementation == "eager"


def test_bfloat16_is_close_to_float32(golden_checkpoint, golden_model, golden):
    half = JanusProForConditionalGeneration.from_pretrained(golden_checkpoint, dtype=torch.bfloat16)
    pixel_values = golden["und.single.pixel_values"].flatten(0, 1)
    full_logits = logits(golden_model, golden["und.single.input_ids"], pixel_values)
    found = logits(half, golden["und.single.input_ids"], pixel_values)  # float32 pixels are accepted
    assert found.dtype == torch.bfloat16
    # Relative errors of all values: measured 0.009 and 0.019. The weights are bfloat16 numbers: only activations are
    # rounded, to 2**-9 each.
    assert (found.float() - full_logits).norm() / full_logits.norm() < 0.02
    codes = golden["vq.encode_ids"]
    pixels, full_pixels = half.decode_image_ids(codes), golden_model.decode_image_ids(codes)
    assert pixels.dtype == torch.bfloat16
    assert (pixels.float() - full_pixels).norm() / full_pixels.norm() < 0.04
    generated = half.generate_images(golden["gen.input_tokens"][::2], generator=torch.Generator().manual_seed(0))
    assert generated.shape == (2, 36)


# --- packing


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("training", [False, True])
def test_packed_documents_do_not_see_each_other(make_model, kernel, training):
    model = make_model().train(training)
    model.set_attn_implementation(kernel)
    documents = [MIXED, NONE, TWO]
    packed = torch.tensor([[token for document in documents for token in document]])
    positions = torch.cat([torch.arange(len(document)) for document in documents])[None]
    three = images(3)
    found = logits(model, packed, three, position_ids=positions)[0].split([len(d) for d in documents])
    alone = [
        logits(model, [MIXED], three[:1])[0],
        logits(model, [NONE])[0],
        logits(model, [TWO], three[1:])[0],
    ]
    for one, other in zip(found, alone, strict=True):
        # Measured 6.0e-6; with a leak between the documents the logits differ by up to 6.
        torch.testing.assert_close(one, other, atol=5e-4, rtol=0)


# --- writing text


def test_cached_equals_uncached(tiny_model):
    ids = torch.tensor([MIXED])
    generated = tiny_model.generate(ids, pixel_values=images(1), max_new_tokens=6, do_sample=False)
    plain = ids
    for _ in range(6):
        plain = torch.cat([plain, logits(tiny_model, plain, images(1))[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, plain)


def generate_together_and_alone(model, **settings):
    """Return five new tokens for each of three prompts, generated in one batch and one by one."""
    settings = {"max_new_tokens": 5, "do_sample": False, **settings}
    ids, mask = left_padded(TWO, NONE, ONE)
    three = images(3)
    together = model.generate(ids, attention_mask=mask, pixel_values=three, **settings)[:, -5:]
    alone = [
        model.generate(torch.tensor([TWO]), pixel_values=three[:2], **settings)[:, -5:],
        model.generate(torch.tensor([NONE]), **settings)[:, -5:],
        model.generate(torch.tensor([ONE]), pixel_values=three[2:], **settings)[:, -5:],
    ]
    return together, torch.cat(alone)


@pytest.mark.parametrize("cache_implementation", ["dynamic", "static"])
def test_a_batch_answers_like_singles(tiny_model, cache_implementation):
    settings = {"cache_implementation": cache_implementation, "disable_compile": True}
    together, alone = generate_together_and_alone(tiny_model, **settings)
    assert torch.equal(together, alone)
    assert len({tuple(row) for row in together.tolist()}) == 3


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_beams_with_several_images_equal_singles(tiny_model, settings):
    together, alone = generate_together_and_alone(tiny_model, **settings)
    assert torch.equal(together, alone)


def test_several_samples_of_several_images(tiny_model):
    """With top_k 1 every sample is the greedy answer: each must have read its own images in order."""
    greedy = tiny_model.generate(torch.tensor([TWO]), pixel_values=images(2), max_new_tokens=5, do_sample=False)
    sampled = tiny_model.generate(
        torch.tensor([TWO]),
        pixel_values=images(2),
        max_new_tokens=5,
        do_sample=True,
        top_k=1,
        num_return_sequences=3,
    )
    assert torch.equal(sampled, greedy.expand(3, -1))


def test_sampling_follows_the_seed(tiny_model):
    def sample(seed):
        torch.manual_seed(seed)
        return tiny_model.generate(
            torch.tensor([ONE]), pixel_values=images(1), max_new_tokens=8, do_sample=True, temperature=2.0, top_k=0
        )

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


def test_streaming(tiny_model):
    class Streamer(BaseStreamer):
        def __init__(self):
            self.ids, self.ended = [], False

        def put(self, value):
            self.ids += value.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Streamer()
    generated = tiny_model.generate(
        torch.tensor([ONE]), pixel_values=images(1), max_new_tokens=5, do_sample=False, streamer=streamer
    )
    assert streamer.ids == generated[0].tolist()
    assert streamer.ended


def test_scores_and_stopping(tiny_model):
    greedy = tiny_model.generate(torch.tensor([NONE]), max_new_tokens=6, do_sample=False)
    stop = int(greedy[0, 5])
    stopped = tiny_model.generate(
        torch.tensor([NONE]),
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=stop,
        output_logits=True,
        return_dict_in_generate=True,
    )
    length = 3 + greedy[0, 3:].tolist().index(stop) + 1
    assert torch.equal(stopped.sequences, greedy[:, :length])
    assert len(stopped.logits) == length - 3
    torch.testing.assert_close(
        stopped.logits[0], logits(tiny_model, [NONE])[:, -1], atol=1e-4, rtol=0
    )  # measured 4.8e-7


def test_text_generation_leaves_the_two_vocabularies_apart(tiny_model):
    """`generate` generates text tokens even after image tokens."""
    generated = tiny_model.generate(torch.tensor([MIXED]), pixel_values=images(1), max_new_tokens=10, do_sample=True)
    assert generated[:, len(MIXED) :].max() < V


def test_assisted_decoding(tiny_model):
    ids = torch.tensor([[BOS, *PLACEHOLDERS, 5, 6, 7, 8, 5, 6]])
    settings = {"pixel_values": images(1), "max_new_tokens": 8, "do_sample": False}
    plain = tiny_model.generate(ids, **settings)
    assert torch.equal(tiny_model.generate(ids, prompt_lookup_num_tokens=3, **settings), plain)


def test_placeholders_proposed_after_the_prompt_are_ordinary_ids(tiny_model):
    """Assisted decoding may copy placeholders out of the prompt."""
    with torch.no_grad():
        cache = tiny_model(input_ids=torch.tensor([NONE]), use_cache=True).past_key_values
        found = tiny_model(input_ids=torch.tensor([[5, IMAGE, 6]]), past_key_values=cache).logits
        embeds = tiny_model.model.embed_ids(torch.tensor([[*NONE, 5, IMAGE, 6]]))
        expected = tiny_model(inputs_embeds=embeds).logits[:, 3:]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)  # measured 4.7e-6


def test_compiles_in_one_graph(make_model):
    model = make_model()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")
    ids = torch.tensor([MIXED])
    with torch.no_grad():
        found = compiled(input_ids=ids, pixel_values=images(1), use_cache=False).logits
    torch.testing.assert_close(found, logits(model, ids, images(1)), atol=1e-4, rtol=0)  # measured 0


def test_every_part_lets_the_kernel_be_chosen(make_model):
    """flash-attn is not installed here; a part that does not declare it would make the whole model refuse it."""
    model = make_model()
    for kernel in ("eager", "sdpa", "eager"):
        model.set_attn_implementation(kernel)
        assert model.model.language_model.config._attn_implementation == kernel
    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    assert len(parts) == 5
    assert all(part._supports_sdpa and part._supports_flash_attn for part in parts)
