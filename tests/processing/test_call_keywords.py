"""Every keyword of transformers' processors and chat templates is used, or refused by name."""

import copy
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ProcessorMixin
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, TextKwargs

from janus_hf import JanusProImageProcessor, JanusProProcessor
from janus_hf.processing import conversations, image_steps
from janus_hf.processing.batching import TEXT_DEFAULTS, TEXT_REFUSED


PLACEHOLDER = "<image_placeholder>"
LEVELS = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
PICTURE = Image.fromarray(LEVELS)
WIDE = Image.fromarray(LEVELS[:12])
TO_BATCH = {"tokenize": True, "return_dict": True}


@pytest.fixture(scope="module")
def shared(golden_checkpoint: Path) -> JanusProProcessor:
    return JanusProProcessor.from_pretrained(golden_checkpoint)


@pytest.fixture
def processor(shared: JanusProProcessor) -> JanusProProcessor:
    return copy.copy(shared)


def pixels(processor: JanusProProcessor, image: Any = PICTURE, **settings: Any) -> np.ndarray:
    found: np.ndarray = processor.image_processor(image, return_tensors="np", **settings).pixel_values[0]
    return found


# --- the tables are complete


def test_every_keyword_of_transformers_is_sorted() -> None:
    """If this fails, transformers has a new keyword: use it or refuse it, in the table of its kind."""
    assert TEXT_DEFAULTS.keys() | TEXT_REFUSED.keys() == set(TextKwargs.__annotations__)
    own = {"image_size", "min_size"}
    sorted_images = image_steps.USED | image_steps.REFUSED.keys() | {"return_tensors"}
    assert sorted_images == set(ImagesKwargs.__annotations__) | own
    groups = {"text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs"}
    flat = {"return_mm_token_type_ids", "return_text_replacement_offsets"}
    assert set(ProcessingKwargs.__annotations__) == groups | flat
    template = set(inspect.signature(ProcessorMixin.apply_chat_template).parameters) - {"self"}
    kinds = (conversations.PASSED_ON, conversations.USED, conversations.VARIABLES, conversations.REFUSED)
    assert set().union(*kinds) == template
    assert sum(map(len, kinds)) == len(template)


# --- keywords of texts


@pytest.mark.parametrize("group", [False, True])
def test_keywords_of_texts_are_used(processor: JanusProProcessor, group: bool) -> None:
    def call(**options: Any) -> Any:
        return processor(["a", "abc abc"], **({"text_kwargs": options} if group else options))

    usual = call()
    assert usual.input_ids.shape == usual.attention_mask.shape
    bos = processor.bos_token_id
    assert not call(add_special_tokens=False).input_ids.eq(bos).any()
    assert call(padding="max_length", max_length=12).input_ids.shape == (2, 12)
    assert call(truncation=True, max_length=2).input_ids.shape == (2, 2)
    assert call(truncation="longest_first", max_length=2).input_ids.shape == (2, 2)
    assert call(pad_to_multiple_of=8).input_ids.shape[1] % 8 == 0
    assert call(padding_side="right").attention_mask[0, -1] == 0
    assert isinstance(call(return_tensors="np").input_ids, np.ndarray)
    assert isinstance(call(return_tensors=None, padding=False).input_ids[0], list)
    assert "attention_mask" not in call(return_attention_mask=False)
    assert call(return_length=True).length.tolist() == usual.attention_mask.sum(1).tolist()
    assert call(return_offsets_mapping=True).offset_mapping.shape == (*usual.input_ids.shape, 2)
    special = torch.tensor(processor.tokenizer.all_special_ids)
    assert torch.equal(
        call(return_special_tokens_mask=True).special_tokens_mask.bool(), torch.isin(usual.input_ids, special)
    )
    assert call(return_text_replacement_offsets=True).keys() == usual.keys()
    for none in ("max_length", "pad_to_multiple_of", "padding_side"):
        assert call(**{none: None}).input_ids.equal(usual.input_ids)


def test_types_of_positions(processor: JanusProProcessor) -> None:
    batch = processor(f"a {PLACEHOLDER}", PICTURE, return_mm_token_type_ids=True)
    assert torch.equal(batch.mm_token_type_ids.bool(), batch.input_ids == processor.image_token_id)


