"""The small networks before and after the language model: `JanusProAligner` and `JanusProImageHead`.

An aligner maps image features to the language model's inputs, and the image head maps the language model's outputs to
logits over image codes. Attribute names are those of transformers' Janus, so that its checkpoints and adapters can be
loaded.
"""

import torch
from torch import nn


class JanusProAligner(nn.Module):
    """Linear layers, with GELU (erf) between them, that map features to the language model's embedding space.

    Args:
        in_features: Width of the input, which is either SigLIP features or embeddings of image codes.
        out_features: Width of the language model (`D`).
        depth: Number of linear layers; 2 in every released model.
    """

    def __init__(self, in_features: int, out_features: int, depth: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, out_features)
        self.hidden_layers = nn.ModuleList(nn.Linear(out_features, out_features) for _ in range(depth - 1))
        self.activation_fn = nn.GELU()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map features `(..., in_features)` to embeddings `(..., out_features)`."""
        hidden = self.fc1(features)
        for layer in self.hidden_layers:
            hidden = layer(self.activation_fn(hidden))
        return hidden


class JanusProImageHead(nn.Module):
    """Two linear layers, with GELU between them, that map hidden states to logits over the image codec's codebook.

    Args:
        hidden_size: Width of the language model (`D`).
        intermediate_size: Width between the two layers (`image_token_embed` in the original config).
        num_codes: Number of codebook entries (`K`).
    """

    def __init__(self, hidden_size: int, intermediate_size: int, num_codes: int) -> None:
        super().__init__()
        self.proj_out = nn.Linear(hidden_size, intermediate_size)
        self.activation_fn = nn.GELU()
        self.vision_head = nn.Linear(intermediate_size, num_codes)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map hidden states `(..., D)` of the language model to logits `(..., K)` over the `K` codebook entries."""
        return self.vision_head(self.activation_fn(self.proj_out(hidden_states)))


__all__ = ["JanusProAligner", "JanusProImageHead"]
