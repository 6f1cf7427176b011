"""Output classes of the models. A field with the default `None` is `None` if it was not computed.

`B` batch, `T` sequence, `M` images in the batch, `P` positions or codes per image, `D` width, `V` text vocabulary, `E`
width of a codebook vector.
"""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from ..summaries import ShortRepr


@dataclass(repr=False)
class JanusProModelOutput(ShortRepr, ModelOutput):
    """Output of `JanusProModel`: hidden states of the language model and features of the input images."""

    last_hidden_state: torch.Tensor  # (B, T, D), after the language model's final norm
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None  # (B, T, D) each: the embeddings, then every layer's output
    attentions: tuple[torch.Tensor, ...] | None = None  # (B, heads, T, T) per layer
    image_hidden_states: torch.Tensor | None = None  # (M, P, D), features of the images after the aligner


@dataclass(repr=False)
class JanusProCausalLMOutput(ShortRepr, ModelOutput):
    """Output of `JanusProForConditionalGeneration`: text logits, or with labels the training losses.

    `loss` is the value to minimise: the summed cross-entropy of all labels, divided by the argument
    `num_items_in_batch` of `forward`. `text_loss` and `image_loss` are for logs: means over this batch's own text
    labels and image labels, in nats per token, without gradient. They are zero if the batch has no such labels.
    """

    loss: torch.Tensor | None = None  # ()
    logits: torch.Tensor | None = None  # (B, T or logits_to_keep, V), text head; None in training with labels
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None  # as in `JanusProModelOutput`
    attentions: tuple[torch.Tensor, ...] | None = None  # as in `JanusProModelOutput`
    image_hidden_states: torch.Tensor | None = None  # (M, P, D), features of the images after the aligner
    text_loss: torch.Tensor | None = None  # ()
    image_loss: torch.Tensor | None = None  # ()
    num_text_labels: torch.Tensor | None = None  # (), int64
    num_image_labels: torch.Tensor | None = None  # (), int64


@dataclass(repr=False)
class JanusProVQOutput(ShortRepr, ModelOutput):
    """Output of the image codec (`JanusProVQModel`): reconstructed images, codes, latents and training losses.

    The losses are means over all elements of the latents.
    """

    pixel_values: torch.Tensor  # (B, 3, H, W), reconstruction in about [-1, 1]
    image_ids: torch.Tensor | None = None  # (B, P), int64
    latents: torch.Tensor | None = None  # (B, P, E), the encoder's output before quantisation, of norm 1
    codebook_loss: torch.Tensor | None = None  # ()
    commitment_loss: torch.Tensor | None = None  # (), already weighted by `commitment_cost`


__all__ = ["JanusProCausalLMOutput", "JanusProModelOutput", "JanusProVQOutput"]
