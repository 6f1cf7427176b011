"""Values of the wrong kind: each is refused by an error that names the argument, or means what it plainly says."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipes import NUM_TOKENS, SIDE, generate_ids, seeded
from transformers import TextStreamer

from janus_hf import JanusProForConditionalGeneration, JanusProProcessor
from tiny import TINY_MODEL


class Unspeakable:
    """An object of no use anywhere."""


NUMBERS = ("5", None, True, 10**400, [1.0], torch.ones(2), b"5", Path("5"), 1j, Unspeakable())
INTEGERS = ("4", 1.5, True, None, [1], float("nan"), 0, -1)
FLAGS = ("yes", None, 1, 0.0, [], Unspeakable())
TEXTS = (None, 3, b"a", "\ud800", Path("a"), [None], [["a"]], [3], {"a": 1}, torch.zeros(2), Image.new("RGB", (8, 8)))
IMAGES = (3, 1.5, {"url": 1}, {"path": "x.png"}, [None, 3], object(), Unspeakable(), math.nan)
TOKENS = (
    None,
    "abc",
    [[1, 2]],
    np.zeros((1, 4)),
    torch.zeros(1, 4),
    torch.zeros(1, 4, dtype=torch.bool),
    {"image_ids": 1},
)
PATHS = (None, 3, True, b"folder", ["folder"], {"a": torch.zeros(1)}, "", Unspeakable())


def without(values, *excluded):
    """The values but those that are allowed here."""
    return tuple(value for value in values if not any(value is one or type(value) is one for one in excluded))


def returning(value):
    """A callback that returns the value."""
    return lambda *arguments: value


# What callbacks return by mistake.
RETURNED = (
    3,
    True,
    [],
    torch.zeros(1, 1, dtype=torch.long),
    {"latents": torch.zeros(1)},
    {"image_ids": None},
    {"image_ids": 3},
    {"image_ids": torch.zeros(1, 1)},
    {"image_ids": torch.zeros(1, dtype=torch.long)},
    {"image_ids": torch.zeros(1, 0, dtype=torch.long)},
)


# Each row: what is called, the name that the error must have in it, and the values.
CALLS = {
    "pipe": {
        "prompt": TEXTS,
        "negative_prompt": without(TEXTS, None),
        "height": ("64", 64.0, True, [64], 63),
        "width": ("64", 64.0, True, [64], 63),
        "guidance_scale": (*without(NUMBERS, None), -1, math.nan, math.inf),
        "num_images_per_prompt": INTEGERS,
        "do_sample": FLAGS,
        "temperature": (*NUMBERS, 0, -1.0, math.nan, math.inf),
        "top_k": without(INTEGERS, None),
        "top_p": (*without(NUMBERS, None, bool), 0, 1.5, math.nan),
        "generator": (5, "5", [1], [None], [seeded(1)], seeded(1, 2), [], {1: 2}, Unspeakable()),
        "image_ids": (*without(TOKENS, None), torch.zeros(4, dtype=torch.long), torch.zeros(2, 4, dtype=torch.long)),
        "batch_size": INTEGERS,
        "output_type": ("jpg", "PIL", None, 3, ["pil"], np.zeros(3), Unspeakable()),
        "return_dict": FLAGS,
        "callback_on_step_end": (3, "print", [print], *map(returning, RETURNED)),
        "callback_on_step_end_tensor_inputs": ("image_ids", 3, None, ["latents"], [3]),
        "speculative_window": INTEGERS,
        "cache_implementation": ("paged", None, 3, ["static"]),
    },
    "ask": {
        "image": (
            *IMAGES,
            None,
            [],
            [[]],
            [None, Image.new("RGB", (8, 8))],
            SimpleNamespace(images=[1]),
            "an output of the pipeline",
        ),
        "question": without(TEXTS, torch.Tensor),
        "max_new_tokens": without(INTEGERS, None),
        "do_sample": without(FLAGS, None),
        "streamer": (3, "stdout", print, TextStreamer),
        "system_prompt": (3, ["a"], b"a"),
        "num_beams": without(INTEGERS, None),
        "num_return_sequences": without(INTEGERS, None),
        "generation_config": (3, {"do_sample": True}, "greedy"),
        "assistant_model": (3, "me/small"),
        "logits_processor": (3, print),
        "stopping_criteria": (3, print),
        "past_key_values": (3,),
        "input_ids": (torch.ones(1, 2, dtype=torch.long),),
        "return_dict_in_generate": (True,),
    },
    "chat": {
        "messages": (None, 3, "hi", [], {}, {"role": "user", "content": "hi"}, "an output of the pipeline"),
        "role": ([{"content": "hi"}], [{"role": None, "content": "hi"}], [{"role": "robot", "content": "hi"}]),
        "content": (
            [{"role": "user"}],
            [{"role": "user", "content": None}],
            [{"role": "user", "content": 3}],
            [{"role": "user", "content": {"type": "text", "text": "hi"}}],
            [{"role": "user", "content": ["hi"]}],
            [{"role": "user", "content": [{"type": "video", "video": "x"}]}],
            [{"role": "user", "content": [{"text": "hi"}]}],
        ),
        "text": ([{"role": "user", "content": [{"type": "text", "text": None}]}],),
        "image": (
            [{"role": "user", "content": [{"type": "image"}]}],
            [{"role": "user", "content": [{"type": "image", "image": 3}]}],
            [{"role": "user", "content": [{"type": "image", "image": {"images": 3}}]}],
            [{"role": "user", "content": "<image_placeholder>", "images": "photo.png"}],
        ),
        "max_new_tokens": without(INTEGERS, None),
        "do_sample": without(FLAGS, None),
        "streamer": (3, "stdout"),
        "system_prompt": (3, ["a"]),
        "temperature": (0.7,),  # without do_sample
        "top_k": (5,),
        "colour": ("red",),
    },
    "encode": {"image": (*IMAGES, None, [], "an output of the pipeline", np.zeros((4, 4)) - 1, torch.zeros(2))},
    "decode": {
        "image_ids": (*TOKENS, torch.zeros(NUM_TOKENS, dtype=torch.long), "an output of the pipeline"),
        "output_type": ("jpg", None, 3, "latent", ["pil"]),
    },
    "enable_fast_decoding": {
        "batch_sizes": (4, "4", None, [0], [1.5], ["4"], [True], [None]),
        "speculative_window": INTEGERS,
        "mode": ("fastest", 3, ["default"]),
    },
    "load_lora_weights": {
        "pretrained_model_name_or_path": (*PATHS, "a file"),
        "adapter_name": (3, ["a"], "", "a.b", True),
        "weight_name": ("pytorch_lora_weights.safetensors",),
        "prefix": ("unet",),
    },
    "set_adapters": {
        "adapter_names": (None, 3, [3], [], "", b"a", {"a": 1}, "none is loaded"),
    },
    "delete_adapters": {"adapter_names": (None, 3, [3], [], "none is loaded")},
    "fuse_lora": {"lora_scale": (*without(NUMBERS, None), math.nan, math.inf), "safe_fusing": FLAGS},
    "save_lora_weights": {"save_directory": PATHS},
    "from_pretrained": {
        "pretrained_model_name_or_path": PATHS,
        "model": ("model", 3, torch.nn.Linear(1, 1)),
        "processor": ("processor", 3),
        "dtype": ("bf17", 3.5),
        "revision": (3, b"main", ["main"], True),
        "subfolder": (3, ["a"]),
        "torch_dtype": ({"vae": torch.float16},),
        "variant": (True, 3),
        "use_safetensors": ("yes",),
        "adapter_kwargs": (True, "main"),
        "key_mapping": (True, []),
        "max_memory": (True, "8GB", {0: "8GB"}),
        "generation_config": (True, {"max_new_tokens": 3}),
    },
    "save_pretrained": {
        "save_directory": PATHS,
        "layout": ("flat", 3),
        "push_to_hub": FLAGS,
        "safe_serialization": (*FLAGS, False),
        "repo_id": ("me/fox",),
        "colour": ("red",),
    },
    "push_to_hub": {"repo_id": PATHS},
    "processor": {
        "text": without(TEXTS, torch.Tensor),
        "image": (*(value for value in IMAGES if value is not None), "an output of the pipeline"),
        "padding": ("long", 3, None),
        "padding_side": ("top", 3),
        "pad_to_multiple_of": without(INTEGERS, None),
        "truncation": (*without(FLAGS, None), "longest_first", True),
        "max_length": without(INTEGERS, None),
        "add_special_tokens": FLAGS,
        "generation_mode": ("video", None, 3),
        "return_tensors": ("tf", 3),
        "return_offsets_mapping": FLAGS,
        "colour": ("red",),
    },
    "apply_chat_template": {
        "conversation": (None, 3, "hi", [], [[]]),
        "chat_template": (3, ["{{ messages }}"]),
        "tokenize": FLAGS,
        "return_dict": FLAGS,
        "add_generation_prompt": FLAGS,
        "processor_kwargs": (3, "padding", [1]),
        "roles": ("User", ["User"], [1, 2], 3),
        "system_prompt": (3, ["a"]),
        "add_generation_promt": (True,),
    },
    "prepare_image_generation": {"prompts": TEXTS, "negative_prompts": without(TEXTS, None)},
    "post_process_images": {
        "pixel_values": (None, 3, [[1.0]], torch.zeros(3, 4, 4), torch.zeros(1, 3, 4, 4, dtype=torch.long)),
        "output_type": ("jpg", None, 3),
    },
    "generate_images": {
        "input_ids": TOKENS,
        "attention_mask": ([[1, 1]], 3, torch.ones(3, 3)),
        "negative_input_ids": without(TOKENS, None),
        "guidance_scale": (*without(NUMBERS, None), -1, math.nan, math.inf),
        "do_sample": FLAGS,
        "temperature": (*NUMBERS, 0, math.inf),
        "top_k": without(INTEGERS, None),
        "top_p": (*without(NUMBERS, None, bool), 0, math.nan),
        "generator": (5, [1, 2], seeded(1, 2), "0"),
        "image_ids": without(TOKENS, None),
        "speculative_window": INTEGERS,
        "cache_implementation": ("paged", None),
        "pad_token_id": ("3", 1.5, True, -1),
        "callback": (3, "print"),
        "output_logits": FLAGS,
        "output_scores": FLAGS,
        "return_dict_in_generate": FLAGS,
    },
    "encode_image_ids": {
        "pixel_values": (None, "a", torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8), torch.zeros(3))
    },
    "decode_image_ids": {"image_ids": (*TOKENS, torch.zeros(1, 3, dtype=torch.long))},
}
DEFAULTS = {
    "pipe": {"prompt": "a"},
    "ask": {"image": Image.new("RGB", (8, 8)), "question": "what?", "max_new_tokens": 1},
    "chat": {"messages": [{"role": "user", "content": "hi"}], "max_new_tokens": 1},
    "encode": {},
    "decode": {"image_ids": torch.zeros(1, NUM_TOKENS, dtype=torch.long)},
    "load_lora_weights": {"pretrained_model_name_or_path": "nowhere"},
    "from_pretrained": {"pretrained_model_name_or_path": TINY_MODEL},
    "processor": {"text": "a"},
    "apply_chat_template": {"conversation": [{"role": "user", "content": "hi"}]},
    "prepare_image_generation": {"prompts": "a"},
    "post_process_images": {"pixel_values": torch.zeros(1, 3, 4, 4)},
    "generate_images": {"input_ids": torch.ones(1, 4, dtype=torch.long)},
    "save_pretrained": {"save_directory": "saved"},
}
# Parts of a message, and the argument of `encode`, stand in an argument of another name.
CARRIERS = {("chat", name): "messages" for name in ("role", "content", "text", "image")} | {
    ("encode", "image"): "images",
    ("processor", "image"): "images",
}
ROWS = [(method, name, value) for method, names in CALLS.items() for name, values in names.items() for value in values]


@pytest.fixture(scope="module")
def methods(pipe):
    # The first of the three objects that has a method of this name.
    owners = {name: [one for one in (pipe, pipe.processor, pipe.model) if hasattr(one, name)] for name in CALLS}
    bound = {name: getattr(found[0], name) for name, found in owners.items() if found}
    return bound | {"pipe": pipe, "processor": pipe.processor}


@pytest.fixture(scope="module")
def output(pipe):
    return pipe("a", image_ids=torch.zeros(1, NUM_TOKENS, dtype=torch.long))


@pytest.mark.parametrize(
    ("method", "name", "value"), ROWS, ids=[f"{method}-{name}-{row}" for row, (method, name, _) in enumerate(ROWS)]
)
def test_a_wrong_value_is_refused_by_name(methods, output, method, name, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if isinstance(value, str) and value == "a file":
        value = tmp_path / "adapter_model.safetensors"
        value.touch()
    elif isinstance(value, str) and value == "an output of the pipeline":
        value = output
    arguments = DEFAULTS.get(method, {}) | {CARRIERS.get((method, name), name): value}
    with pytest.raises((TypeError, ValueError)) as caught:
        methods[method](**arguments)
    assert name in str(caught.value), caught.value
    assert not list(tmp_path.glob("saved/*"))


@pytest.mark.parametrize("owner", [JanusProForConditionalGeneration, JanusProProcessor])
@pytest.mark.parametrize("value", without(PATHS, None))
def test_a_wrong_source_is_refused_by_every_class(owner, value):
    with pytest.raises((TypeError, ValueError), match="`pretrained_model_name_or_path` must be a repository id"):
        owner.from_pretrained(value)


def test_an_output_object_is_refused_with_what_to_take_from_it(pipe, output):
    for call in (lambda: pipe.ask(output, "what?"), lambda: pipe.encode(output)):
        with pytest.raises(
            TypeError, match=r"got an object of type JanusProPipelineOutput \(take its .images or .image_ids\)"
        ):
            call()


def test_swapped_arguments_are_refused(pipe, image):
    with pytest.raises(TypeError, match="`question` must be a string or a list of strings, got an .*Image"):
        pipe.ask("what?", image)


def test_values_of_numpy_are_plain(pipe):
    plain = generate_ids(pipe, guidance_scale=3.0, temperature=0.5, top_k=7, top_p=0.5, batch_size=1)
    scalars = generate_ids(
        pipe,
        guidance_scale=np.float32(3.0),
        temperature=np.float64(0.5),
        top_k=np.int64(7),
        top_p=np.float16(0.5),
        batch_size=np.int32(1),
        do_sample=np.True_,
        height=np.int64(SIDE),
    )
    assert torch.equal(plain, scalars)
    assert torch.equal(generate_ids(pipe, guidance_scale=3), generate_ids(pipe, guidance_scale=3.0))
    assert torch.equal(generate_ids(pipe, ("a", "b"), (0, 1)), generate_ids(pipe, ["a", "b"], (0, 1)))


def test_a_batch_of_images_is_a_list_of_images(pipe, image):
    pictures = [np.asarray(image), np.asarray(image)[::-1]]
    expected = pipe.ask(pictures, "same?", max_new_tokens=4)
    array = np.stack(pictures)
    for batch in (array, torch.tensor(array), [array], tuple(pictures), [[pictures[0]], [pictures[1]]]):
        assert pipe.ask(batch, "same?", max_new_tokens=4) == expected
        assert torch.equal(pipe.encode(batch), pipe.encode(pictures))


@pytest.mark.parametrize(
    "weights", ["1", [None, "1"], math.nan, [1.0, math.inf], [1.0], torch.ones(2), {"a": 1}, True]
)
def test_weights_of_adapters(pipe, weights, monkeypatch):
    monkeypatch.setattr(type(pipe), "_adapter_names", lambda self: ["a", "b"])
    with pytest.raises((TypeError, ValueError), match="adapter_weights"):
        pipe.set_adapters(["a", "b"], weights)