@pytest.mark.parametrize("name", sorted(TEXT_REFUSED))
def test_keywords_of_texts_are_refused_by_name(processor: JanusProProcessor, name: str) -> None:
    for call in ({name: 3}, {"text_kwargs": {name: 3}}):
        with pytest.raises(ValueError, match=f"`{name}` must be left out of `the processor`, got 3"):
            processor("a", **call)
    assert processor("a", **{name: None}).keys() == processor("a").keys()


# --- keywords of images


def image_cases() -> dict[str, tuple[dict[str, Any], Any]]:
    """Settings of a call with the pixels `(3, 24, 24)` that they give for an image that fills the square."""
    first = LEVELS.transpose(2, 0, 1)
    unit = (first.astype(np.float64) / 255).astype(np.float32)
    normal = (unit - np.float32(0.5)) / np.float32(0.5)
    return {
        "do_rescale": ({"do_rescale": False}, (first - np.float32(0.5)) / np.float32(0.5)),
        "do_normalize": ({"do_normalize": False}, unit),
        "do_rescale, do_normalize": ({"do_rescale": False, "do_normalize": False}, first),
        "rescale_factor": ({"rescale_factor": 1 / 51, "do_normalize": False}, (first / 51.0).astype(np.float32)),
        "image_mean": ({"image_mean": 0.0}, unit / np.float32(0.5)),
        "image_std": ({"image_std": [1.0, 1.0, 1.0]}, unit - np.float32(0.5)),
        "data_format": ({"data_format": "channels_last"}, np.moveaxis(normal, 0, -1)),
        "do_resize": ({"do_resize": False}, normal),
        "do_pad": ({"do_pad": False}, normal),
        "do_convert_rgb": ({"do_convert_rgb": True}, normal),
        "do_center_crop": ({"do_center_crop": False}, normal),
        "default_to_square": ({"default_to_square": True}, normal),
        "disable_grouping": ({"disable_grouping": True}, normal),
        "pad_size": ({"pad_size": {"height": 24, "width": 24}}, normal),
        "size": ({"size": {"height": 24, "width": 24}}, normal),
        "image_size": ({"image_size": 24}, normal),
        "resample": ({"resample": 0}, normal),
        "min_size": ({"min_size": 24}, normal),
    }


@pytest.mark.parametrize("name", sorted(image_cases()))
def test_keywords_of_images_are_used(processor: JanusProProcessor, name: str) -> None:
    settings, expected = image_cases()[name]
    found = pixels(processor, **settings)
    assert found.dtype == np.float32
    assert np.array_equal(found, expected.astype(np.float32))
    text = f"a {PLACEHOLDER}"
    for keywords in (settings, {"images_kwargs": settings}):
        assert np.array_equal(processor(text, PICTURE, **keywords).pixel_values[0].numpy(), found)
    chat = [{"role": "user", "content": [{"type": "image", "image": PICTURE}]}]
    batch = processor.apply_chat_template(chat, processor_kwargs={"images_kwargs": settings}, **TO_BATCH)
    assert np.array_equal(batch.pixel_values[0].numpy(), found)


def test_every_used_keyword_of_images_has_a_case() -> None:
    cases = {name for settings, _ in image_cases().values() for name in settings}
    assert image_steps.USED - cases == {"input_data_format"}  # the test below


def test_settings_change_the_pixels_of_other_images(processor: JanusProProcessor) -> None:
    usual = pixels(processor, WIDE)
    assert not np.array_equal(pixels(processor, WIDE, min_size=20), usual)
    tall = Image.fromarray(LEVELS[:, :7])
    assert not np.array_equal(pixels(processor, tall.resize((14, 48)), resample=0), pixels(processor, tall))
    assert pixels(processor, WIDE, size=48).shape == (3, 48, 48)
    framed = pixels(processor, WIDE, do_resize=False, image_mean=0.25)
    assert np.allclose(framed[:, 0], (int(0.25 * 255) / 255 - 0.25) / 0.5, atol=1e-6)
    assert np.array_equal(pixels(processor, WIDE), usual)  # a call changes no setting


