"""`count_flops`, which counts the floating-point operations that the training of a model needs.

A multiplication and an addition are two operations. Each weight of a matrix takes two of them in the forward pass for
every token that it is applied to, two more in the backward pass if gradients flow through it to something that is
trained before it, and two more if it is trained itself: 6 for a trained weight, 4 for a frozen one under LoRA adapters
or above trained aligners, 2 for a frozen vision tower. So full training needs 6N operations per token, and LoRA 4N.

Only what the model needs is counted, not what the hardware does in addition: the recomputation of activations and of
chunks of logits, attention between documents that a mask hides, casts, and the optimizer are left out.
"""

from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

from torch import nn

from ..stages import PARTS, base_model, count_elements


if TYPE_CHECKING:
    from peft import PeftModel

    from ...modeling import JanusProForConditionalGeneration


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one forward and backward pass, for each thing that a batch contains.

    Args:
        token: Per token: all weights of the language model's layers, with their adapters.
        pair: Per pair of a token and a token of the same document that it attends to (itself, or one before it): the
            attention of all layers.
        text_label: Per trained label that is a text token: the text head.
        image_label: Per trained label that is an image token: the image head, and the generation aligner, through
            which the same token is an input.
        picture: Per image that is read, also per grey one of a batch without images: the vision tower with its
            attention, and the aligner.
    """

    token: float
    pair: float
    text_label: float
    image_label: float
    picture: float

    def total(self, tokens: float, pairs: float, text_labels: float, image_labels: float, pictures: float) -> float:
        """Return the floating-point operations of batches that contain these numbers of things."""
        amounts = (tokens, pairs, text_labels, image_labels, pictures)
        return sum(each * amount for each, amount in zip(astuple(self), amounts, strict=True))


def count_flops(model: "JanusProForConditionalGeneration | PeftModel") -> Flops:
    """Return the floating-point operations of training a model, for each thing that a batch contains.

    All parameters are counted except embedding tables, which are only looked up, and the codec, which training does
    not run. Which parameters are trained is read from `requires_grad`.

    Args:
        model: The model as it is trained, with its adapters; it may be quantised or sharded.
    """
    base = base_model(model)
    parts = {name: base.get_submodule(path) for name, path in PARTS.items()}

    def is_trained(*names: str) -> bool:
        return any(parameter.requires_grad for name in names for parameter in parts[name].parameters())

    text, vision = base.config.text_config, base.config.vision_config
    reaches_tower = is_trained("vision_tower")
    # Queries with keys, and weights with values, take two operations per channel each; the backward pass twice that.
    pair = 4 * text.num_attention_heads * text.head_dim * text.num_hidden_layers
    tower_pair = 4 * vision.hidden_size * vision.num_hidden_layers
    patches = vision.num_image_tokens
    return Flops(
        # In every stage something is trained before the language model or in it.
        token=_per_use(parts["language_model"], passes_on=True),
        pair=3.0 * pair,
        text_label=_per_use(parts["lm_head"], passes_on=True),
        image_label=_per_use(parts["generation_head"], passes_on=True)
        + _per_use(parts["generation_aligner"], passes_on=is_trained("generation_embeddings")),
        picture=patches * _per_use(parts["vision_tower"], passes_on=reaches_tower)
        + patches * _per_use(parts["aligner"], passes_on=reaches_tower)
        + patches**2 * tower_pair * (3 if reaches_tower else 1),
    )


def _per_use(part: nn.Module, *, passes_on: bool) -> float:
    """Return the floating-point operations of a part of the model for one token that passes through it.

    Args:
        part: The part of the model.
        passes_on: Whether gradients flow through it to something before it or inside it.
    """
    total = 0.0
    for name, module in part.named_modules():
        # PEFT keeps the untrained original of a module that it trains a copy of, and does not run it.
        if isinstance(module, nn.Embedding) or "original_module" in name.split("."):
            continue
        for parameter in module.parameters(recurse=False):
            total += count_elements(parameter) * (2 + 2 * passes_on + 2 * parameter.requires_grad)
    return total


__all__ = ["Flops", "count_flops"]
