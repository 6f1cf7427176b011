"""Images out of the pipeline and into it: output types, callbacks, given image tokens, encoding and decoding."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipes import CODEBOOK, NUM_TOKENS, SIDE, generate_ids, seeded


def test_output_types(pipe):
    def result(kind):
        return pipe(["a", "b", "c"], generator=seeded(0, 1, 2), output_type=kind, batch_size=2)

    numbers, tensor, images, tokens = (result(kind) for kind in ("np", "pt", "pil", "latent"))
    assert all(torch.equal(output.image_ids, tokens.images) for output in (numbers, tensor, images, tokens))
    assert (numbers.images.shape, numbers.images.dtype) == ((3, SIDE, SIDE, 3), np.float32)
    assert (tensor.images.shape, tensor.images.dtype) == ((3, 3, SIDE, SIDE), torch.float32)
    assert 0 <= tensor.images.min() < tensor.images.max() <= 1
    assert np.array_equal(numbers.images.transpose(0, 3, 1, 2), tensor.images.numpy())
    assert len(images.images) == 3

    # Decoded in the same batches: convolutions of other sizes round differently (measured 4e-6).
    pixels = torch.cat([pipe.model.decode_image_ids(rows) for rows in tokens.images.split(2)])
    assert torch.equal(tensor.images, ((pixels + 1) / 2).clamp(0, 1))


def test_images_are_truncated_to_uint8_like_the_processors(pipe):
    output = pipe("a", generator=seeded(0))
    pixels = pipe.model.decode_image_ids(output.image_ids)
    levels = ((pixels.permute(0, 2, 3, 1).numpy() + 1) / 2 * 255).clip(0, 255)
    generated = np.asarray(output.images[0])
    assert np.array_equal(generated, levels[0].astype(np.uint8))
    assert np.array_equal(generated, np.asarray(pipe.processor.post_process_images(pixels)[0]))
    assert not np.array_equal(generated, levels[0].round().astype(np.uint8))


def test_images_are_not_decoded_for_latent_output(own_pipe, monkeypatch):
    monkeypatch.setattr(own_pipe.model, "decode_image_ids", None)
    assert generate_ids(own_pipe).shape == (1, NUM_TOKENS)


def test_tuple_instead_of_output(pipe):
    images, tokens = pipe("a", generator=seeded(0), return_dict=False)
    assert isinstance(images[0], Image.Image)
    assert torch.equal(tokens, generate_ids(pipe, "a"))


def test_callback_sees_every_token_of_every_batch(pipe):
    seen = []

    def callback(pipeline, step, timestep, tensors):
        assert pipeline is pipe
        assert step == timestep
        assert list(tensors) == ["image_ids"]
        seen.append((step, tuple(tensors["image_ids"].shape)))

    generated = generate_ids(pipe, ["a", "b", "c"], (0, 1, 2), batch_size=2, callback_on_step_end=callback)
    assert seen == [(i, (2, i + 1)) for i in range(NUM_TOKENS)] + [(i, (1, i + 1)) for i in range(NUM_TOKENS)]
    assert torch.equal(generated, generate_ids(pipe, ["a", "b", "c"], (0, 1, 2)))


def test_callback_may_replace_the_newest_tokens(pipe):
    def callback(pipeline, step, timestep, tensors):
        tokens = tensors["image_ids"].clone()
        tokens[:, -1] = step
        return {"image_ids": tokens} if step < 10 else {}

    generated = generate_ids(pipe, callback_on_step_end=callback)
    assert generated[0, :10].tolist() == list(range(10))
    # What follows is generated from the replaced tokens, as if they had been given.
    assert torch.equal(generated, generate_ids(pipe, image_ids=torch.arange(10)[None]))


def test_callback_gets_only_what_it_asks_for(pipe):
    seen = []
    generate_ids(pipe, callback_on_step_end=lambda *a: seen.append(a[3]), callback_on_step_end_tensor_inputs=[])
    assert seen == [{}] * NUM_TOKENS
    with pytest.raises(ValueError, match=r"must be among \['image_ids'\], got \['latents'\]"):
        pipe("a", callback_on_step_end_tensor_inputs=["latents"])


def test_callback_must_return_image_tokens(pipe):
    with pytest.raises(ValueError, match=r"must lie in \[0, 256\)"):
        generate_ids(pipe, callback_on_step_end=lambda *a: {"image_ids": torch.full((1, 1), CODEBOOK)})


def test_given_tokens_are_continued(pipe):
    prompts = ["a red fox", "the blue sea"]
    whole = generate_ids(pipe, prompts, (0, 1))
    # The same seeds continue their own beginnings to the same images, in whatever batch.
    for batch_size in (1, 2):
        assert torch.equal(whole, generate_ids(pipe, prompts, (0, 1), image_ids=whole[:, :20], batch_size=batch_size))
    other = generate_ids(pipe, prompts, (0, 1), image_ids=whole.flip(0)[:, :20])
    assert torch.equal(other[:, :20], whole.flip(0)[:, :20])
    assert not torch.equal(other[:, 20:], whole[:, 20:])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.long), r"one row of image tokens per image \(1\), got shape \(2, 3\)"),
        (torch.zeros(3, dtype=torch.long), r"one row of image tokens per image \(1\), got shape \(3,\)"),
        (torch.full((1, 3), CODEBOOK), r"must lie in \[0, 256\), got values from 256 to 256"),
        (torch.full((1, 3), -1), r"must lie in \[0, 256\), got values from -1 to -1"),
        (torch.zeros(1, NUM_TOKENS + 1, dtype=torch.long), "p <= 64"),
    ],
)
def test_given_tokens_are_checked(pipe, tokens, message):
    with pytest.raises(ValueError, match=message):
        pipe("a", image_ids=tokens)


def test_progress_bar_counts_the_tokens_to_generate(own_pipe, capsys):
    own_pipe.set_progress_bar_config(disable=False)
    own_pipe(["a", "b", "c"], batch_size=2, image_ids=torch.zeros(3, 60, dtype=torch.long))
    shown = capsys.readouterr().err
    assert "Generating images: 100%" in shown
    assert "12/12" in shown  # four image tokens for each of three images
    assert " image tokens/s" in shown
    own_pipe.set_progress_bar_config(desc="foxes")
    own_pipe("a")
    shown = capsys.readouterr().err
    assert "foxes: 100%" in shown
    assert " image tokens/s" in shown
    own_pipe.set_progress_bar_config(disable=True)
    own_pipe("a")
    assert capsys.readouterr().err == ""
    with own_pipe.hidden_progress_bar() as shown:
        assert not shown
    own_pipe.set_progress_bar_config(desc="foxes")
    with own_pipe.hidden_progress_bar() as shown:
        assert shown
        own_pipe("a")
        assert capsys.readouterr().err == ""
    own_pipe("a")
    assert "foxes: 100%" in capsys.readouterr().err


def test_encode_and_decode_are_the_models(pipe, image, tmp_path):
    path = tmp_path / "image.png"
    image.save(path)
    tokens = pipe.encode([image, str(path), np.asarray(image)])
    assert (tokens.shape, tokens.dtype) == ((3, NUM_TOKENS), torch.int64)
    pixels = pipe.processor.image_processor(image, mode="generation").pixel_values
    assert torch.equal(tokens, pipe.model.encode_image_ids(pixels).repeat(3, 1))
    assert torch.equal(pipe.encode(image), tokens[:1])

    decoded = pipe.decode(tokens, output_type="pt")
    assert decoded.shape == (3, 3, SIDE, SIDE)
    assert [image.size for image in pipe.decode(tokens)] == [(SIDE, SIDE)] * 3
    # A generated image goes in again as it came out: arrays, tensors and PIL images of it have the same image tokens.
    as_tensor = pipe.encode(list(decoded))
    assert torch.equal(as_tensor, pipe.encode(list(pipe.decode(tokens, output_type="np"))))


def test_decode_refuses_what_are_no_image_tokens(pipe):
    with pytest.raises(ValueError, match=r"\[0, 256\)"):
        pipe.decode(torch.full((1, NUM_TOKENS), CODEBOOK))
    with pytest.raises(ValueError, match="output_type"):
        pipe.decode(torch.zeros(1, NUM_TOKENS, dtype=torch.long), output_type="latent")


def test_golden_codec(golden_pipe, golden, golden_dir):
    # A square image has no border to pad or crop: both preprocessings of the original agree on it.
    tokens = golden_pipe.encode(golden_dir / "images" / "square.png")
    assert torch.equal(tokens[0], golden["vq.encode_ids"][1])
    levels = np.stack([np.asarray(image) for image in golden_pipe.decode(golden["vq.random_ids"])])
    assert np.array_equal(levels, golden["vq.random_ids_uint8"].numpy())
