"""Prompts of the tiny model (`make_model`), seeded generators, and a record of the language model's calls."""

import torch
from torch import nn


P, K, PAD, BOS, BOI = 16, 40, 91, 92, 94  # image tokens per image, codebook entries and special ids of the tiny config
SHORT, LONG, OTHER = [BOS, 5, BOI], [BOS, 7, 8, 9, 10, 11, BOI], [BOS, 20, 21, 22, 3, 4, BOI]


def seeds(*values: int) -> list[torch.Generator]:
    """Return a new generator for each seed."""
    return [torch.Generator().manual_seed(value) for value in values]


def left_padded(*rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask of prompts, left-padded to the longest."""
    length = max(map(len, rows))
    ids = torch.tensor([[PAD] * (length - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


class LanguageModelCalls:
    """Context manager that records the number of rows and the length of every call of the language model."""

    def __init__(self, model: nn.Module) -> None:
        self.rows: list[int] = []
        self.lengths: list[int] = []
        self.hook = model.model.language_model.register_forward_pre_hook(self._record, with_kwargs=True)

    def _record(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        rows, length, _ = kwargs["inputs_embeds"].shape
        self.rows.append(rows)
        self.lengths.append(length)

    def __enter__(self) -> "LanguageModelCalls":
        return self

    def __exit__(self, *exception: object) -> None:
        self.hook.remove()
