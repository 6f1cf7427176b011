"""The optimizer of all training stages: Muon for the language model's matrices, AdamW for all other parameters."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .settings import MATRIX_DECAY


class Muon(torch.optim.AdamW):
    """An optimizer that uses Muon for the matrices of the language model's layers and AdamW for all other parameters.

    Muon (https://kellerjordan.github.io/posts/muon) updates a matrix by an orthogonal matrix near its momentum. Here
    it needs about 0.6 times the steps of AdamW alone, so that the whole run fits into two hours. `torch.optim.Muon` is
    not used because it multiplies in bfloat16, which is ten times slower than float32 on processors without units for
    bfloat16.

    Args:
        model: The model; parameters that do not require gradients are left out.
        learning_rate: Base learning rate. It is multiplied by 20 for the matrices, by 0.5 for the aligner of image
            features, by 0.05 for the vision encoder and by 1 for all other parameters.
    """

    def __init__(self, model: nn.Module, learning_rate: float) -> None:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        # The aligner's output must not grow much larger than the text embeddings (at the full rate it became 50 times
        # as large), and the vision encoder (tower) must not forget (at half the rate the loss of captions doubled
        # within 40 steps and did not fall again).
        scales = {"rest": 1, "aligner": 0.5, "tower": 0.05, "matrices": 20}
        groups: dict[str, list[nn.Parameter]] = {name: [] for name in scales}
        for name, p in trained:
            matrix = "language_model.layers" in name and p.ndim == 2
            part = {"model.aligner": "aligner", "model.vision_model": "tower"}.get(".".join(name.split(".")[:2]))
            groups[part or ("matrices" if matrix else "rest")].append(p)
        settings = [
            {"params": members, "orthogonal": name == "matrices", "lr": scales[name] * learning_rate}
            for name, members in groups.items()
            if members
        ]
        super().__init__(settings, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the optimizer from a saved state.

        Matrices, for which Muon saves no `step`, get one, because AdamW expects a `step` for every parameter.
        """
        for entry in state["state"].values():
            entry.setdefault("step", torch.zeros(()))
        super().__setstate__(state)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the matrices by Muon and set their gradients to None, then update all other parameters by AdamW."""
        for group in self.param_groups:
            for p in group["params"] if group["orthogonal"] else ():
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 0.05)
                update = orthogonalise(p.grad.lerp(momentum, 0.95))
                p.mul_(1 - group["lr"] * MATRIX_DECAY)
                # The factor for tall matrices is that of the reference implementation.
                p.sub_(update, alpha=group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)
                p.grad = None
        return super().step(closure)


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """Return approximately the nearest matrix with orthonormal rows or columns, by five Newton-Schulz iterations.

    The result has the shape of `matrix`.
    """
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
