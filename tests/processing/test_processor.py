"""`JanusProProcessor` gives the original's batches and refuses calls whose texts and images do not fit."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import JanusConfig, JanusForConditionalGeneration, pipeline

from janus_hf import JanusProImageProcessor, JanusProProcessor
from janus_hf.processing.prompts import JANUS_1_3B_ROLES


IMAGES = Path(__file__).parents[1] / "goldens" / "images"
PLACEHOLDER = "<image_placeholder>"
TO_BATCH = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}


@pytest.fixture(scope="module")
def shared(golden_checkpoint: Path) -> JanusProProcessor:
    return JanusProProcessor.from_pretrained(golden_checkpoint)


@pytest.fixture
def processor(shared: JanusProProcessor) -> JanusProProcessor:
    """Return a copy, because some tests change the settings."""
    return copy.copy(shared)


def conversation(manifest: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return a golden conversation as the original's messages, with the "images" key that its README shows."""
    first, *rest = manifest["strings"][name]["messages"]
    paths = [str(IMAGES / f"{image}.png") for image in manifest["strings"][name]["images"]]
    return [{**first, "images": paths}, *rest]


def golden_image(name: str = "square") -> Image.Image:
    return Image.open(IMAGES / f"{name}.png")


def test_single_conversation_equals_the_originals(
    processor: JanusProProcessor, golden: dict[str, torch.Tensor], manifest: dict[str, Any]
) -> None:
    original = conversation(manifest, "conv1")
    content = [
        {"type": "image", "path": original[0]["images"][0]},
        {"type": "text", "text": "Describe the image in detail."},
    ]
    for messages in (original, original[:-1], [{"role": "user", "content": content}]):
        before = copy.deepcopy(messages)
        batch = processor.apply_chat_template(messages, **TO_BATCH)
        assert messages == before
        assert set(batch) == {"input_ids", "attention_mask", "pixel_values"}
        for key in ("input_ids", "attention_mask"):
            assert batch[key].dtype == torch.int64
            assert torch.equal(batch[key], golden[f"und.single.{key}"])
        assert torch.equal(batch["pixel_values"], golden["und.single.pixel_values"][0])


def test_mixed_length_batch_equals_the_originals(
    processor: JanusProProcessor, golden: dict[str, torch.Tensor], manifest: dict[str, Any]
) -> None:
    batch = processor.apply_chat_template(
        [conversation(manifest, "conv1"), conversation(manifest, "conv2")], **TO_BATCH
    )
    for key in ("input_ids", "attention_mask"):
        assert torch.equal(batch[key], golden[f"und.batch.{key}"])
    expected = golden["und.batch.pixel_values"]
    assert torch.equal(batch["pixel_values"], torch.stack([expected[0, 0], expected[1, 0], expected[1, 1]]))


def test_rendered_text_goes_through_the_call(
    processor: JanusProProcessor, golden: dict[str, torch.Tensor], manifest: dict[str, Any]
) -> None:
    text = processor.apply_chat_template(conversation(manifest, "conv1"))
    assert text == manifest["strings"]["conv1"]["sft_format"]
    for given in (text, [text], processor.tokenizer.bos_token + text):
        assert torch.equal(processor(given, golden_image("wide")).input_ids, golden["und.single.input_ids"])
    ids = processor.apply_chat_template(conversation(manifest, "conv1"), tokenize=True)
    assert torch.equal(ids, golden["und.single.input_ids"])


def test_generation_prompts_equal_the_originals(
    processor: JanusProProcessor, golden: dict[str, torch.Tensor], manifest: dict[str, Any]
) -> None:
    prompts = manifest["strings"]["t2i"]["prompts"]
    batch = processor.prepare_image_generation(prompts[:2])
    assert set(batch) == {"input_ids", "attention_mask"}
    assert torch.equal(batch.input_ids, golden["gen.input_tokens"][::2])
    assert batch.attention_mask.all()
    padded = processor.prepare_image_generation(prompts)
    for row, mask, prompt in zip(padded.input_ids, padded.attention_mask, prompts, strict=True):
        alone = processor.prepare_image_generation(prompt).input_ids[0]
        assert torch.equal(row[mask.bool()], alone)
        assert row[mask == 0].eq(processor.pad_token_id).all()
        assert mask.diff().ge(0).all()  # padding on the left
    assert padded.attention_mask[2, 0] == 0


