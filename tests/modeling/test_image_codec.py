"""The codec: shapes and errors, spherical lookup, training."""

import copy

import pytest
import torch
import torch.nn.functional as F

from janus_hf.modeling import image_codec
from janus_hf.modeling.codec_blocks import convolve_quarters, double_then_convolve, fastest_doubling


K, SIDE, P = 40, 8, 16  # of the tiny config


def pixels(count=2, seed=0, side=SIDE):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def codec(tiny_model):
    return copy.deepcopy(tiny_model.model.vqmodel)


def test_shapes_types_and_ranges(tiny_model):
    codes = tiny_model.encode_image_ids(pixels())
    assert codes.shape == (2, P)
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < K
    assert codes.unique().numel() > 4
    decoded = tiny_model.decode_image_ids(codes)
    assert decoded.shape == (2, 3, SIDE, SIDE)
    assert decoded.dtype == torch.float32
    assert not decoded.requires_grad


def test_images_are_independent(tiny_model):
    both = pixels()
    codes = tiny_model.encode_image_ids(both)
    assert torch.equal(codes[1:], tiny_model.encode_image_ids(both[1:]))
    # Measured 1.7e-5: convolutions of another batch size may sum in another order.
    torch.testing.assert_close(
        tiny_model.decode_image_ids(codes)[1:], tiny_model.decode_image_ids(codes[1:]), atol=1e-4, rtol=0
    )


def test_codes_are_in_reading_order(codec):
    """Codes are ordered row by row from the top left, in encoding and in decoding."""
    seen = {}
    codec.post_quant_conv.register_forward_pre_hook(lambda module, args: seen.update(quantized=args[0]))
    codec.quant_conv.register_forward_hook(lambda module, args, out: seen.update(latents=out))
    codes = codec.encode_image_ids(pixels())
    codec.decode_image_ids(codes)
    table = F.normalize(codec.quantize.embedding.weight, dim=-1)
    for row, column in ((0, 3), (3, 0), (1, 2)):
        at = codes[:, row * 4 + column]
        assert torch.equal(seen["quantized"][:, :, row, column], table[at])
        assert torch.equal((F.normalize(seen["latents"], dim=1)[:, :, row, column] @ table.T).argmax(-1), at)


def test_lookup_is_on_the_sphere(codec):
    """The lengths of latents and of codebook rows do not matter, as in the original and unlike transformers' Janus."""
    codes = codec.encode_image_ids(pixels())
    decoded = codec.decode_image_ids(codes)
    with torch.no_grad():
        codec.quantize.embedding.weight.mul_(torch.rand(K, 1) * 3 + 0.2)
        assert torch.equal(codec.encode_image_ids(pixels()), codes)
        torch.testing.assert_close(codec.decode_image_ids(codes), decoded, atol=1e-4, rtol=0)  # measured 1.3e-5
        codec.quant_conv.weight.mul_(7)
        codec.quant_conv.bias.mul_(7)
    assert torch.equal(codec.encode_image_ids(pixels()), codes)


def test_nearest_is_the_smallest_distance(codec):
    unit = F.normalize(torch.randn(50, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    with torch.no_grad():
        distances = torch.cdist(unit.double(), F.normalize(codec.quantize.embedding.weight.double(), dim=-1))
        assert torch.equal(codec.quantize.nearest(unit), distances.argmin(-1))


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 3, 8, 10), (3, 8, 8), (1, 1, 8, 8), (2, 2, 3, 8, 8)])
def test_images_of_another_size_are_refused(tiny_model, shape):
    with pytest.raises(ValueError, match=r"must be of shape \(B, 3, 8, 8\), got"):
        tiny_model.encode_image_ids(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 15), (1, 17), (16,), (1, 4, 4)])
