"""LoRA adapters can be exchanged between this package, transformers' own Janus and the original code."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, JanusForConditionalGeneration

from janus_hf import CheckpointError, JanusProForConditionalGeneration


peft = pytest.importorskip("peft")

LANGUAGE = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
EVERYWHERE = ["q_proj", "v_proj", "fc1", "proj_out"]  # tower, aligners and image head too


@pytest.fixture(scope="module")
def folders(golden_model, tmp_path_factory):
    """Save the golden model (float32) in both layouts and return the folder of the two."""
    root = tmp_path_factory.mktemp("base")
    for layout in ("original", "transformers"):
        golden_model.save_pretrained(root / layout, layout=layout)
    return root


def ours(folders, layout="original"):
    return JanusProForConditionalGeneration.from_pretrained(folders / layout)


def theirs(folders):
    return JanusForConditionalGeneration.from_pretrained(folders / "transformers")


def with_adapter(model, targets=LANGUAGE):
    """Wrap a model by peft, with random adapter weights that are large enough to change the logits."""
    config = peft.LoraConfig(r=2, target_modules=targets, exclude_modules=r".*vqmodel.*")
    torch.manual_seed(0)
    model = peft.get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def logits(model, inputs):
    with torch.no_grad():
        return model.eval()(**inputs).logits


@pytest.mark.parametrize("targets", [LANGUAGE, EVERYWHERE], ids=["language", "everywhere"])
@pytest.mark.parametrize("load", ["from_pretrained", "load_adapter"])
def test_made_on_transformers_class_loads_here(folders, golden_inputs, tmp_path, targets, load):
    source = with_adapter(theirs(folders), targets)
    source.save_pretrained(tmp_path)
    expected = logits(source, golden_inputs)
    model = ours(folders)
    plain = logits(model, golden_inputs)
    if load == "load_adapter":
        model.load_adapter(str(tmp_path))
    else:
        model = peft.PeftModel.from_pretrained(model, tmp_path)
    found = logits(model, golden_inputs)
    assert torch.equal(found, expected)
    assert not torch.allclose(found, plain, atol=0.1)


@pytest.mark.parametrize("targets", [LANGUAGE, EVERYWHERE], ids=["language", "everywhere"])
@pytest.mark.parametrize("save", ["peft", "native"])
def test_made_here_loads_on_transformers_class(folders, golden_inputs, tmp_path, targets, save):
    source = with_adapter(ours(folders), targets)
    expected = logits(source, golden_inputs)
    if save == "peft":
        source.save_pretrained(tmp_path / "adapter")
    else:
        source.save_pretrained(tmp_path / "peft")
        native = ours(folders)
        native.load_adapter(str(tmp_path / "peft"))
        native.save_pretrained(tmp_path / "adapter")
        assert not (tmp_path / "adapter" / "model.safetensors").exists()
    for model in (theirs(folders), ours(folders, "transformers"), ours(folders)):
        model.load_adapter(str(tmp_path / "adapter"))
        assert torch.equal(logits(model, golden_inputs), expected)
    model = peft.PeftModel.from_pretrained(ours(folders), tmp_path / "adapter")
    assert torch.equal(logits(model, golden_inputs), expected)


def test_made_on_the_original_code_loads_here(folders, golden_inputs, tmp_path):
    """There `language_model` is a LlamaForCausalLM, so adapters name its layers `language_model.model.layers`."""
    source = with_adapter(ours(folders))
    expected = logits(source, golden_inputs)
    source.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    renamed = {
        name.replace("base_model.model.model.language_model.", "base_model.model.language_model.model."): tensor
        for name, tensor in tensors.items()
    }
    assert not renamed.keys() & tensors.keys()
    save_file(renamed, file, {"format": "pt"})
    model = ours(folders)
    model.load_adapter(str(tmp_path))
    assert torch.equal(logits(model, golden_inputs), expected)


def test_an_adapter_folder_is_a_checkpoint(golden_checkpoint, golden_inputs, manifest, tmp_path):
    """The base model is found through the adapter's config, and with it the special tokens of its tokenizer file."""
    base = JanusProForConditionalGeneration.from_pretrained(golden_checkpoint, dtype=torch.float32)
    source = with_adapter(base)
    source.peft_config["default"].base_model_name_or_path = str(golden_checkpoint)
    source.save_pretrained(tmp_path)
    for auto_class in (JanusProForConditionalGeneration, AutoModelForImageTextToText):
        model = auto_class.from_pretrained(tmp_path, dtype=torch.float32)
        assert type(model) is JanusProForConditionalGeneration
        assert model.config.image_token_id == manifest["special_ids"]["image"]
        assert model.generation_config.pad_token_id == manifest["special_ids"]["pad"]
        assert torch.equal(logits(model, golden_inputs), logits(source, golden_inputs))


def test_an_adapter_of_another_model_is_refused(golden_checkpoint, tmp_path):
    source = with_adapter(JanusProForConditionalGeneration.from_pretrained(golden_checkpoint))
    source.peft_config["default"].base_model_name_or_path = str(golden_checkpoint)
    source.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        JanusProForConditionalGeneration.from_pretrained(tmp_path)
    assert len(caught.value.missing) == 1


@pytest.mark.parametrize("layout", ["original", "transformers"])
def test_merging_and_saving(folders, golden_inputs, tmp_path, layout):
    adapted = with_adapter(ours(folders))
    expected = logits(copy.deepcopy(adapted), golden_inputs)
    merged = adapted.merge_and_unload()
    # Measured 7.8e-5 on logits up to 10: the products are summed in another order. The adapter moves them by units.
    torch.testing.assert_close(logits(merged, golden_inputs), expected, atol=3e-4, rtol=0)
    merged.save_pretrained(tmp_path, layout=layout)
    again = JanusProForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(logits(again, golden_inputs), logits(merged, golden_inputs))
    names = set(load_file(tmp_path / "model.safetensors"))
    assert ("language_model.model.layers.0.self_attn.q_proj.weight" in names) == (layout == "original")
    if layout == "transformers":
        their_model = JanusForConditionalGeneration.from_pretrained(tmp_path)
        assert torch.equal(logits(their_model, golden_inputs), logits(merged, golden_inputs))


def test_adapters_take_part_in_image_generation_and_in_both_losses(folders, golden):
    model = with_adapter(ours(folders), [*EVERYWHERE, "vision_head"])
    prompts = golden["gen.input_tokens"][::2]
    assert not torch.equal(model.generate_images(prompts, do_sample=False), golden["gen.batched_ids"])
    num_text = model.config.text_config.vocab_size
    ids = torch.cat([golden["tf.prompt_ids"], golden["tf.image_ids"] + num_text], dim=1)
    model(input_ids=ids, labels=ids).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("generation_head.vision_head.lora_B" in name for name in trained)
    assert any("language_model.layers.0.self_attn.q_proj.lora_B" in name for name in trained)
    assert all("lora_" in name for name in trained)
