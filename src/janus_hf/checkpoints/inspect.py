"""A function that describes a checkpoint (architecture, sizes, memory) from its config.json alone."""

import os
from dataclasses import dataclass
from typing import Any

import torch

from ..configuration import JanusProConfig
from ..hub.opening import CONFIG_FILE, open_source
from ..layouts import layout_of
from ..modeling import JanusProForConditionalGeneration


# (number of layers, hidden size) of the language model -> name of the released model that has them.
_RELEASED = {(24, 2048): "Janus-Pro-1B (or Janus-1.3B, which shares its architecture)", (30, 4096): "Janus-Pro-7B"}

# Name of a part of the model -> prefixes of the names of its parameters.
_PARTS = {
    "language model": ("model.language_model.", "lm_head."),
    "understanding encoder": ("model.vision_model.",),
    "image codec": ("model.vqmodel.",),
    "aligners and image head": ("model.aligner.", "model.generation_"),
}


@dataclass
class CheckpointInfo:
    """Facts about a checkpoint; `str(info)` formats them as a table.

    Attributes:
        family: Name of the released model with this architecture, or a note that there is none.
        layout: File layout: "original" (that of deepseek-ai's releases) or "transformers".
        dtype: Dtype of the stored weights, as config.json states it.
        parameters: Name of each part of the model -> its number of parameters.
        weight_bytes: Memory that the weights take in `dtype`, in bytes.
        cache_bytes_per_picture: Memory in bytes that the attention cache takes while one image is generated with
            guidance from a prompt of 50 tokens.
        image_size: Width and height of generated images, in pixels.
        num_image_tokens: Number of image tokens per generated image.
        codebook_size: Number of different image tokens, which is the size of the image codec's codebook.
        context_length: Largest number of tokens of a conversation, those of images included.
        vocab_size: Number of different text tokens.
    """

    family: str
    layout: str
    dtype: str
    parameters: dict[str, int]
    weight_bytes: int
    cache_bytes_per_picture: int
    image_size: int
    num_image_tokens: int
    codebook_size: int
    context_length: int
    vocab_size: int

    def __str__(self) -> str:
        gib = 2**30
        lines = [
            f"family             {self.family}",
            f"layout             {self.layout}",
            f"stored dtype       {self.dtype}",
            f"parameters         {sum(self.parameters.values()) / 1e6:,.1f} M",
            *(f"  {part:<25}{count / 1e6:>10,.1f} M" for part, count in self.parameters.items()),
            f"generated images   {self.image_size}x{self.image_size} pixels, {self.num_image_tokens} image tokens out "
            f"of {self.codebook_size}",
            f"text               {self.vocab_size} tokens, context {self.context_length}",
            f"memory, weights    {self.weight_bytes / gib:.2f} GiB in {self.dtype}",
            f"memory, images     + {self.cache_bytes_per_picture / gib:.2f} GiB per image generated at the same time",
        ]
        return "\n".join(lines)


def inspect_checkpoint(source: str | os.PathLike[str], **hub_kwargs: Any) -> CheckpointInfo:
    """Describe a Janus or Janus-Pro checkpoint from its config.json, without reading its weights.

    Args:
        source: Repository id or folder of the checkpoint.
        hub_kwargs: Arguments that say where on the Hub the source is: `revision`, `token`, `cache_dir`, ...

    Raises:
        ValueError: If the source is another kind of model, or has no config.json that names a `model_type`.
        OSError: If the source does not exist or cannot be had.
    """
    raw = open_source(source, hub_kwargs).read_json(CONFIG_FILE) or {}
    family = raw.get("model_type")
    if family not in ("multi_modality", "janus"):
        found = f"is a {family!r} checkpoint" if family else "has no config.json that names a model_type"
        raise ValueError(
            "`source` must be a Janus or Janus-Pro checkpoint (model_type 'multi_modality' or 'janus'), got "
            f"{str(source)!r}, which {found}: name another folder or repository."
        )
    config = JanusProConfig.from_dict(raw)
    with torch.device("meta"):  # parameters without memory: only their shapes are counted
        model = JanusProForConditionalGeneration(config)
    counts = {
        part: sum(p.numel() for name, p in model.named_parameters() if name.startswith(prefixes))
        for part, prefixes in _PARTS.items()
    }
    text, vq = config.text_config, config.vq_config
    dtype = config.dtype or torch.float32
    heads = text.num_key_value_heads * (
        getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    )
    rows, positions = 2, 50 + vq.num_image_tokens  # guidance runs each prompt twice: as it is, and unconditionally
    return CheckpointInfo(
        family=_RELEASED.get(
            (text.num_hidden_layers, text.hidden_size), "Janus-Pro architecture, of no released size"
        ),
        layout=layout_of(raw),
        dtype=str(dtype).removeprefix("torch."),
        parameters=counts,
        weight_bytes=sum(counts.values()) * dtype.itemsize,
        cache_bytes_per_picture=2 * text.num_hidden_layers * heads * rows * positions * dtype.itemsize,
        image_size=vq.image_size,
        num_image_tokens=vq.num_image_tokens,
        codebook_size=vq.num_embeddings,
        context_length=text.max_position_embeddings,
        vocab_size=text.vocab_size,
    )


__all__ = ["CheckpointInfo", "inspect_checkpoint"]
