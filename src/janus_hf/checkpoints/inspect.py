"""What a checkpoint is, read from its configuration alone: family, sizes, memory."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..configuration import JanusProConfig
from ..layouts import layout_of
from ..modeling import JanusProForConditionalGeneration


# Released sizes by (layers, width) of the language model.
_KNOWN = {(24, 2048): "Janus-Pro-1B (or Janus-1.3B, which shares its architecture)", (30, 4096): "Janus-Pro-7B"}

_PARTS = {
    "language model": ("model.language_model.", "lm_head."),
    "understanding encoder": ("model.vision_model.",),
    "image codec": ("model.vqmodel.",),
    "aligners and image head": ("model.aligner.", "model.generation_"),
}


@dataclass
class CheckpointInfo:
    """Facts about a checkpoint. Sizes in bytes unless said otherwise."""

    family: str
    layout: str  # "original" or "transformers"
    dtype: str  # of the stored weights, as the configuration states it
    parameters: dict[str, int]  # per part
    weight_bytes: int  # in `dtype`
    cache_bytes_per_picture: int  # attention cache while drawing one picture with guidance, prompt of 50 tokens
    image_size: int  # side of drawn pictures, pixels
    num_image_tokens: int  # codes per drawn picture
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
            f"drawn pictures     {self.image_size}x{self.image_size} pixels, {self.num_image_tokens} codes of "
            f"{self.codebook_size}",
            f"text               {self.vocab_size} tokens, context {self.context_length}",
            f"memory, weights    {self.weight_bytes / gib:.2f} GiB in {self.dtype}",
            f"memory, drawing    + {self.cache_bytes_per_picture / gib:.2f} GiB per picture drawn at the same time",
        ]
        return "\n".join(lines)


def inspect_checkpoint(source: Any, **hub_kwargs: Any) -> CheckpointInfo:
    """Describe a checkpoint without reading its weights.

    Args:
        source: Repository id or folder.
        hub_kwargs: `revision`, `token`, `cache_dir`, ...

    Raises:
        ValueError: If it is of another family, or no checkpoint.
    """
    raw, _ = PreTrainedConfig.get_config_dict(source, **hub_kwargs)
    family = raw.get("model_type")
    if family not in ("multi_modality", "janus"):
        found = f"is a {family!r} checkpoint" if family else "has no config.json that names a model_type"
        raise ValueError(
            f"{str(source)!r} {found}; expected Janus or Janus-Pro (model_type 'multi_modality' or 'janus')."
        )
    config = JanusProConfig.from_dict(raw)
    with torch.device("meta"):
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
    rows, positions = 2, 50 + vq.num_image_tokens
    return CheckpointInfo(
        family=_KNOWN.get((text.num_hidden_layers, text.hidden_size), "Janus-Pro architecture, of no released size"),
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
