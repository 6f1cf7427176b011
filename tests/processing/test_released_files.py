"""Processor files as they were released: role names by `sft_format`, JanusFlow's tags, keys that are unknown."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from tokenizers_for_tests import STYLES, write_tokenizer
from transformers import AutoImageProcessor, AutoProcessor

from janus_hf import JanusProImageProcessor, JanusProProcessor
from janus_hf.processing.prompts import BOS_TOKEN, EOS_TOKEN, JANUS_1_3B_ROLES, ROLES


LAYOUTS = ("original", "transformers")
GEN_TOKEN = "<｜begin▁of▁generation｜>"
# processor_config.json of each release. "Janus-1.3B, 2024" is the file from before January 2025.
PRO = {
    "add_special_token": False,
    "ignore_id": -100,
    "image_tag": "<image_placeholder>",
    "mask_prompt": True,
    "num_image_tokens": 576,
    "processor_class": "VLChatProcessor",
    "sft_format": "deepseek",
}
FLOW_TAGS = {"image_start_tag": "<image_beg>", "image_end_tag": "<image_end>", "image_gen_tag": GEN_TOKEN}
RELEASES = {
    "Janus-Pro": PRO,
    "Janus-1.3B": {**PRO, "sft_format": "deepseek_old"},
    "Janus-1.3B, 2024": PRO,
    "JanusFlow-1.3B": {**PRO, **FLOW_TAGS, "sft_format": "deepseek_old"},
}
# Strings that the original code renders from the messages of the authors' examples (in the golden data).
OLD_CHAT = "User: <image_placeholder>\nDescribe the image in detail.\n\nAssistant:"
OLD_PROMPT = "User: a cat\n\nAssistant:"
NEW_CHAT = "<|User|>: <image_placeholder>\nDescribe the image in detail.\n\n<|Assistant|>:"
NEW_PROMPT = "<|User|>: a cat\n\n<|Assistant|>:"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def folder(golden_checkpoint: Path, tmp_path: Path) -> Path:
    """The processor files of the golden checkpoint, to be changed."""
    folder = tmp_path / "released"
    folder.mkdir()
    for name in ("preprocessor_config", "processor_config", "special_tokens_map", "tokenizer", "tokenizer_config"):
        shutil.copy(golden_checkpoint / f"{name}.json", folder)
    return folder


@pytest.fixture
def flow_folder(folder: Path) -> Path:
    """Processor files like those of JanusFlow: no padding token, and the generation tag is the only image token."""
    write_tokenizer(folder, STYLES[1], (BOS_TOKEN, EOS_TOKEN, GEN_TOKEN))
    tokens = {"bos_token": BOS_TOKEN, "eos_token": EOS_TOKEN, "additional_special_tokens": [GEN_TOKEN]}
    write(folder / "special_tokens_map.json", tokens)
    write(folder / "processor_config.json", RELEASES["JanusFlow-1.3B"])
    return folder


@pytest.mark.parametrize(
    ("release", "roles", "chat", "prompt"),
    [
        ("Janus-Pro", ROLES, NEW_CHAT, NEW_PROMPT),
        ("Janus-1.3B", JANUS_1_3B_ROLES, OLD_CHAT, OLD_PROMPT),
        ("Janus-1.3B, 2024", ROLES, NEW_CHAT, NEW_PROMPT),
        ("JanusFlow-1.3B", JANUS_1_3B_ROLES, OLD_CHAT, OLD_PROMPT),
    ],
)
def test_a_release_renders_as_in_its_authors_examples(
    release: str, roles: tuple[str, str], chat: str, prompt: str, folder: Path, request: pytest.FixtureRequest
) -> None:
    if "Flow" in release:
        request.getfixturevalue("flow_folder")
    write(folder / "processor_config.json", RELEASES[release])
    content = [{"type": "image"}, {"type": "text", "text": "Describe the image in detail."}]
    messages = [{"role": "user", "content": content}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processors = [opener.from_pretrained(folder) for opener in (JanusProProcessor, AutoProcessor)]
    for layout in LAYOUTS:
        processors[0].save_pretrained(folder.parent / layout, layout=layout)
        processors.append(JanusProProcessor.from_pretrained(folder.parent / layout))
    for processor in processors:
        assert processor.roles == roles
        rendered = processor.apply_chat_template(messages, add_generation_prompt=True)
        assert rendered == f"{processor.system_prompt}\n\n{chat}"
        ids = processor.prepare_image_generation("a cat").input_ids[0].tolist()
        assert ids == processor.tokenizer.encode(prompt + processor.boi_token)
        assert processor.to_dict() == RELEASES[release]
    saved = folder.parent / "original"
    assert read(saved / "processor_config.json") == RELEASES[release]
    assert "roles" not in read(saved / "tokenizer_config.json")


def test_roles_in_the_messages_and_given_roles_come_first(folder: Path) -> None:
    write(folder / "processor_config.json", RELEASES["Janus-1.3B"])
    processor = JanusProProcessor.from_pretrained(folder, system_prompt="")
    assert processor.apply_chat_template([{"role": "<|User|>", "content": "hi"}]) == "<|User|>: hi"
    assert JanusProProcessor.from_pretrained(folder, roles=ROLES).roles == ROLES
    assert JanusProProcessor.from_pretrained(folder, sft_format="deepseek").roles == ROLES
    tokenizer = read(folder / "tokenizer_config.json")
    write(folder / "tokenizer_config.json", {**tokenizer, "roles": ["Ask", "Answer"]})
    processor = JanusProProcessor.from_pretrained(folder)
    assert processor.roles == ("Ask", "Answer")
    for layout in LAYOUTS:
        processor.save_pretrained(folder.parent / layout, layout=layout)
        reopened = JanusProProcessor.from_pretrained(folder.parent / layout)
        assert (reopened.roles, reopened.sft_format) == (("Ask", "Answer"), "deepseek_old")


def test_janus_flow_has_its_ids(flow_folder: Path) -> None:
    processor = JanusProProcessor.from_pretrained(flow_folder)
    generation = processor.tokenizer.convert_tokens_to_ids(GEN_TOKEN)
    ids = [processor.image_token_id, processor.boi_token_id, processor.eoi_token_id]
    assert ids == [generation + 1, generation + 2, generation + 3]
    assert processor.pad_token_id == processor.eos_token_id
    assert processor.decode(ids, skip_special_tokens=True) == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sft_format": "llava"}, r"`sft_format` one of \['deepseek', 'deepseek_old'\].* got False and 'llava'"),
        ({"sft_format": None}, "`sft_format` one of"),
        ({"sft_format": ["deepseek"]}, "`sft_format` one of"),
        ({"add_special_token": True}, "`add_special_token` must be False"),
        ({"add_special_token": 0}, "`add_special_token` must be False"),
        ({"num_image_tokens": 0}, "`num_image_tokens` at least 1"),
        ({"num_image_tokens": 576.0}, "`num_image_tokens` at least 1, got .* and 576.0"),
        ({"num_image_tokens": "576"}, "`num_image_tokens` at least 1"),
        ({"num_image_tokens": True}, "`num_image_tokens` at least 1"),
        ({"mask_prompt": "yes"}, "`mask_prompt` must be true or false"),
        ({"ignore_id": None}, "`ignore_id` an integer"),
        ({"roles": ["User"]}, "`roles` must be the names"),
        ({"roles": ["User", 2]}, "`roles` must be the names"),
        ({"roles": 2}, "`roles` must be the names"),
        ({"roles": {"user": "User", "assistant": "Assistant"}}, "`roles` must be the names"),
        ({"image_tag": ""}, "`image_tag` must be the text of a token"),
        ({"image_start_tag": "<image_placeholder>"}, "must be different tokens"),
        ({"image_gen_tag": 3}, "`image_gen_tag` must be the text of a token"),
        ({"pad_tag": "<nowhere>"}, "`pad_tag` must be a token of the tokenizer"),
    ],
)
def test_values_that_mean_something_else_are_refused_by_name(
    settings: dict[str, Any], message: str, folder: Path
) -> None:
    write(folder / "processor_config.json", PRO | settings)
    with pytest.raises(ValueError, match=message):
        JanusProProcessor.from_pretrained(folder)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("do_center_crop", True),
        ("do_resize", False),
        ("do_pad", False),
        ("do_rescale", False),
        ("resample", 2),
        ("data_format", "channels_last"),
    ],
)
def test_processing_of_other_image_processors_is_refused(setting: str, value: Any, folder: Path) -> None:
    write(folder / "preprocessor_config.json", {**read(folder / "preprocessor_config.json"), setting: value})
    with pytest.raises(ValueError, match=f"`{setting}` must be "):
        JanusProProcessor.from_pretrained(folder)


UNKNOWN = {"later_setting": [1, {"a": None}], "another": "text"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["processor_config.json", "preprocessor_config.json"])
def test_unknown_keys_are_kept_and_named_in_one_warning(name: str, layout: str, folder: Path) -> None:
    write(folder / name, {**read(folder / name), **UNKNOWN})
    with pytest.warns(UserWarning, match=rf"^{name}.* must hold .* got \['another', 'later_setting'\] too") as caught:
        processor = JanusProProcessor.from_pretrained(folder)
    assert len([one for one in caught if one.category is UserWarning]) == 1
    processor.save_pretrained(folder.parent / layout, layout=layout)
    saved = read(folder.parent / layout / name)
    assert {key: saved.get(key) for key in UNKNOWN} == UNKNOWN
    with pytest.warns(UserWarning, match="later_setting"):
        reopened = JanusProProcessor.from_pretrained(folder.parent / layout)
    assert reopened.to_dict() == processor.to_dict()
    assert reopened.image_processor.to_dict() == processor.image_processor.to_dict()


def test_unknown_keys_of_the_image_processor_alone(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    write(path, {**read(path), **UNKNOWN})
    for load in (JanusProImageProcessor.from_pretrained, AutoImageProcessor.from_pretrained):
        with pytest.warns(UserWarning, match="^preprocessor_config.json.* must hold"):
            assert load(folder).to_dict().items() >= UNKNOWN.items()
    with pytest.warns(UserWarning, match="^preprocessor_config.json.* must hold"):
        assert JanusProImageProcessor.from_json_file(path).to_dict().items() >= UNKNOWN.items()
    with pytest.raises(TypeError, match="another"):  # an argument is the caller's, and refused
        JanusProImageProcessor(another="text")


@pytest.mark.parametrize("beside", [None, "same", "other"])
def test_nested_settings_of_transformers_5(beside: str | None, folder: Path) -> None:
    """The settings of the image processor stand in processor_config.json, and have precedence over the other file."""
    images = {**read(folder / "preprocessor_config.json"), "image_processor_type": "JanusImageProcessor"}
    nested = {**images, "size": {"height": 48, "width": 48}, "do_resize": True, "do_pad": True, "resample": 3}
    del nested["image_size"]
    settings = {"image_processor": nested, "num_image_tokens": 36, "processor_class": "JanusProcessor"}
    write(folder / "processor_config.json", {**settings, "use_default_system_prompt": False})
    if beside == "same":
        write(folder / "preprocessor_config.json", nested)
    elif beside is None:
        (folder / "preprocessor_config.json").unlink()
    tokenizer = {**read(folder / "tokenizer_config.json"), "roles": list(JANUS_1_3B_ROLES), "boi_token": "<|det|>"}
    write(folder / "tokenizer_config.json", tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor = JanusProProcessor.from_pretrained(folder)
    assert processor.image_processor.image_size == 48
    assert processor.image_processor.image_mean == [0.5, 0.5, 0.5]
    assert (processor.num_image_tokens, processor.roles, processor.boi_token) == (36, JANUS_1_3B_ROLES, "<|det|>")
    for layout in LAYOUTS:
        processor.save_pretrained(folder.parent / layout, layout=layout)
        reopened = JanusProProcessor.from_pretrained(folder.parent / layout)
        assert reopened.to_dict() == processor.to_dict()
        assert reopened.image_processor.to_dict() == processor.image_processor.to_dict()
        assert reopened.roles == JANUS_1_3B_ROLES
