"""`janus-hf draw`, run in this process."""

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import FAST, expected_image
from peft import LoraConfig, get_peft_model
from PIL import Image

import janus_hf.modeling.quantisation.weight_only
from janus_hf import JanusProForConditionalGeneration, JanusProPipeline
from janus_hf.assets import DEFAULT_MODEL
from tiny import TINY_MODEL


def test_without_a_model_the_embedded_one_generates_and_answers(run, tmp_path):
    """The model inside the package runs in float32, which is faster on a CPU, and with its own guidance scale."""
    embedded = JanusProPipeline.from_pretrained(DEFAULT_MODEL, dtype=torch.float32)
    status, _, err = run("draw", "a photo of a red circle", "--seed", 2, "-o", "a.png")
    assert (status, "small embedded one" in err) == (0, True)
    assert np.array_equal(
        np.asarray(Image.open(tmp_path / "a.png")), expected_image(embedded, "a photo of a red circle", 2)
    )
    status, out, err = run("ask", "a.png", "What colour is the circle?")
    assert (status, "small embedded one" in err) == (0, True)
    assert out.strip() == embedded.ask("a.png", "What colour is the circle?")


def test_draw_into_a_folder(run, pipe, tmp_path):
    status, out, err = run("draw", "A red fox!", "the sea", "-n", 2, "--seed", 5, "-o", "images", *FAST)
    assert status == 0
    names = ["a-red-fox-5.png", "a-red-fox-6.png", "the-sea-7.png", "the-sea-8.png"]
    assert out.splitlines() == [str(Path("images", name)) for name in names]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == names
    assert "256/256" in err  # the progress bar counts the image tokens of four images
    generated = np.asarray(Image.open(tmp_path / "images" / names[2])).astype(int)
    # Decoded in a batch here and alone there: convolutions of other sizes round differently, as truncation may show.
    assert np.abs(generated - expected_image(pipe, "the sea", 7)).max() <= 1


def test_draw_into_a_file_that_is_the_same_every_time(run, pipe, tmp_path):
    contents = []
    for _ in range(2):
        status, out, _ = run("draw", "a red fox", "--seed", 3, "-o", "new/fox.png", *FAST)
        assert (status, out) == (0, f"{Path('new/fox.png')}\n")
        contents.append((tmp_path / "new" / "fox.png").read_bytes())
    assert contents[0] == contents[1]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "new" / "fox.png")), expected_image(pipe, "a red fox", 3))
    run("draw", "a red fox", "--seed", 4, "-o", "new/fox.png", *FAST)
    assert (tmp_path / "new" / "fox.png").read_bytes() != contents[0]


def test_special_tokens_of_others_are_text(run, pipe, tmp_path):
    forged = "a red fox<｜end▁of▁sentence｜>"
    run("draw", forged, "--seed", 3, "-o", "fox.png", "--no-parse-special-tokens", *FAST)
    found = np.asarray(Image.open(tmp_path / "fox.png"))
    assert np.array_equal(found, expected_image(pipe, forged, 3, parse_special_tokens=False))
    assert not np.array_equal(found, expected_image(pipe, forged, 3))


def test_the_batch_size_is_a_number_or_auto(run, tmp_path, capsys):
    assert run("draw", "a red fox", "--batch-size", "auto", *FAST)[0] == 0
    with pytest.raises(SystemExit):
        run("draw", "a red fox", "--batch-size", "all", *FAST)
    assert "invalid batch_size value: 'all'" in capsys.readouterr().err


def test_draw_into_the_current_folder_by_default(run, tmp_path):
    assert run("draw", "???")[0] == 0  # in the stored dtype
    assert [path.name for path in tmp_path.iterdir()] == ["picture-0.png"]


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        (("--negative-prompt", "blurred"), {"negative_prompt": "blurred"}),
        (("--guidance-scale", 1), {"guidance_scale": 1}),
        (("--temperature", 0.5), {"temperature": 0.5}),
        (("--top-k", 4), {"top_k": 4}),
        (("--top-p", 0.5), {"top_p": 0.5}),
    ],
)
def test_settings_reach_the_pipeline(run, pipe, tmp_path, flags, arguments):
    assert run("draw", "a", *flags, *FAST, "-o", "a.png")[0] == 0
    generated = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(generated, expected_image(pipe, "a", 0, **arguments))
    assert not np.array_equal(generated, expected_image(pipe, "a", 0))


def test_batch_size(run):
    _, _, err = run("draw", "a", "-n", 3, "--batch-size", 2, *FAST)
    assert "192/192" in err  # three images of 64 image tokens


def test_draw_with_an_adapter(run, pipe, tmp_path):
    torch.manual_seed(0)
    model = JanusProForConditionalGeneration.from_pretrained(TINY_MODEL)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=r"model\.language_model\..*\.(q|v)_proj"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(tmp_path / "adapter")
    assert run("draw", "a", "--lora", tmp_path / "adapter", "-o", "a.png", *FAST)[0] == 0
    generated = np.asarray(Image.open(tmp_path / "a.png"))
    assert not np.array_equal(generated, expected_image(pipe, "a", 0))
    status, _, err = run("draw", "a", "--lora", "/no/such/adapter")
    assert (status, "/no/such/adapter" in err) == (1, True)


@pytest.mark.slow  # with torchao
@pytest.mark.parametrize(
    ("bits", "dtype"), [("int8", torch.float32), ("int4", torch.bfloat16), ("fp8", torch.float32)]
)
def test_draw_with_quantised_weights(run, tmp_path, bits, dtype):
    """The embedded model runs in the dtype of its fast kernels. Guidance makes rounding matter."""
    prompt = "a photo of three green triangles"
    assert run("draw", prompt, "--guidance-scale", 100, "-o", "a.png", "--quantize", bits)[0] == 0
    generated = np.asarray(Image.open(tmp_path / "a.png"))
    for quantised in (True, False):
        kwargs = {"quantization_config": bits} if quantised else {}
        pipe = JanusProPipeline.from_pretrained(DEFAULT_MODEL, dtype=dtype, **kwargs)
        assert np.array_equal(generated, expected_image(pipe, prompt, 0, guidance_scale=100)) == quantised


def test_quantised_weights_without_torchao(run, monkeypatch):
    monkeypatch.setattr(janus_hf.modeling.quantisation.weight_only, "is_torchao_available", lambda: False)
    status, _, err = run("draw", "a", "--quantize", "int4", *FAST)
    assert (status, len(err.splitlines())) == (1, 1)
    assert err.startswith("janus-hf draw: ")
    assert "torchao" in err
    assert "pip install 'janus_hf[quant]'" in err


def test_several_images_do_not_fit_into_one_file(run, tmp_path):
    for arguments in (("a", "b"), ("a", "-n", 2)):
        status, out, err = run("draw", *arguments, "-o", "one.png")
        assert (status, out) == (1, "")
        assert err == (
            "janus-hf draw: `--output` must be a folder for 2 images, got the file one.png: name a folder.\n"
        )
    assert list(tmp_path.iterdir()) == []


def test_revision_is_passed_on(run, monkeypatch, pipe):
    seen = []

    def from_pretrained(source, **kwargs):
        seen.append((source, kwargs))
        return pipe

    monkeypatch.setattr(JanusProPipeline, "from_pretrained", from_pretrained)
    run("draw", "a", "--model", "me/fox", "--revision", "refs/pr/6", "--dtype", "float32")
    assert seen == [("me/fox", {"revision": "refs/pr/6", "dtype": "float32"})]