def test_arrays_keep_their_range_without_rescaling(processor: JanusProProcessor) -> None:
    """Float arrays in [0, 1] are rescaled already; that is what callers with such arrays say by `do_rescale=False`."""
    unit = (LEVELS / 255).astype(np.float32)
    found = pixels(processor, unit, do_rescale=False)
    assert np.allclose(found, pixels(processor, LEVELS), atol=1e-6)


def test_input_data_format(processor: JanusProProcessor) -> None:
    odd = np.random.default_rng(1).integers(0, 256, (3, 9, 3), dtype=np.uint8)  # both ends could be channels
    for name, same in (("channels_first", odd), ("channels_last", odd)):
        moved = np.moveaxis(same, 0, -1) if name == "channels_first" else same
        expected = pixels(processor, Image.fromarray(np.ascontiguousarray(moved)))
        assert np.array_equal(pixels(processor, odd, input_data_format=name), expected)
        assert np.array_equal(pixels(processor, torch.from_numpy(odd), input_data_format=name), expected)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"do_convert_rgb": False}, ValueError, "`do_convert_rgb` must be True, got False"),
        ({"do_center_crop": True}, ValueError, "`do_center_crop` must be False, got True"),
        ({"default_to_square": False}, ValueError, "`default_to_square` must be True"),
        ({"disable_grouping": False}, ValueError, "`disable_grouping` must be True"),
        ({"crop_size": 12}, ValueError, "`crop_size` must be left out"),
        ({"device": "cuda"}, ValueError, "`device` must be left out"),
        ({"image_seq_length": 5}, ValueError, "`image_seq_length` must be left out"),
        ({"pad_size": 48}, ValueError, "`pad_size` must be the input's size, 24"),
        ({"size": {"shortest_edge": 3}}, ValueError, "`size` must have the keys 'height' and 'width'"),
        ({"size": {"height": 3, "width": 4}}, ValueError, "`size` must be square"),
        ({"size": 24, "image_size": 48}, ValueError, "`size` and `image_size` must agree"),
        ({"min_size": 25}, ValueError, "`min_size` must be at most"),
        ({"resample": 99}, ValueError, "`resample` must be a filter"),
        ({"data_format": "chw"}, ValueError, "`data_format` must be 'channels_first'"),
        ({"do_rescale": 1}, TypeError, "`do_rescale` must be True or False"),
        ({"image_mean": "half"}, TypeError, "`image_mean` must be a number"),
        ({"image_mean": [0.5]}, ValueError, "`image_mean` must be one number or three"),
        ({"do_resize": False, "image_size": 12}, ValueError, "`do_resize` and `do_pad` must be True unless"),
        ({"do_rescal": False}, TypeError, "'do_rescal' too"),
    ],
)
def test_settings_of_images_that_cannot_be_followed(
    processor: JanusProProcessor, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        processor.image_processor(PICTURE, **settings)
    with pytest.raises(error, match=message):
        processor(f"{PLACEHOLDER}", PICTURE, images_kwargs=settings)


def test_the_codec_takes_whole_squares() -> None:
    images = JanusProImageProcessor(24, 4)
    last = images(PICTURE, mode="generation", data_format="channels_last").pixel_values
    assert torch.equal(last.movedim(-1, 1), images(PICTURE, mode="generation").pixel_values)
    with pytest.raises(ValueError, match="`do_rescale` must be left out with mode='generation'"):
        images(PICTURE, mode="generation", do_rescale=False)


# --- groups


def test_groups(processor: JanusProProcessor) -> None:
    assert isinstance(processor("a", common_kwargs={"return_tensors": "np"}).input_ids, np.ndarray)
    assert processor("a", videos_kwargs={}, audio_kwargs=None).keys() == processor("a").keys()
    for group in ("videos_kwargs", "audio_kwargs"):
        with pytest.raises(ValueError, match=f"`{group}` must be left out"):
            processor("a", **{group: {"fps": 1}})
    with pytest.raises(ValueError, match="`padding` must be given once"):
        processor("a", padding=True, text_kwargs={"padding": False})
    with pytest.raises(ValueError, match="`do_rescale` must be given once"):
        processor("a", do_rescale=True, images_kwargs={"do_rescale": False})
    with pytest.raises(TypeError, match="`text_kwargs` must be a dict"):
        processor("a", text_kwargs=[1])
    for unknown in ({"paddding": True}, {"text_kwargs": {"paddding": True}}):
        with pytest.raises(TypeError, match="paddding"):
            processor("a", **unknown)


# --- the chat template


def test_tools_and_documents(processor: JanusProProcessor) -> None:
    chat = [{"role": "user", "content": "hi"}]
    plain = processor.apply_chat_template(chat)
    for name in conversations.VARIABLES:
        with pytest.raises(ValueError, match=f"`{name}` must be left out, got it, but the chat template does not"):
            processor.apply_chat_template(chat, **{name: [{"name": "f"}]})
        assert processor.apply_chat_template(chat, **{name: None}) == plain
        reading = f"{{{{ {name} | length }}}}{{{{ messages[0]['content'] }}}}"
        assert processor.apply_chat_template(chat, reading, **{name: [{"name": "f"}]}) == "1hi"
    with pytest.raises(ValueError, match="`load_audio_from_video` must be left out"):
        processor.apply_chat_template(chat, load_audio_from_video=True)


@pytest.mark.parametrize("name", ["return_dict", "return_assistant_tokens_mask", "return_tensors", "processor_kwargs"])
def test_arguments_that_a_string_cannot_follow(processor: JanusProProcessor, name: str) -> None:
    value = {"return_tensors": "pt", "processor_kwargs": {"padding": True}}.get(name, True)
    with pytest.raises(ValueError, match=f"`tokenize` must be True with `{name}`"):
        processor.apply_chat_template([{"role": "user", "content": "hi"}], **{name: value})


@pytest.mark.parametrize("key", ["tool_calls", "name", "reasoning_content", "thinking", "weight"])
@pytest.mark.parametrize("parses", [True, False])
def test_keys_of_messages_that_the_template_does_not_read(
    processor: JanusProProcessor, key: str, parses: bool
) -> None:
    message = {"role": "user", "content": "hi", key: "x"}
    with pytest.raises(ValueError, match=f"Message 0 must hold what the chat template reads, got '{key}' too"):
        processor.apply_chat_template([message], parse_special_tokens=parses)
    reading = f"{{{{ messages[0]['{key}'] }}}}"
    assert processor.apply_chat_template([message], reading, parse_special_tokens=parses) == "x"
    for empty in (None, [], {}):
        assert processor.apply_chat_template([{**message, key: empty}]).endswith("hi")


def test_keys_of_parts(processor: JanusProProcessor) -> None:
    def render(*parts: dict[str, Any]) -> str:
        return processor.apply_chat_template([{"role": "user", "content": list(parts)}], system_prompt="")

    url = {"type": "image_url", "image_url": {"url": "x.png", "detail": "auto"}}
    assert render(url).endswith(PLACEHOLDER)
    for part, message in (
        ({"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, "got 'cache_control' too"),
        ({"type": "image", "image": PICTURE, "text": "a"}, "got 'text' too"),
        ({"type": "image", "image": PICTURE, "url": "x.png"}, "must name its image once"),
        ({"type": "image_url", "image_url": {"url": "x.png", "detail": "low"}}, "got 'detail' too"),
    ):
        with pytest.raises(ValueError, match=message):
            render(part)


def test_close_turns_of_the_processor(processor: JanusProProcessor, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    by_role = processor.apply_chat_template(turns, system_prompt="")
    assert by_role == "<|User|>: a\n\n<|User|>: b"
    processor.close_turns = "by_number"
    by_number = processor.apply_chat_template(turns, system_prompt="")
    assert by_number == f"<|User|>: a\n\n<|User|>: b{processor.tokenizer.eos_token}"
    assert processor.apply_chat_template(turns, system_prompt="", close_turns="by_role") == by_role
    for layout in ("original", "transformers"):
        processor.save_pretrained(tmp_path / layout, layout=layout)
        loaded = JanusProProcessor.from_pretrained(tmp_path / layout)
        assert loaded.close_turns == "by_number"
        assert loaded.apply_chat_template(turns, system_prompt="") == by_number
        other = JanusProProcessor.from_pretrained(tmp_path / layout, close_turns="by_role")
        assert other.apply_chat_template(turns, system_prompt="") == by_role
    with pytest.raises(ValueError, match="`close_turns` must be 'by_role' or 'by_number'"):
        processor.apply_chat_template(turns, close_turns="by_name")
