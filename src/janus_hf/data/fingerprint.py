"""Functions that compute the fingerprint of a model and its processor, and compare it with that of prepared data.

A fingerprint holds the facts on which the ids in prepared data depend: token ids, sizes and hashes.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.integrations import is_deepspeed_zero3_enabled

from ..processing import JanusProProcessor
from ..protocols import HasImageTokens


def fingerprint(model: HasImageTokens, processor: JanusProProcessor) -> dict[str, Any]:
    """Return the facts of a model and its processor that the ids in prepared data depend on.

    Image codes have a meaning only for the codec that made them, and text ids only for their tokenizer.

    Args:
        model: `JanusProForConditionalGeneration` with the weights of its codec loaded.
        processor: The model's processor.

    Returns:
        `{"model": {...}, "processor": {...}}`. Each inner dict maps the name of a fact to a number, or to a hash of 16
        hexadecimal digits.

    Raises:
        ValueError: If token ids or sizes differ between model and processor, or the image placeholder's id is not in
            the text vocabulary.
    """
    config, codec = model.config, model.model.vqmodel
    # A model without a padding id of its own takes the processor's, so the two cannot disagree.
    pad = model.generation_config.pad_token_id
    pairs = {
        "id of the padding token": (processor.pad_token_id if pad is None else pad, processor.pad_token_id),
        "id of the image placeholder": (config.image_token_id, processor.image_token_id),
        "number of placeholders per image": (config.vision_config.num_image_tokens, processor.num_image_tokens),
        "side of images to understand": (config.vision_config.image_size, processor.image_processor.image_size),
        "side of generated images": (config.vq_config.image_size, processor.image_processor.image_size),
    }
    for name, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise ValueError(
                f"The {name} must be the same in model and processor, got {ours} in the model and {theirs} in the "
                "processor: load both from the same checkpoint."
            )
    # An id past the vocabulary would be read as an image code, because the joint id of code c is vocab_size + c.
    if config.image_token_id >= config.text_config.vocab_size:
        raise ValueError(
            f"The image placeholder's id must be below the size of the text vocabulary, got {config.image_token_id} "
            f"with {config.text_config.vocab_size} text ids, after which image codes begin: resize the model's "
            "embeddings first."
        )
    return {
        "model": {
            "vocab_size": config.text_config.vocab_size,
            "num_codes": config.vq_config.num_embeddings,
            "codes_per_picture": config.vq_config.num_image_tokens,
            "codec_image_size": config.vq_config.image_size,
            "codec_hash": _hash_weights([codec.quant_conv.weight, codec.quantize.embedding.weight]),
        },
        "processor": processor_fingerprint(processor),
    }


def processor_fingerprint(processor: JanusProProcessor) -> dict[str, Any]:
    """Return the properties of a processor that prepared rows depend on, as name -> number or hash."""
    # The vocabulary gives ids their meaning, and the template decides which ids surround a turn.
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "boi_token_id", "eoi_token_id", "image_token_id")
    vocabulary = json.dumps(sorted(processor.tokenizer.get_vocab().items())).encode()
    template = json.dumps(processor.chat_template).encode()
    return {
        **{name: getattr(processor, name) for name in names},
        "num_image_tokens": processor.num_image_tokens,
        "tokenizer_hash": hashlib.sha256(vocabulary).hexdigest()[:16],
        "template_hash": hashlib.sha256(template).hexdigest()[:16],
    }


def check_fingerprint(found: Mapping[str, Any], expected: Mapping[str, Any], name: str) -> None:
    """Raise `ValueError`, with both values of every difference, unless prepared data have the expected fingerprint.

    Args:
        found: Fingerprint of the data, as in `meta.json`; entries that `expected` does not have are ignored.
        expected: Fingerprint of the model and processor in use (see `fingerprint`), or only one of its two entries.
        name: Name of the data, for the error message.
    """
    differences = [
        f"  {key}: {found[part].get(key)} in the data, {value} in the {part}"
        for part, values in expected.items()
        for key, value in values.items()
        if found[part].get(key) != value
    ]
    if differences:
        listing = "\n".join(differences)
        raise ValueError(
            f"The prepared data {name} was made for another model or processor:\n{listing}\nPrepare the source again "
            "with this checkpoint, or train the checkpoint it was prepared with."
        )


@contextmanager
def gathered(weights: Iterable[torch.Tensor]) -> Iterator[None]:
    """Hold whole weights inside the `with` block, also those that DeepSpeed's ZeRO-3 has divided among all processes.

    Under ZeRO-3, `from_pretrained` leaves every process an empty tensor and a share of each weight. All processes must
    enter the block together, because they exchange these shares. Changes of the weights are lost.
    """
    if not is_deepspeed_zero3_enabled():
        yield
        return
    import deepspeed

    # DeepSpeed refuses to gather a weight that an enclosing block has gathered, and such a weight is not empty.
    divided = [weight for weight in weights if getattr(weight, "ds_numel", 0) > weight.numel()]
    with deepspeed.zero.GatheredParameters(divided):
        yield


def _hash_weights(weights: Sequence[torch.Tensor]) -> str:
    """Return the SHA-256 of the values of all weights, rounded to bfloat16, shortened to 16 hexadecimal digits."""
    # Weights are hashed in bfloat16, so that a checkpoint has the same hash in whatever precision it is loaded.
    digest = hashlib.sha256()
    with gathered(weights):
        for weight in weights:
            digest.update(weight.detach().cpu().to(torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


__all__ = ["check_fingerprint", "fingerprint", "gathered", "processor_fingerprint"]
