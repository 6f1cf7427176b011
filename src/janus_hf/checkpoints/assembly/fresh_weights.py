"""Values for what no part has: aligners, image head, embeddings of image tokens, and rows of added text tokens."""

from collections.abc import Collection, Iterable, Mapping

import torch

from ...errors import CheckpointError
from ...layouts.part_layouts import PREFIXES


# Modules that no public checkpoint has, as prefixes of names in `JanusProForConditionalGeneration`.
FRESH = ("model.aligner.", "model.generation_aligner.", "model.generation_embeddings.", "model.generation_head.")

# Tables with one row per text token.
TOKEN_TABLES = ("model.language_model.embed_tokens.weight", "lm_head.weight")


def fresh_weights(
    shapes: Mapping[str, tuple[int, ...]], *, std: float, seed: int, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return the initial weights of the modules in `FRESH`: normal with mean 0, and zero for biases.

    Equal arguments give equal values, whatever PyTorch's global generator did before.

    Args:
        shapes: Shapes of all weights of the model by name.
        std: Standard deviation.
        seed: Seed of the values.
        dtype: Dtype of the result; the values are drawn in float32.

    Raises:
        CheckpointError: If the model has a weight that is neither one of these nor one of a part.
    """
    parts = tuple(prefix for prefixes in PREFIXES.values() for prefix in prefixes)
    if others := [name for name in shapes if not name.startswith((*FRESH, *parts))]:
        raise CheckpointError("Every weight must be in a part or be initialised, got others.", missing=others)
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name in sorted(name for name in shapes if name.startswith(FRESH)):
        values[name] = torch.zeros(shapes[name], dtype=dtype)
        if not name.endswith(".bias"):
            values[name].copy_(torch.randn(shapes[name], generator=generator) * std)
    return values


def fill_rows(table: torch.Tensor, known: Collection[int], added: Iterable[int]) -> torch.Tensor:
    """Return a table `(V, D)` of token vectors in which the rows of added tokens are the mean of the known rows.

    The mean is computed in float64. The result has more rows than `table` if an added token has none yet.

    Args:
        table: The table of the language model.
        known: Ids of the tokens that the language model was trained with.
        added: Ids of the added tokens.
    """
    added = sorted(added)
    if not added:
        return table
    mean = table[sorted(known)].double().mean(dim=0).to(table.dtype)
    rows = max(len(table), added[-1] + 1)
    filled = mean.repeat(rows, 1)
    filled[: len(table)] = table
    filled[added] = mean
    return filled


__all__ = ["FRESH", "TOKEN_TABLES", "fill_rows", "fresh_weights"]
