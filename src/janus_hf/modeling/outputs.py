"""What the models return."""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput


@dataclass
class JanusProModelOutput(ModelOutput):
    """Output of `JanusProModel`."""

    last_hidden_state: torch.Tensor | None = None  # (B, T, D), after the language model's final norm
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None  # one (B, T, D) per layer, when asked for
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None  # (M, P, D), aligned understanding features


@dataclass
class JanusProCausalLMOutput(ModelOutput):
    """Output of `JanusProForConditionalGeneration`.

    `text_loss` and `image_loss` are means over this batch's own text and image labels (zero without any), in nats per
    token, detached: for logs. `loss` is what is trained: the sum over both divided by `num_items_in_batch`.
    """

    loss: torch.Tensor | None = None  # ()
    logits: torch.Tensor | None = None  # (B, T or logits_to_keep, V), text head; None when labels are given
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None  # (M, P, D)
    text_loss: torch.Tensor | None = None  # ()
    image_loss: torch.Tensor | None = None  # ()
    num_text_labels: torch.Tensor | None = None  # (), int64
    num_image_labels: torch.Tensor | None = None  # (), int64


@dataclass
class JanusProVQOutput(ModelOutput):
    """Output of `JanusProVQModel`; losses are means over all latent elements."""

    pixel_values: torch.Tensor | None = None  # (B, 3, H, W), reconstruction in about [-1, 1]
    image_ids: torch.Tensor | None = None  # (B, P), int64
    latents: torch.Tensor | None = None  # (B, P, E), the encoder's unit vectors before quantisation
    codebook_loss: torch.Tensor | None = None  # ()
    commitment_loss: torch.Tensor | None = None  # (), already weighted by `commitment_cost`


__all__ = ["JanusProCausalLMOutput", "JanusProModelOutput", "JanusProVQOutput"]
