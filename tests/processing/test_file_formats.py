"""Processors are opened from original, transformers and incomplete folders, and saved in both layouts."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, JanusProcessor
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from janus_hf import JanusProConfig, JanusProImageProcessor, JanusProProcessor
from janus_hf.processing import register
from janus_hf.processing.prompts import JANUS_1_3B_ROLES, SYSTEM_PROMPT


LAYOUTS = ("original", "transformers")
IMAGES = Path(__file__).parents[1] / "goldens" / "images"
TO_BATCH = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
# The image is square because transformers' own Janus rounds sizes that the original truncates: other shapes would
# come out with other pixels.
MESSAGES = [
    {
        "role": "user",
        "content": [{"type": "image", "path": str(IMAGES / "square.png")}, {"type": "text", "text": "What?"}],
    },
    {"role": "assistant", "content": [{"type": "text", "text": "A square."}]},
    {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
]


def same_behaviour(first: Any, second: Any) -> None:
    """Assert that two processors give the same batches and, if both are ours, have the same settings."""
    one, two = (processor.apply_chat_template(MESSAGES, **TO_BATCH) for processor in (first, second))
    assert set(one) == set(two)
    for key in one:
        assert torch.equal(one[key], two[key]), key
    prompts = ["a cat", "the blue sea"]
    if isinstance(first, JanusProProcessor) and isinstance(second, JanusProProcessor):
        one, two = (processor.prepare_image_generation(prompts) for processor in (first, second))
        assert torch.equal(one.input_ids, two.input_ids)
        assert first.to_dict() == second.to_dict()
        assert first.image_processor.to_dict() == second.image_processor.to_dict()
        assert (first.roles, first.system_prompt) == (second.roles, second.system_prompt)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def processor(golden_checkpoint: Path) -> JanusProProcessor:
    return JanusProProcessor.from_pretrained(golden_checkpoint)


def test_auto_classes_open_an_original_repository(golden_checkpoint: Path) -> None:
    processor = AutoProcessor.from_pretrained(golden_checkpoint)
    assert type(processor) is JanusProProcessor
    assert type(processor.image_processor) is JanusProImageProcessor
    register(JanusProConfig)  # registering again is harmless
    for backend in (None, "pil", "torchvision"):
        images = AutoImageProcessor.from_pretrained(golden_checkpoint, backend=backend)
        assert type(images) is JanusProImageProcessor
    assert (processor.num_image_tokens, processor.image_processor.image_size) == (36, 24)


@pytest.mark.parametrize("missing", [{"processor_config.json"}, {"preprocessor_config.json"}, None])
def test_missing_files_mean_the_originals_defaults(
    missing: set[str] | None, golden_checkpoint: Path, tmp_path: Path
) -> None:
    everything = {
        "processor_config.json",
        "preprocessor_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }
    names = {"config.json", "tokenizer.json", *everything} - (missing or everything)
    for name in names:
        shutil.copy(golden_checkpoint / name, tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is JanusProProcessor
    assert processor.num_image_tokens == (36 if "processor_config.json" in names else 576)
    expected = JanusProImageProcessor(24, 4) if "preprocessor_config.json" in names else JanusProImageProcessor()
    assert processor.image_processor.to_dict() == expected.to_dict()
    assert processor.tokenizer.encode("a")[0] == processor.bos_token_id
    assert JanusProProcessor.from_pretrained(tmp_path, image_size=48).image_processor.image_size == 48


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="tokenizer"):
        JanusProProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"roles": JANUS_1_3B_ROLES, "system_prompt": None},
        {"system_prompt": 'Say "naïve" \\ {{ 1 }}.\nTwice. 😀', "num_image_tokens": 5, "ignore_id": -7},
        {"chat_template": "{{ bos_token }}{{ messages | length }}<image_placeholder>"},
    ],
)
def test_save_and_reopen(layout: str, settings: dict[str, Any], golden_checkpoint: Path, tmp_path: Path) -> None:
    processor = JanusProProcessor.from_pretrained(golden_checkpoint, **settings)
    files = processor.save_pretrained(tmp_path, layout=layout)
    assert sorted(files) == sorted(str(path) for path in tmp_path.iterdir())
    opener = AutoProcessor if layout == "original" else JanusProProcessor
    reopened = opener.from_pretrained(tmp_path)
    assert type(reopened) is JanusProProcessor
    same_behaviour(processor, reopened)
    reopened.save_pretrained(tmp_path / "again", layout=layout)
    for file in files:
        assert (tmp_path / "again" / Path(file).name).read_bytes() == Path(file).read_bytes()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_settings_can_be_replaced_on_opening(layout: str, processor: JanusProProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path, layout=layout)
    reopened = JanusProProcessor.from_pretrained(tmp_path, roles=JANUS_1_3B_ROLES, system_prompt="", image_size=48)
    assert reopened.apply_chat_template([{"role": "user", "content": "hi"}]) == "User: hi"
    assert reopened.image_processor.image_size == 48


def test_one_layout_replaces_the_other_in_the_same_folder(processor: JanusProProcessor, tmp_path: Path) -> None:
    for layout in (*LAYOUTS, *LAYOUTS):
        processor.save_pretrained(tmp_path, layout=layout)
        same_behaviour(processor, JanusProProcessor.from_pretrained(tmp_path))
    with pytest.raises(ValueError, match=r"`layout` must be one of \('original', 'transformers'\), got 'hf'"):
        processor.save_pretrained(tmp_path, layout="hf")


def test_original_layout_has_the_originals_schema(
    processor: JanusProProcessor, golden_checkpoint: Path, tmp_path: Path
) -> None:
    processor.save_pretrained(tmp_path)
    for name in ("processor_config.json", "preprocessor_config.json", "special_tokens_map.json"):
        assert read(tmp_path / name) == read(golden_checkpoint / name)
    ours, theirs = read(tmp_path / "tokenizer_config.json"), read(golden_checkpoint / "tokenizer_config.json")
    assert set(ours) - set(theirs) == {"padding_side"}
    assert {key: ours.get(key) for key in theirs} == theirs
    # The original processor raises TypeError on keys it does not know, so roles must not appear in its file.
    processor.roles = JANUS_1_3B_ROLES
    processor.save_pretrained(tmp_path)
    assert read(tmp_path / "processor_config.json") == read(golden_checkpoint / "processor_config.json")


def test_other_tags_of_the_original_are_kept(golden_checkpoint: Path, tmp_path: Path) -> None:
    tags = {"image_tag": "<patch_placeholder>", "pad_tag": "<|ref|>", "image_start_tag": "<|det|>"}
    processor = JanusProProcessor.from_pretrained(golden_checkpoint, **tags)
    processor.save_pretrained(tmp_path)
    reopened = JanusProProcessor.from_pretrained(tmp_path)
    same_behaviour(processor, reopened)
    assert reopened.pad_token_id == reopened.tokenizer.convert_tokens_to_ids("<|ref|>")
    ids = reopened.apply_chat_template(MESSAGES, **TO_BATCH).input_ids[0].tolist()
    assert ids.count(reopened.tokenizer.convert_tokens_to_ids("<patch_placeholder>")) == 36
    assert "<|det|>" in reopened.decode(ids)


@pytest.mark.parametrize("settings", [{}, {"roles": JANUS_1_3B_ROLES, "system_prompt": "Be brief."}])
def test_transformers_reads_its_layout(settings: dict[str, Any], golden_checkpoint: Path, tmp_path: Path) -> None:
    processor = JanusProProcessor.from_pretrained(golden_checkpoint, **settings)
    processor.save_pretrained(tmp_path, layout="transformers")
    for opener in (AutoProcessor, JanusProcessor):
        theirs = opener.from_pretrained(tmp_path)
        assert type(theirs) is JanusProcessor
        assert isinstance(theirs.image_processor, JanusImageProcessorPil)
        same_behaviour(theirs, processor)
        assert (
            theirs(text="a cat", generation_mode="image").input_ids.tolist()
            == processor("a cat", generation_mode="image").input_ids.tolist()
        )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.boi_token_id, tokenizer.image_token_id) == (processor.boi_token_id, processor.image_token_id)
    assert set(tokenizer.all_special_tokens) >= {"<|User|>", "<|Assistant|>", "<end_of_image>"}
    text = "the quick brown fox"
    assert tokenizer.encode(text) == processor.tokenizer.encode(text)


def test_transformers_reads_its_layout_without_this_package(processor: JanusProProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path, layout="transformers")
    code = (
        "import sys; from transformers import AutoProcessor; p = AutoProcessor.from_pretrained(sys.argv[1]);"
        "ids = p.apply_chat_template([{'role': 'user', 'content': 'hi'}], tokenize=True)[0].tolist();"
        "assert 'janus_hf' not in sys.modules; assert type(p).__name__ == 'JanusProcessor'; print(ids)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    ids = processor.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=True)[0].tolist()
    assert json.loads(run.stdout.splitlines()[-1]) == ids


@pytest.mark.parametrize("chat_template", [None, "{{ messages | length }}"])
def test_opens_what_transformers_wrote(
    chat_template: str | None,
    golden_checkpoint: Path,
    golden: dict[str, torch.Tensor],
    manifest: dict[str, Any],
    tmp_path: Path,
) -> None:
    tokens = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = AutoTokenizer.from_pretrained(golden_checkpoint, extra_special_tokens=tokens)
    images = JanusImageProcessorPil(
        size={"height": 24, "width": 24}, min_size=4, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    theirs = JanusProcessor(
        images, tokenizer, chat_template=chat_template, num_image_tokens=36, use_default_system_prompt=True
    )
    theirs.save_pretrained(tmp_path)
    ours = JanusProProcessor.from_pretrained(tmp_path)
    messages = manifest["strings"]["conv1"]["messages"]
    assert ours.system_prompt == SYSTEM_PROMPT
    assert ours.apply_chat_template(messages) == manifest["strings"]["conv1"]["sft_format"]
    batch = ours(ours.apply_chat_template(messages), IMAGES / "wide.png")
    assert torch.equal(batch.input_ids, golden["und.single.input_ids"])
    assert torch.equal(batch.pixel_values, golden["und.single.pixel_values"][0])
    custom = JanusProProcessor.from_pretrained(tmp_path, chat_template="{{ messages[0]['role'] }}")
    assert custom.apply_chat_template(messages) == "<|User|>"


def test_importing_needs_no_optional_package() -> None:
    code = (
        "import sys, janus_hf.processing;"
        "print([name for name in ('diffusers', 'trl', 'datasets', 'peft', 'torchvision') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