def test_grids_of_another_size_are_refused(tiny_model, shape):
    with pytest.raises(ValueError, match=r"must be of shape \(B, 16\), one code for each cell of the 4x4 grid"):
        tiny_model.decode_image_ids(torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("code", [-1, K, 100_000])
def test_codes_outside_the_codebook_are_refused(tiny_model, code):
    codes = torch.zeros(1, P, dtype=torch.long)
    codes[0, 3] = code
    with pytest.raises(ValueError, match=rf"must lie in \[0, {K}\).*subtract it first"):
        tiny_model.decode_image_ids(codes)


def test_empty_batches(tiny_model):
    assert tiny_model.decode_image_ids(torch.zeros(0, P, dtype=torch.long)).shape == (0, 3, SIDE, SIDE)


def test_inputs_of_other_types_follow_the_model(tiny_model, make_model):
    codes = tiny_model.encode_image_ids(pixels())
    assert torch.equal(tiny_model.encode_image_ids(pixels().double()), codes)
    decoded = tiny_model.decode_image_ids(codes)
    assert torch.equal(tiny_model.decode_image_ids(codes.int()), decoded)
    half = make_model().to(torch.bfloat16)
    assert half.encode_image_ids(pixels()).shape == (2, P)
    assert half.decode_image_ids(codes).dtype == torch.bfloat16


# --- training


def test_reconstruction_losses_by_hand(codec):
    output = codec(pixels())
    with torch.no_grad():
        latents = F.normalize(codec.encode_latents(pixels()), dim=1)
        codes = F.normalize(codec.quantize.embedding(output.image_ids), dim=-1).movedim(-1, 1).view_as(latents)
        distance = (latents - codes).pow(2).mean()
    torch.testing.assert_close(output.codebook_loss, distance, atol=1e-6, rtol=0)  # measured 0
    torch.testing.assert_close(output.commitment_loss, 0.25 * distance, atol=1e-6, rtol=0)
    assert torch.equal(output.image_ids, codec.encode_image_ids(pixels()))
    # The straight-through value is the code itself, up to rounding: measured 1.2e-5.
    torch.testing.assert_close(output.pixel_values, codec.decode_image_ids(output.image_ids), atol=1e-4, rtol=0)


def test_each_loss_moves_its_own_side(codec):
    def moved(loss):
        codec.zero_grad()
        loss.backward()
        return {name.split(".")[0] for name, p in codec.named_parameters() if p.grad is not None and p.grad.any()}

    assert moved(codec(pixels()).codebook_loss) == {"quantize"}
    assert moved(codec(pixels()).commitment_loss) == {"encoder", "quant_conv"}
    reconstruction = (codec(pixels()).pixel_values - pixels()).abs().mean()
    assert moved(reconstruction) == {"encoder", "quant_conv", "post_quant_conv", "decoder"}


def test_gradient_checkpointing_changes_no_gradient(codec):
    def gradients(model):
        model.zero_grad()
        output = model.train()(pixels())
        ((output.pixel_values - pixels()).abs().mean() + output.commitment_loss + output.codebook_loss).backward()
        return {name: p.grad for name, p in model.named_parameters()}

    checkpointed = copy.deepcopy(codec)
    checkpointed.activation_checkpointing_enable()
    calls = []
    checkpointed.decoder.up[0].block[0].norm1.register_forward_hook(lambda *args: calls.append(0))
    plain, found = gradients(codec), gradients(checkpointed)
    assert len(calls) == 2
    for name, grad in plain.items():
        torch.testing.assert_close(found[name], grad, atol=1e-6, rtol=1e-5)  # measured 0


def test_doubling_in_quarters_is_doubling_then_convolving():
    torch.manual_seed(0)
    weight, bias, x = torch.randn(8, 8, 3, 3) / 9, torch.randn(8), torch.randn(2, 8, 5, 7)
    found, expected = convolve_quarters(x, weight, bias), double_then_convolve(x, weight, bias)
    doubled = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.equal(expected, F.conv2d(doubled, weight, bias, padding=1))
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)  # 72 products and their sums in float32


def test_quarters_are_for_float32_on_a_processor_without_gradients(codec, monkeypatch):
    """The two functions sum in different orders, so an image's last bits tell which of them decoded it."""
    codes = codec.encode_image_ids(pixels())

    half = copy.deepcopy(codec).bfloat16()

    def decode_by(doubling):
        monkeypatch.setattr(image_codec, "fastest_doubling", lambda latents: doubling)
        decoded = codec.decode_image_ids(codes), codec(pixels()).pixel_values, half.decode_image_ids(codes)
        monkeypatch.undo()
        return decoded

    quarters, plain = decode_by(convolve_quarters), decode_by(double_then_convolve)
    assert all(not torch.equal(*pair) for pair in zip(quarters, plain, strict=True))
    assert torch.equal(codec.decode_image_ids(codes), quarters[0])
    assert torch.equal(codec(pixels()).pixel_values, plain[1])  # with gradients, in the original's order
    assert torch.equal(half.decode_image_ids(codes), plain[2])
    with torch.no_grad():
        assert torch.equal(codec(pixels()).pixel_values, quarters[1])
    assert fastest_doubling(torch.zeros(1, device="meta")) is double_then_convolve
