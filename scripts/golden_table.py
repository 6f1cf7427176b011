"""Print how far this package deviates from deepseek-ai/Janus: the largest deviation per quantity, as a Markdown table.

    python scripts/golden_table.py

The reference tensors ("goldens") were computed by deepseek-ai/Janus @ 1daa72f under transformers 4.48.3 in float32
from a tiny checkpoint in that code's file format. Tensors and checkpoint are in `tests/goldens`, where `manifest.json`
explains each tensor. The script exits with status 1 if any quantity deviates by more than is allowed.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from janus_hf import JanusProForConditionalGeneration, JanusProProcessor
from janus_hf.processing import JanusProImageProcessor


GOLDENS = Path(__file__).parents[1] / "tests" / "goldens"
FLOAT = 1e-4  # deviation that the authors of the reference tensors allow for float32 logits, embeddings and pixels
PIXEL = 1e-6  # deviation that these authors allow for preprocessed pixel values
EXACT = 0.0

Goldens = dict[str, torch.Tensor]
Measurement = tuple[str, float, float]
"""Quantity, largest absolute deviation, allowed deviation; for ids, strings and bytes the number of differences."""


def measure() -> Iterator[Measurement]:
    """Yield the deviation of every quantity on the tiny checkpoint, from tokenization to generated images.

    Yields:
        The name of the quantity, its largest deviation from the reference, and the allowed deviation.
    """
    golden = load_file(GOLDENS / "golden.safetensors")
    manifest = json.loads((GOLDENS / "manifest.json").read_text(encoding="utf-8"))
    processor = JanusProProcessor.from_pretrained(GOLDENS / "checkpoint")
    yield from _text(processor, golden, manifest)
    yield from _preprocessing(golden, manifest)
    model = JanusProForConditionalGeneration.from_pretrained(GOLDENS / "checkpoint", dtype=torch.float32)
    with torch.no_grad():
        yield from _understanding(model, golden)
        yield from _codec(model, processor, golden)
        yield from _generation(model, processor, golden, manifest)


def _image(name: str) -> Image.Image:
    """Return one of the input images of the reference tensors, by its file name without suffix."""
    return Image.open(GOLDENS / "images" / f"{name}.png")


def _deviation(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest absolute difference between two tensors of the same shape, computed in float64."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return (ours.double() - theirs.double()).abs().max().item()


def _differences(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the number of elements in which two tensors of the same shape differ."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float((ours != theirs).sum())


def _text(processor: JanusProProcessor, golden: Goldens, manifest: dict[str, Any]) -> Iterator[Measurement]:
    """Yield the deviations of the processor's text: rendered chats, token ids, masks and image-generation prompts.

    Args:
        processor: Processor of the tiny checkpoint.
        golden: Reference tensors by name.
        manifest: Content of `manifest.json`, which holds the texts.

    Yields:
        The name of the quantity, its largest deviation from the reference, and the allowed deviation.
    """
    conversations = [manifest["strings"][name] for name in ("conv1", "conv2")]
    rendered = [processor.apply_chat_template(c["messages"], tokenize=False) for c in conversations]
    yield (
        "prompt strings",
        float(sum(a != c["sft_format"] for a, c in zip(rendered, conversations, strict=True))),
        EXACT,
    )
    cases = manifest["strings"]["tokenizer_cases"]
    encoded = [processor.tokenizer(case["text"])["input_ids"] for case in cases]
    yield "token ids", float(sum(a != case["ids"] for a, case in zip(encoded, cases, strict=True))), EXACT
    images = [[_image(name) for name in c["images"]] for c in conversations]
    single = processor(text=rendered[0], images=images[0])
    both = processor(text=rendered, images=images)
    yield (
        "understanding ids and masks, single and left-padded batch",
        sum(
            _differences(batch[key], golden[f"und.{name}.{key}"])
            for name, batch in (("single", single), ("batch", both))
            for key in ("input_ids", "attention_mask")
        ),
        EXACT,
    )
    masks = [
        (batch["input_ids"] == processor.image_token_id, name) for name, batch in (("single", single), ("batch", both))
    ]
    yield (
        "image placeholder mask",
        sum(_differences(mask, golden[f"und.{name}.images_seq_mask"]) for mask, name in masks),
        EXACT,
    )
    prompts = processor.prepare_image_generation(manifest["strings"]["t2i"]["prompts"][:2])
    yield "drawing prompt ids", _differences(prompts["input_ids"], golden["gen.input_tokens"][0::2]), EXACT


def _preprocessing(golden: Goldens, manifest: dict[str, Any]) -> Iterator[Measurement]:
    """Yield the deviations of the pixel values that the vision encoder receives.

    Images are preprocessed at the tiny checkpoint's size, at 96 pixels and at 384 pixels. For 384 pixels the reference
    is a SHA-256 hash, so the deviation is the number of images whose hash differs.

    Args:
        golden: Reference tensors by name.
        manifest: Content of `manifest.json`, which holds the hashes.

    Yields:
        The name of the quantity, its largest deviation from the reference, and the allowed deviation.
    """
    sizes = {"model": (24, 4), "96": (96, 14)}
    worst = 0.0
    for key in (k for k in golden if k.startswith("proc.")):
        _, name, size = key.split(".")
        image_size, min_size = sizes[size.removeprefix("pixel_values_").removesuffix("_clipmean")]
        clip = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD} if size.endswith("_clipmean") else {}
        resizer = JanusProImageProcessor(image_size=image_size, min_size=min_size, **clip)
        worst = max(worst, _deviation(resizer(_image(name))["pixel_values"], golden[key]))
    yield "understanding pixel values", worst, PIXEL
    changed = 0
    for key, expected in manifest["pixel_values_384_sha256"].items():
        pixels = JanusProImageProcessor()(_image(key.split(".")[1]))["pixel_values"]
        changed += (
            hashlib.sha256(pixels.numpy().astype(np.float32).tobytes()).hexdigest() != expected["sha256_float32"]
        )
    yield "understanding pixel values at 384, sha256", float(changed), EXACT


def _understanding(model: JanusProForConditionalGeneration, golden: Goldens) -> Iterator[Measurement]:
    """Yield the deviations of image understanding: image features, embeddings, hidden states, logits, greedy answers.

    Args:
        model: Model of the tiny checkpoint in float32.
        golden: Reference tensors by name.

    Yields:
        The name of the quantity, its largest deviation from the reference, and the allowed deviation.
    """
    features = model.get_image_features(golden["und.single.pixel_values"][0])
    yield "vision features", _deviation(features.last_hidden_state, golden["vis.features"]), FLOAT
    yield "aligned features", _deviation(features.pooler_output, golden["vis.aligned"]), FLOAT
    yield "text logits", _deviation(model(input_ids=golden["text.input_ids"]).logits, golden["text.logits"]), FLOAT
    worst, worst_embeds, worst_hidden, greedy = 0.0, 0.0, 0.0, 0.0
    # The embeddings of text and images together are not returned, so a hook records the language model's inputs.
    seen: dict[str, torch.Tensor] = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    for name in ("single", "batch"):
        present = golden[f"und.{name}.images_emb_mask"].flatten(0, 1).any(dim=-1)
        batch = {
            "input_ids": golden[f"und.{name}.input_ids"],
            "attention_mask": golden[f"und.{name}.attention_mask"],
            "pixel_values": golden[f"und.{name}.pixel_values"].flatten(0, 1)[present],
        }
        logits = model(**batch).logits
        worst_embeds = max(worst_embeds, _deviation(seen["inputs_embeds"], golden[f"und.{name}.inputs_embeds"]))
        if name == "single":
            hidden = model.model(**batch).last_hidden_state
            worst_hidden = _deviation(hidden, golden["und.single.last_hidden_state"])
        expected = golden["und.single.logits"] if name == "single" else golden["und.batch.logits_last40"]
        worst = max(worst, _deviation(logits[:, -expected.shape[1] :], expected))
        ids = model.generate(**batch, do_sample=False, max_new_tokens=8, eos_token_id=None)
        greedy += _differences(ids[:, -8:], golden[f"und.{name}.greedy8"])
    hook.remove()
    yield "understanding input embeddings, single and left-padded batch", worst_embeds, FLOAT
    yield "understanding hidden states", worst_hidden, FLOAT
    yield "understanding logits, single and left-padded batch", worst, FLOAT
    yield "greedy answers", greedy, EXACT


def _codec(
    model: JanusProForConditionalGeneration, processor: JanusProProcessor, golden: Goldens
) -> Iterator[Measurement]:
    """Yield the deviations of the image codec (VQ tokenizer): latents, image tokens, pixels and training losses.

    Args:
        model: Model of the tiny checkpoint in float32.
        processor: Processor of the tiny checkpoint, which converts pixels to uint8 images.
        golden: Reference tensors by name.

    Yields:
        The name of the quantity, its largest deviation from the reference, and the allowed deviation.
    """
    codec = model.model.vqmodel
    yield "codec latents", _deviation(codec.encode_latents(golden["vq.input"]), golden["vq.pre_quant"]), FLOAT
    yield "codec ids", _differences(model.encode_image_ids(golden["vq.input"]), golden["vq.encode_ids"]), EXACT
    codes_BHWE = codec.quantize.lookup(golden["vq.encode_ids"]).unflatten(1, golden["vq.quant"].shape[2:])
    yield "codec quantised latents", _deviation(codes_BHWE.movedim(-1, 1), golden["vq.quant"]), FLOAT
    output = codec(golden["vq.input"])
    yield (
        "codec pixels",
        max(
            _deviation(model.decode_image_ids(golden["vq.encode_ids"]), golden["vq.decode_pixels"]),
            _deviation(model.decode_image_ids(golden["vq.random_ids"]), golden["vq.random_ids_pixels"]),
            _deviation(output.pixel_values, golden["vq.forward_pixels"]),
        ),
        FLOAT,
    )
    losses = torch.stack([output.codebook_loss, output.commitment_loss])
    yield "codec training losses", _deviation(losses, golden["vq.train_losses"][:2]), FLOAT
    image = processor.post_process_images(golden["vq.random_ids_pixels"])[0]
    yield (
        "uint8 picture of given pixels",
        _differences(torch.from_numpy(np.array(image))[None], golden["vq.random_ids_uint8"]),
        EXACT,
    )


def _generation(
    model: JanusProForConditionalGeneration, processor: JanusProProcessor, golden: Goldens, manifest: dict[str, Any]
) -> Iterator[Measurement]:
    """Yield the deviations of image generation: teacher-forced logits and loss, greedy image tokens, their images.

    Image tokens are generated with and without guidance, and with both kinds of attention cache.

    Args:
        model: Model of the tiny checkpoint in float32.
        processor: Processor of the tiny checkpoint.
        golden: Reference tensors by name.
        manifest: Content of `manifest.json`, which holds the prompts.

    Yields:
        The name of the quantity, its largest deviation from the reference, and the allowed deviation.
    """
    num_text = model.config.text_config.vocab_size
    prompt, codes = golden["tf.prompt_ids"], golden["tf.image_ids"]
    yield "code embeddings", _deviation(model.model.embed_image_ids(codes), golden["tf.gen_embeds"]), FLOAT
    ids = torch.cat([prompt, codes + num_text], dim=1)
    hidden = model.model(input_ids=ids).last_hidden_state[:, prompt.shape[1] - 1 : -1]
    yield (
        "teacher-forced image logits",
        _deviation(model.model.generation_head(hidden), golden["tf.gen_logits"]),
        FLOAT,
    )
    labels = torch.cat([torch.full_like(prompt, -100), codes + num_text], dim=1)
    yield "teacher-forced loss", _deviation(model(input_ids=ids, labels=labels).loss, golden["tf.loss"]), FLOAT

    prompts = manifest["strings"]["t2i"]["prompts"]
    expected = torch.stack([golden[f"gen.prompt{i}_ids"] for i in range(3)])
    for cache in ("static", "dynamic"):
        settings = {"do_sample": False, "cache_implementation": cache, "output_logits": True}
        together = model.generate_images(
            **processor.prepare_image_generation(prompts[:2]), **settings, return_dict_in_generate=True
        )
        alone = model.generate_images(
            **processor.prepare_image_generation(prompts[2]), **settings, return_dict_in_generate=True
        )
        yield (
            f"guided greedy codes, {cache} cache",
            (
                _differences(together.image_ids, golden["gen.batched_ids"])
                + _differences(alone.image_ids, golden["gen.prompt2_ids"][None])
            ),
            EXACT,
        )
        yield (
            f"guided logits of every step, {cache} cache",
            max(
                _deviation(together.logits, golden["gen.batched_cfg_logits"]),
                _deviation(alone.logits, golden["gen.prompt2_cfg_logits"][None]),
            ),
            FLOAT,
        )
        mixed = model.generate_images(
            **processor.prepare_image_generation(prompts), do_sample=False, cache_implementation=cache
        )
        yield f"guided greedy codes, mixed lengths in one batch, {cache} cache", _differences(mixed, expected), EXACT
    unguided = model.generate_images(
        **processor.prepare_image_generation(prompts[0]), do_sample=False, guidance_scale=1
    )
    yield "greedy codes at guidance 1", _differences(unguided, golden["gen.prompt0_cfg1_ids"][None]), EXACT
    pixels = model.decode_image_ids(expected)
    yield "pixels of drawn pictures", _deviation(pixels, golden["gen.pixels"]), FLOAT
    images = np.stack([np.array(image) for image in processor.post_process_images(golden["gen.pixels"])])
    yield "uint8 drawn pictures", _differences(torch.from_numpy(images), golden["gen.uint8"]), EXACT


def main() -> int:
    """Print the table of deviations; return 1 if any quantity deviates by more than is allowed, otherwise 0."""
    failed = False
    print("| quantity | largest deviation | allowed |\n|---|---|---|")
    for quantity, deviation, allowed in measure():
        failed |= not deviation <= allowed  # written so that NaN fails too
        shown = f"{deviation:.1e}" if allowed else f"{deviation:.0f} differences"
        print(f"| {quantity} | {shown} | {f'{allowed:.0e}' if allowed else 'exact'} |")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
