"""Saving and loading in both layouts, with shards, `.bin` and safetensors, offloading, and transformers' own Janus."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    JanusConfig,
    JanusForConditionalGeneration,
)

from janus_hf import CheckpointError, JanusProForConditionalGeneration, JanusProModel


LAYOUTS = ["original", "transformers"]
UNUSED = ("vision_model.vision_tower.attn_pool.", "gen_vision_model.quantize.codebook_used")


def assert_same_weights(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


def read_bins(folder):
    tensors = {}
    for file in sorted(folder.glob("*.bin")):
        tensors |= torch.load(file, weights_only=True)
    return tensors


def read_safetensors(folder):
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


@pytest.fixture(scope="module")
def bfloat16_model(golden_checkpoint):
    """The golden checkpoint as it is stored. Shared: do not change it."""
    return JanusProForConditionalGeneration.from_pretrained(golden_checkpoint)


# --- reading the original


def test_the_dtype_is_the_files_own(bfloat16_model, golden_model):
    assert {p.dtype for p in bfloat16_model.parameters()} == {torch.bfloat16}
    assert bfloat16_model.config.dtype == torch.bfloat16
    assert {p.dtype for p in golden_model.parameters()} == {torch.float32}
    assert not bfloat16_model.training


def test_nothing_stays_random(bfloat16_model, golden_checkpoint):
    """Every tensor of the model is a tensor of the file, or a third of one that fuses q, k and v."""
    stored = read_bins(golden_checkpoint)
    known = {(tensor.numel(), tensor.double().sum().item()) for tensor in stored.values()}
    for name, tensor in stored.items():
        if ".attn.qkv." in name:
            known |= {(part.numel(), part.double().sum().item()) for part in tensor.chunk(3)}
    for name, tensor in bfloat16_model.state_dict().items():
        assert (tensor.numel(), tensor.double().sum().item()) in known, name


def test_special_tokens_come_from_the_tokenizer_file(bfloat16_model, manifest):
    special = manifest["special_ids"]
    assert bfloat16_model.config.image_token_id == special["image"]
    generation = bfloat16_model.generation_config
    assert (generation.bos_token_id, generation.eos_token_id) == (special["bos"], special["eos"])
    assert generation.pad_token_id == special["pad"]
    assert bfloat16_model.config.text_config.pad_token_id is None


def test_weights_without_a_tokenizer_load_too(golden_checkpoint, golden_model, tmp_path):
    for name in ("config.json", "pytorch_model.bin.index.json"):
        (tmp_path / name).write_bytes((golden_checkpoint / name).read_bytes())
    for file in golden_checkpoint.glob("*.bin"):
        (tmp_path / file.name).symlink_to(file)
    model = JanusProForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    assert model.config.image_token_id is None
    assert_same_weights(model, golden_model)


def test_original_safetensors(golden_checkpoint, bfloat16_model, tmp_path):
    save_file(read_bins(golden_checkpoint), tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((golden_checkpoint / "config.json").read_bytes())
    assert_same_weights(JanusProForConditionalGeneration.from_pretrained(tmp_path), bfloat16_model)


@pytest.mark.parametrize(
    "auto_class", [AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM]
)
def test_every_auto_class_gives_the_complete_model(auto_class, golden_checkpoint, bfloat16_model):
    model = auto_class.from_pretrained(golden_checkpoint)
    assert type(model) is JanusProForConditionalGeneration
    assert_same_weights(model, bfloat16_model)


def test_the_bare_model_loads_and_saves(golden_checkpoint, bfloat16_model, tmp_path):
    bare = JanusProModel.from_pretrained(golden_checkpoint)
    assert_same_weights(bare, bfloat16_model.model)
    for layout in LAYOUTS:
        bare.save_pretrained(tmp_path / layout, layout=layout)
        assert_same_weights(JanusProModel.from_pretrained(tmp_path / layout), bare)
    stored = read_bins(golden_checkpoint)
    written = read_safetensors(tmp_path / "original")
    assert {n for n in stored if not n.startswith((*UNUSED, "language_model.lm_head."))} == set(written)
    with pytest.raises(CheckpointError) as caught:
        JanusProForConditionalGeneration.from_pretrained(tmp_path / "original")
    assert caught.value.missing == ["lm_head.weight"]


# --- save and load again


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("max_shard_size", ["5GB", "300KB"])
@pytest.mark.parametrize("source", ["golden", "fresh"])
def test_reload_is_bit_equal(bfloat16_model, interop_model, tmp_path, layout, max_shard_size, source):
    model = bfloat16_model if source == "golden" else interop_model
    model.save_pretrained(tmp_path, layout=layout, max_shard_size=max_shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (max_shard_size == "300KB")
    again = JanusProForConditionalGeneration.from_pretrained(tmp_path)
    assert_same_weights(again, model)
    assert again.config.image_token_id == model.config.image_token_id
    assert again.generation_config.pad_token_id == model.generation_config.pad_token_id
    # A second round trip, through the other layout, ends where the first began.
    other = tmp_path / "other"
    again.save_pretrained(other, layout=LAYOUTS[1 - LAYOUTS.index(layout)])
    assert_same_weights(JanusProForConditionalGeneration.from_pretrained(other), model)


def test_sizes_that_only_the_original_layout_expresses(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    assert_same_weights(AutoModel.from_pretrained(tmp_path), tiny_model)
    with pytest.raises(ValueError, match="layout='original'"):
        tiny_model.save_pretrained(tmp_path / "other", layout="transformers")
    assert not (tmp_path / "other").exists()  # refused before anything is written


def test_original_save_has_the_originals_names_shapes_dtypes_and_values(bfloat16_model, golden_checkpoint, tmp_path):
    bfloat16_model.save_pretrained(tmp_path)
    stored, written = read_bins(golden_checkpoint), read_safetensors(tmp_path)
    assert set(written) == {name for name in stored if not name.startswith(UNUSED)}
    for name, tensor in written.items():
        assert tensor.dtype == stored[name].dtype
        assert torch.equal(tensor, stored[name]), name


def test_transformers_save_has_our_own_names(bfloat16_model, tmp_path):
    bfloat16_model.save_pretrained(tmp_path, layout="transformers")
    assert set(read_safetensors(tmp_path)) == set(bfloat16_model.state_dict())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saving_does_not_change_the_model(golden_model_copy, tmp_path, layout):
    before = {name: tensor.clone() for name, tensor in golden_model_copy.state_dict().items()}
    config = golden_model_copy.config.to_json_string()
    conversions = golden_model_copy._weight_conversions
    golden_model_copy.save_pretrained(tmp_path, layout=layout)
    assert json.loads(golden_model_copy.config.to_json_string()) == {
        **json.loads(config),
        "architectures": ["JanusProForConditionalGeneration"],
    }
    assert golden_model_copy._weight_conversions is conversions
    assert all(torch.equal(before[name], tensor) for name, tensor in golden_model_copy.state_dict().items())


def test_unknown_layouts_are_refused(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="'original' or 'transformers', got 'gguf'"):
        tiny_model.save_pretrained(tmp_path, layout="gguf")


def test_config_alone_builds_a_model_with_a_codebook_on_the_sphere(tiny_config):
    model = AutoModel.from_config(tiny_config())
    norms = model.model.vqmodel.quantize.embedding.weight.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-5, rtol=0)  # measured 1.2e-7


# --- tied embeddings


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tied_embeddings_survive(make_model, tiny_config, tmp_path, layout):
    model = make_model(tiny_config(vq={"num_patches": 3, "image_token_embed_dim": 48}, tie_word_embeddings=True))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path, layout=layout)
    again = JanusProForConditionalGeneration.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert_same_weights(again, model)
    # The original code ties nothing, so its files hold the head.
    assert ("language_model.lm_head.weight" in read_safetensors(tmp_path)) == (layout == "original")


def test_untied_by_default(tiny_model, golden_model):
    for model in (tiny_model, golden_model):
        assert model.lm_head.weight is not model.get_input_embeddings().weight


# --- device_map and disk offload


@pytest.mark.parametrize("source", ["bin", "original", "transformers"])
def test_disk_offload(golden_checkpoint, golden_model, bfloat16_model, golden, golden_inputs, tmp_path, source):
    folder = golden_checkpoint
    if source != "bin":
        folder = tmp_path / "stored"
        bfloat16_model.save_pretrained(folder, layout=source)
    device_map = {
        "model.vision_model": "disk",
        "model.aligner": "cpu",
        "model.vqmodel": "disk",
        "model.generation_embeddings": "disk",
        "model.generation_aligner": "disk",
        "model.generation_head": "disk",
        "model.language_model.embed_tokens": "cpu",
        "model.language_model.layers.0": "cpu",
        "model.language_model.layers.1": "disk",
        "model.language_model.norm": "disk",
        "model.language_model.rotary_emb": "cpu",
        "lm_head": "disk",
    }
    model = JanusProForConditionalGeneration.from_pretrained(
        folder, device_map=device_map, offload_folder=tmp_path / "offload", dtype=torch.float32
    )
    assert model.model.vqmodel.decoder.conv_in.weight.device.type == "meta"
    assert model.model.language_model.layers[1].mlp.up_proj.weight.device.type == "meta"

    with torch.no_grad():
        assert torch.equal(model(**golden_inputs).logits, golden_model(**golden_inputs).logits)
    generate = {**golden_inputs, "do_sample": False, "max_new_tokens": 3}
    assert torch.equal(model.generate(**generate), golden_model.generate(**generate))
    prompts = golden["gen.input_tokens"][::2]
    assert torch.equal(model.generate_images(prompts, do_sample=False), golden["gen.batched_ids"])
    assert torch.equal(model.encode_image_ids(golden["vq.input"]), golden["vq.encode_ids"])
    codes = golden["vq.encode_ids"]
    assert torch.equal(model.decode_image_ids(codes), golden_model.decode_image_ids(codes))

    for layout in LAYOUTS:
        model.save_pretrained(tmp_path / layout, layout=layout)
        assert_same_weights(JanusProForConditionalGeneration.from_pretrained(tmp_path / layout), golden_model)


def test_device_map_auto_splits_between_blocks_only(golden_checkpoint, golden_model, golden, tmp_path):
    model = JanusProForConditionalGeneration.from_pretrained(
        golden_checkpoint,
        device_map="auto",
        max_memory={"cpu": "3500KB"},  # less than the codec, the largest block, and the rest
        offload_folder=tmp_path,
        dtype=torch.float32,
    )
    placed = model.hf_device_map
    assert set(placed.values()) == {"cpu", "disk"}
    assert placed["model.vqmodel"] == "disk"  # in one piece
    assert model._no_split_modules == {"JanusProVQModel", "JanusVisionEncoderLayer", "LlamaDecoderLayer"}
    with torch.no_grad():
        ids = golden["text.input_ids"]
        assert torch.equal(model(input_ids=ids).logits, golden_model(input_ids=ids).logits)


# --- transformers' own Janus


def test_transformers_class_reads_our_save(golden_model, golden, golden_inputs, tmp_path):
    golden_model.save_pretrained(tmp_path, layout="transformers")
    theirs, info = JanusForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same_weights(theirs, golden_model)
    assert theirs.lm_head.weight is not theirs.get_input_embeddings().weight
    assert theirs.config.tie_word_embeddings is False

    with torch.no_grad():
        assert torch.equal(theirs(**golden_inputs).logits, golden_model(**golden_inputs).logits)

    prompts = golden["gen.input_tokens"][::2]
    theirs.generation_config.generation_kwargs = {"boi_token_id": int(prompts[0, -1])}
    generated = theirs.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        generation_mode="image",
        do_sample=False,
        guidance_scale=5.0,
    )
    assert torch.equal(generated, golden["gen.batched_ids"])
    assert torch.equal(generated, golden_model.generate_images(prompts, do_sample=False))


@pytest.mark.parametrize("tied", [False, True])
def test_we_read_transformers_saves(interop_config, interop_model, tmp_path, tied):
    theirs = JanusForConditionalGeneration(
        JanusConfig.from_dict(interop_config.to_file_dict("transformers") | {"tie_word_embeddings": tied})
    )
    theirs.save_pretrained(tmp_path)
    assert ("lm_head.weight" in read_safetensors(tmp_path)) is not tied
    ours = JanusProForConditionalGeneration.from_pretrained(tmp_path)
    assert_same_weights(ours, theirs)
    assert (ours.lm_head.weight is ours.get_input_embeddings().weight) is tied
    ids = torch.tensor([[92, 3, 4, 5, *[90] * 9, 6]])
    pixel_values = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        ours_logits = ours(input_ids=ids, pixel_values=pixel_values).logits
        assert torch.equal(ours_logits, theirs.eval()(input_ids=ids, pixel_values=pixel_values).logits)
    # From there to the original layout and back to transformers' class.
    ours.save_pretrained(tmp_path / "original")
    again = JanusProForConditionalGeneration.from_pretrained(tmp_path / "original")
    again.save_pretrained(tmp_path / "transformers", layout="transformers")
    assert_same_weights(JanusForConditionalGeneration.from_pretrained(tmp_path / "transformers"), theirs)