def test_negative_prompts(processor: JanusProProcessor) -> None:
    one_for_all = processor.prepare_image_generation(["a cat", "the blue sea"], "ugly")
    one_each = processor.prepare_image_generation(["a cat", "the blue sea"], ["ugly", "ugly"])
    alone = processor.prepare_image_generation("ugly")
    for batch in (one_for_all, one_each):
        assert torch.equal(batch.negative_input_ids, alone.input_ids.expand(2, -1))
        assert torch.equal(batch.negative_attention_mask, alone.attention_mask.expand(2, -1))
        assert torch.equal(batch.input_ids, processor.prepare_image_generation(["a cat", "the blue sea"]).input_ids)


def test_bad_prompts(processor: JanusProProcessor) -> None:
    for prompts, negatives in (([], None), (["a"], [])):
        with pytest.raises(ValueError, match="must hold at least one string"):
            processor.prepare_image_generation(prompts, negatives)
    with pytest.raises(ValueError, match="one for each of the 3 prompts, got 2"):
        processor.prepare_image_generation(["a", "b", "c"], ["x", "y"])
    for prompts, negatives in ((3, None), ([3], None), (["a"], [None])):
        with pytest.raises(TypeError, match="must be a string or a list of strings"):
            processor.prepare_image_generation(prompts, negatives)


def test_roles_of_janus_1_3b(processor: JanusProProcessor) -> None:
    processor.roles = JANUS_1_3B_ROLES
    messages = [{"role": "user", "content": "hi"}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, system_prompt="")
    assert text == "User: hi\n\nAssistant:"
    prompt = processor.prepare_image_generation("a cat").input_ids[0]
    assert processor.decode(prompt[1:]) == "User: a cat\n\nAssistant:<begin_of_image>"
    text = processor.apply_chat_template(messages, roles=("<|User|>", "<|Assistant|>"), system_prompt=None)
    assert text == "<|User|>: hi"


def test_system_prompt_can_be_switched_off(processor: JanusProProcessor) -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert processor.apply_chat_template(messages).startswith("You are a helpful")
    for off in ("", None):
        assert processor.apply_chat_template(messages, system_prompt=off) == "<|User|>: hi"
        processor.system_prompt = off
        assert processor.apply_chat_template(messages) == "<|User|>: hi"
        processor.system_prompt = "Be brief."
        assert processor.apply_chat_template(messages) == "Be brief.\n\n<|User|>: hi"
    empty = [{"role": "system", "content": ""}, *messages]
    assert processor.apply_chat_template(empty) == "<|User|>: hi"


def test_a_custom_template_is_used_and_dropped_again(processor: JanusProProcessor) -> None:
    messages, default = [{"role": "user", "content": "hi"}], processor.chat_template
    processor.chat_template = "{{ bos_token }}{{ messages[0]['content'] }}"
    ids = processor.apply_chat_template(messages, **TO_BATCH).input_ids[0].tolist()
    assert ids == processor.tokenizer.encode("hi")  # one BOS, although the template writes it
    processor.chat_template = None
    assert processor.chat_template == default


def test_many_images_and_turns(processor: JanusProProcessor) -> None:
    names = ["wide", "tall", "tiny", "thin", "square"]
    turns: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        parts = [{"type": "image", "image": golden_image(name)}, {"type": "text", "text": f"{index}?"}]
        turns += [{"role": "user", "content": parts}, {"role": "assistant", "content": f"{index}!"}]
    batch = processor.apply_chat_template(turns, **TO_BATCH)
    assert torch.equal(
        batch.pixel_values, processor.image_processor([golden_image(name) for name in names]).pixel_values
    )
    per_image = processor.num_image_tokens
    ids = batch.input_ids[0]
    assert ids.eq(processor.image_token_id).sum() == 5 * per_image
    starts = ids.eq(processor.boi_token_id).nonzero().flatten()
    for start in starts:
        assert ids[start + 1 : start + 1 + per_image].eq(processor.image_token_id).all()
        assert ids[start + 1 + per_image] == processor.eoi_token_id
    assert len(starts) == 5


