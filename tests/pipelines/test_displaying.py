"""What a notebook shows when an output is the last line of a cell, and that an output stays a diffusers output."""

import base64
import copy
import io
import pickle
import re

import numpy as np
import pytest
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from tiny_pipes import NUM_TOKENS

from janus_hf import JanusProPipelineOutput
from janus_hf.generation import ImageGenerationOutput
from janus_hf.modeling import JanusProCausalLMOutput, JanusProModelOutput, JanusProVQOutput


def output_of(count, side=8):
    images = [Image.new("RGB", (side, side), (10 * number, 0, 0)) for number in range(count)]
    return JanusProPipelineOutput(images=images, image_ids=torch.zeros(count, 4, dtype=torch.long))


def image_in(html):
    (source,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return Image.open(io.BytesIO(base64.b64decode(source)))


@pytest.mark.parametrize(
    ("count", "side", "size"),
    [
        (1, 400, (400, 400)),
        (2, 8, (16, 8)),
        (5, 8, (24, 16)),
        (4, 384, (512, 512)),
        (16, 8, (32, 32)),
        (40, 8, (32, 32)),
    ],
)
def test_images_are_shown_as_a_grid(count, side, size):
    output = output_of(count, side)
    html = output._repr_html_()
    grid = image_in(html)
    assert grid.size == size
    assert grid.getpixel((0, 0)) == (0, 0, 0)
    assert ("The first 16 of 40 images" in html) == (count > 16)
    assert [image.size for image in output.images] == [(side, side)] * count  # not made smaller themselves


@pytest.mark.parametrize("kind", ["pil", "np", "pt", "latent"])
def test_an_output_prints_as_one_line_with_shapes(pipe, kind):
    output = pipe(["a", "b"], image_ids=torch.zeros(2, NUM_TOKENS, dtype=torch.long), output_type=kind)
    text = repr(output)
    assert "\n" not in text
    assert len(text) < 200
    images = {
        "pil": "<2 x Image>",
        "np": "<ndarray (2, 64, 64, 3) float32>",
        "pt": "<Tensor (2, 3, 64, 64) float32 on cpu>",
        "latent": "<Tensor (2, 64) int64 on cpu>",
    }
    assert text == f"JanusProPipelineOutput(images={images[kind]}, image_ids=<Tensor (2, 64) int64 on cpu>)"
    assert (output._repr_html_() is None) == (kind != "pil")


def test_no_images_are_shown_as_text():
    assert output_of(0)._repr_html_() is None


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (
            ImageGenerationOutput(image_ids=torch.zeros(1, 4, dtype=torch.long), num_model_steps=4),
            "ImageGenerationOutput(image_ids=<Tensor (1, 4) int64 on cpu>, num_model_steps=4)",
        ),
        (
            JanusProCausalLMOutput(loss=torch.tensor(1.5), hidden_states=(torch.zeros(1),) * 3),
            "JanusProCausalLMOutput(loss=1.5 (float32), hidden_states=<3 x Tensor>)",
        ),
        (
            JanusProModelOutput(last_hidden_state=torch.zeros(1, 2, 3)),
            "JanusProModelOutput(last_hidden_state=<Tensor (1, 2, 3) float32 on cpu>)",
        ),
        (
            JanusProVQOutput(pixel_values=torch.zeros(1, 3, 8, 8, dtype=torch.bfloat16)),
            "JanusProVQOutput(pixel_values=<Tensor (1, 3, 8, 8) bfloat16 on cpu>)",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, dict) else "",
)
def test_outputs_of_the_models_print_as_one_line(output, text):
    assert repr(output) == text


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_it_stays_a_diffusers_output(again):
    output = again(output_of(2))
    assert isinstance(output, JanusProPipelineOutput)
    assert isinstance(output, BaseOutput)
    assert list(output.keys()) == ["images", "image_ids"]
    assert output["images"] is output.images is output[0]
    assert output.to_tuple()[1] is output.image_ids is output[1]
    assert np.asarray(output.images[1])[0, 0].tolist() == [10, 0, 0]
    images, image_ids = output.to_tuple()
    assert (len(images), image_ids.shape) == (2, (2, 4))


def test_the_class_takes_a_type_and_stays_the_class():
    assert JanusProPipelineOutput[np.ndarray].__origin__ is JanusProPipelineOutput
    tree = torch.utils._pytree.tree_map(lambda leaf: leaf, output_of(1))
    assert isinstance(tree, JanusProPipelineOutput)
