"""How public checkpoints name the weights of the three parts from which a Janus-Pro is assembled, as tables.

Every weight of such a checkpoint is either renamed to the original layout of Janus (deepseek-ai/Janus) or to this
package's names, or is known and has no place in Janus, or is refused by name. The rows follow the public code that
writes the files; the files themselves were not seen when the rows were written:

* language model: `LlamaForCausalLM` of transformers, in which DeepSeek-LLM was released, and `MultiModalityCausalLM`
  of deepseek-ai/DeepSeek-VL and deepseek-ai/Janus, which holds one under `language_model`.
* vision tower: `SiglipModel` and `SiglipVisionModel` of transformers, the vision transformer of timm, and open_clip,
  which holds one under `visual.trunk`. deepseek-ai/Janus names its tower after timm.
* codec: `VQModel` of FoundationVision/LlamaGen (tokenizer/tokenizer_image/vq_model.py), whose names
  deepseek-ai/Janus keeps under `gen_vision_model`.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal


Part = Literal["language_model", "vision_tower", "codec"]

# Part -> prefixes of the names of its weights in `JanusProForConditionalGeneration`.
PREFIXES: dict[Part, tuple[str, ...]] = {
    "language_model": ("model.language_model.", "lm_head."),
    "vision_tower": ("model.vision_model.",),
    "codec": ("model.vqmodel.",),
}


@dataclass(frozen=True)
class PartLayout:
    """The names of a part's weights in one kind of public checkpoint.

    Args:
        title: The kind of checkpoint, for messages.
        marker: Name of a weight that every checkpoint of this kind has and none of the other kinds of the same part.
        prefix: Prefix of the names of the part's weights.
        target: Prefix that replaces it: of the original layout of Janus, or of this package's names.
        renamed: Pairs of a regular expression and its replacement, for what comes after the prefix.
        ignored: Regular expressions for the beginnings of names of weights that have no place in Janus.
    """

    title: str
    marker: str
    prefix: str
    target: str
    renamed: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def rename(self, name: str) -> str | None:
        """Return the name of a weight in Janus, or None if the weight is known and has no place there.

        Raises:
            KeyError: If the name is unknown.
        """
        if any(re.match(pattern, name) for pattern in self.ignored):
            return None
        if not name.startswith(self.prefix):
            raise KeyError(name)
        rest = name.removeprefix(self.prefix)
        for pattern, replacement in self.renamed:
            rest = re.sub(pattern, replacement, rest)
        return self.target + rest


# Other parts of DeepSeek-VL and Janus, when only one part of their checkpoint is taken.
_LANGUAGE, _TOWER, _ALIGNER = r"language_model\.", r"vision_model\.", r"aligner\."
_GENERATION, _CODEC = r"gen_(aligner|embed|head)\.", r"gen_vision_model\."
# `SiglipVisionModel` names its output projection unlike Janus's tower; all else is equal.
_SIGLIP_NAMES = ((r"\.self_attn\.out_proj\.", ".self_attn.projection_layer."),)
# Old versions of transformers stored these constants.
_ROTARY = r"(language_model\.)?model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$"

LAYOUTS: dict[Part, tuple[PartLayout, ...]] = {
    "language_model": (
        PartLayout(
            "LlamaForCausalLM (DeepSeek-LLM)",
            marker="model.embed_tokens.weight",
            prefix="",
            target="language_model.",
            ignored=(_ROTARY,),
        ),
        PartLayout(
            "DeepSeek-VL or Janus",
            marker="language_model.model.embed_tokens.weight",
            prefix="language_model.",
            target="language_model.",
            ignored=(_ROTARY, _TOWER, _ALIGNER, _GENERATION, _CODEC),
        ),
    ),
    "vision_tower": (
        PartLayout(
            "SiglipModel of transformers",
            marker="vision_model.embeddings.patch_embedding.weight",
            prefix="vision_model.",
            target="model.vision_model.",
            renamed=_SIGLIP_NAMES,
            # The text tower, the pooling head, and two numbers of the contrastive loss.
            ignored=(
                r"text_model\.",
                r"vision_model\.head\.",
                r"vision_model\.embeddings\.position_ids$",
                r"logit_(scale|bias)$",
            ),
        ),
        PartLayout(
            "SiglipVisionModel of transformers 5",
            marker="embeddings.patch_embedding.weight",
            prefix="",
            target="model.vision_model.",
            renamed=_SIGLIP_NAMES,
            ignored=(r"head\.", r"embeddings\.position_ids$"),
        ),
        PartLayout(
            "timm",
            marker="patch_embed.proj.weight",
            prefix="",
            target="vision_model.vision_tower.",
            ignored=(r"attn_pool\.",),
        ),
        PartLayout(
            "open_clip",
            marker="visual.trunk.patch_embed.proj.weight",
            prefix="visual.trunk.",
            target="vision_model.vision_tower.",
            ignored=(r"text\.", r"visual\.trunk\.attn_pool\.", r"logit_(scale|bias)$"),
        ),
        PartLayout(
            "DeepSeek-VL or Janus",
            marker="vision_model.vision_tower.patch_embed.proj.weight",
            prefix="vision_model.vision_tower.",
            target="vision_model.vision_tower.",
            ignored=(r"vision_model\.vision_tower\.attn_pool\.", _LANGUAGE, _ALIGNER, _GENERATION, _CODEC),
        ),
    ),
    "codec": (
        PartLayout(
            "LlamaGen",
            marker="quantize.embedding.weight",
            prefix="",
            target="gen_vision_model.",
            ignored=(r"quantize\.codebook_used$",),  # a counter of its training
        ),
        PartLayout(
            "Janus",
            marker="gen_vision_model.quantize.embedding.weight",
            prefix="gen_vision_model.",
            target="gen_vision_model.",
            ignored=(r"gen_vision_model\.quantize\.codebook_used$", _LANGUAGE, _TOWER, _ALIGNER, _GENERATION),
        ),
    ),
}


def find_layout(part: Part, names: Collection[str]) -> PartLayout | None:
    """Return the layout of a checkpoint that has weights of these names, or None if it is of no kind in the table."""
    return next((layout for layout in LAYOUTS[part] if layout.marker in names), None)


__all__ = ["LAYOUTS", "PREFIXES", "Part", "PartLayout", "find_layout"]