def test_a_batch_row_equals_the_text_alone(processor: JanusProProcessor) -> None:
    texts = [f"{PLACEHOLDER}\nshort", "no image at all", f"{PLACEHOLDER} and {PLACEHOLDER}"]
    images = [[golden_image("wide")], [], [golden_image("tall"), golden_image("tiny")]]
    batch = processor(texts, images)
    assert torch.equal(batch.pixel_values, processor(texts, [one for own in images for one in own]).pixel_values)
    for row, mask, text, own in zip(batch.input_ids, batch.attention_mask, texts, images, strict=True):
        assert torch.equal(row[mask.bool()], processor(text, own).input_ids[0])
    assert "pixel_values" not in processor(texts[1])
    assert "pixel_values" not in processor(texts[1], images=[])
    assert set(processor(images=golden_image())) == {"pixel_values"}
    assert torch.equal(processor(texts, [images[0], None, images[2]]).input_ids, batch.input_ids)


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        (f"{PLACEHOLDER} a", None, "got 1 placeholders and 0 images: pass one image"),
        ("a", [golden_image()], "in the text, got 0 placeholders and 1 images"),
        (["a", f"{PLACEHOLDER}"], [golden_image()] * 2, "in the 2 texts together, got 1 placeholders and 2 images"),
        ([f"{PLACEHOLDER}", "a"], [[], [golden_image()]], "in text 0, got 1 placeholders and 0 images"),
        ([f"{PLACEHOLDER}", "a"], [[golden_image()]], r"one list per text, 2 in all, got 1 items"),
        ([f"{PLACEHOLDER}", f"{PLACEHOLDER}"], [[golden_image()], golden_image()], "one list per text"),
        ([], None, "must hold at least one string"),
        (None, None, "`text` or `images` must be given"),
    ],
)
def test_counts_must_match(text: Any, images: Any, message: str, processor: JanusProProcessor) -> None:
    with pytest.raises(ValueError, match=message):
        processor(text, images)


def test_bad_calls(processor: JanusProProcessor) -> None:
    with pytest.raises(TypeError, match="`text` must be a string"):
        processor([["a"]])
    with pytest.raises(TypeError, match="paddding"):
        processor("a", paddding=True)
    with pytest.raises(ValueError, match="`generation_mode` must be 'text' or 'image'"):
        processor("a", generation_mode="video")
    with pytest.raises(ValueError, match="got videos or audio"):
        processor("a", videos=[1])
    with pytest.raises(ValueError, match="got 'tool'"):
        processor.apply_chat_template([{"role": "tool", "content": "hi"}])
    with pytest.raises(ValueError, match="`conversation` must be a non-empty list"):
        processor.apply_chat_template([])
    for broken in ([[]], [[{"role": "user", "content": "a"}], []], [[{"role": "user", "content": "a"}], "b"]):
        with pytest.raises(ValueError, match="`conversation` must be a non-empty list"):
            processor.apply_chat_template(broken)
    lost = [{"role": "user", "content": [{"type": "image", "path": "nowhere.png"}]}]
    with pytest.raises(FileNotFoundError, match="`source` must be the path"):
        processor.apply_chat_template(lost, tokenize=True)


def test_padding_and_tensor_options(processor: JanusProProcessor) -> None:
    texts = ["a", "abc abc"]
    right = processor(texts, padding_side="right", pad_to_multiple_of=8)
    assert right.input_ids.shape[1] % 8 == 0
    assert right.attention_mask[0].tolist() == sorted(right.attention_mask[0].tolist(), reverse=True)
    assert processor(texts, padding="max_length", max_length=12).input_ids.shape == (2, 12)
    ragged = processor(texts, padding=False, return_tensors=None).input_ids
    assert [len(row) for row in ragged] == [len(processor.tokenizer.encode(text)) for text in texts]
    assert isinstance(processor(texts, return_tensors="np").input_ids, np.ndarray)
    bare = processor("a", add_special_tokens=False).input_ids[0].tolist()
    assert processor("a").input_ids[0].tolist() == [processor.bos_token_id, *bare]


def test_truncation_never_cuts_an_image(processor: JanusProProcessor) -> None:
    text, full = f"{PLACEHOLDER} abcdef", processor(f"{PLACEHOLDER} abcdef", golden_image()).input_ids
    assert torch.equal(processor(text, golden_image(), truncation=True, max_length=41).input_ids, full[:, :41])
    with pytest.raises(ValueError, match="got 20 for .* would cut one"):
        processor(text, golden_image(), truncation=True, max_length=20)


def test_image_generation_mode_appends_begin_of_image(processor: JanusProProcessor) -> None:
    ids = processor(["a", "bc"], generation_mode="image").input_ids
    assert ids[:, -1].eq(processor.boi_token_id).all()


def test_offsets_point_into_the_text(processor: JanusProProcessor) -> None:
    texts = ["ab", f"a {PLACEHOLDER} fox"]
    batch = processor(texts, [golden_image()], return_offsets_mapping=True, return_tensors=None)
    for row, mask, spans, text in zip(batch.input_ids, batch.attention_mask, batch.offset_mapping, texts, strict=True):
        for token, real, (start, end) in zip(row, mask, spans, strict=True):
            if not real or token == processor.bos_token_id:
                assert start == end == 0
            elif token in (processor.boi_token_id, processor.image_token_id, processor.eoi_token_id):
                assert text[start:end] == PLACEHOLDER
            else:
                assert processor.decode([token]).strip() == text[start:end].strip()


def test_assistant_mask_covers_answers_and_their_end(processor: JanusProProcessor) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image", "image": golden_image()}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": "the fox"},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "yes"},
    ]
    short = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    batch = processor.apply_chat_template(
        [messages, short], tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    marked = [
        row[mask.bool()] for row, mask in zip(batch.input_ids, torch.as_tensor(batch.assistant_masks), strict=True)
    ]
    end = processor.tokenizer.eos_token
    assert [processor.decode(row).replace(" ", "") for row in marked] == [f"thefox{end}yes{end}", f"b{end}"]


def test_processor_can_be_pickled(processor: JanusProProcessor) -> None:
    processor.roles = JANUS_1_3B_ROLES
    clone = pickle.loads(pickle.dumps(processor))
    messages = [{"role": "user", "content": "hi"}]
    assert clone.apply_chat_template(messages, **TO_BATCH).input_ids.tolist() == (
        processor.apply_chat_template(messages, **TO_BATCH).input_ids.tolist()
    )


def test_continue_final_message(processor: JanusProProcessor) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "the brown"}]
    text = processor.apply_chat_template(messages, continue_final_message=True, system_prompt="")
    assert text == "<|User|>: hi\n\n<|Assistant|>: the brown"


def test_images_are_postprocessed(processor: JanusProProcessor, golden: dict[str, torch.Tensor]) -> None:
    images = processor.post_process_images(golden["gen.pixels"])
    assert np.array_equal(np.stack(images), golden["gen.uint8"].numpy())


def test_bad_settings(processor: JanusProProcessor) -> None:
    parts = processor.image_processor, processor.tokenizer
    for settings, error, message in (
        ({"sft_format": "llava"}, ValueError, "got False and 'llava'"),
        ({"add_special_token": True}, ValueError, "got True and 'deepseek'"),
        ({"roles": "User"}, ValueError, "`roles` must be the names"),
        ({"num_image_tokens": 0}, ValueError, "`num_image_tokens` at least 1"),
        ({"num_images": 1}, TypeError, "num_images"),
    ):
        with pytest.raises(error, match=message):
            JanusProProcessor(*parts, **settings)
    with pytest.raises(TypeError, match="`tokenizer` must be a tokenizer backed by"):
        JanusProProcessor(JanusProImageProcessor(), "tokenizer")  # type: ignore[arg-type]


def test_pipeline_of_transformers(processor: JanusProProcessor) -> None:
    """`pipeline("image-text-to-text")` works with our processor, here with transformers' own Janus, tiny."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 24, "patch_size": 4, "projection_dim": 32, "mlp_ratio": 2}
    codec = {
        "embed_dim": 8,
        "num_embeddings": 16,
        "base_channels": 32,
        "latent_channels": 32,
        "channel_multiplier": [1],
    }
    torch.manual_seed(0)
    config = JanusConfig(
        text_config={**sizes, "model_type": "llama", "vocab_size": 416, "max_position_embeddings": 512},
        vision_config=vision,
        vq_config={**codec, "projection_dim": 32, "image_token_embed_dim": 32, "num_res_blocks": 1},
        image_token_id=processor.image_token_id,
    )
    model = JanusForConditionalGeneration(config).eval()
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    settings = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": processor.pad_token_id}
    content = [{"type": "image", "image": golden_image()}, {"type": "text", "text": "What?"}]
    chat = ask(text=[{"role": "user", "content": content}], return_full_text=False, generate_kwargs=settings)
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    plain = ask(images=golden_image(), text=text, return_full_text=False, generate_kwargs=settings)
    batch = processor(text, golden_image())
    direct = model.generate(**batch, **settings)[0, batch.input_ids.shape[1] :]
    expected = processor.decode(direct, skip_special_tokens=True)
    assert expected
    assert chat[0]["generated_text"] == plain[0]["generated_text"] == expected
