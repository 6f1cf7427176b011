"""A function that pre-trains the vision encoder (tower), in place of the trained SigLIP that the paper starts from."""

import torch
import torch.nn.functional as F
from torch import nn

from janus_hf.shapes import COLORS, SHAPES, SIDE

from .boards import LabelledBoards
from .settings import PATCH, SEED, VISION


def pretrain_tower(tower: nn.Module, steps: int = 400, batch_size: int = 32) -> None:
    """Train the vision encoder so that a linear probe can predict labels of every patch from the patch's features.

    The labels are the colour and shape of the object in the patch, and the patch's row and column. Row and column are
    needed: they could be predicted for only two thirds of the patches from an encoder that had learned to classify
    colour and shape only.

    Args:
        tower: The vision encoder, changed in place and left in evaluation mode.
        steps: Number of optimizer steps.
        batch_size: Number of images per step.
    """
    boards = LabelledBoards(steps * batch_size, SEED + 3)
    sizes = (1 + len(COLORS), 1 + len(SHAPES), SIDE // PATCH, SIDE // PATCH)
    probe = nn.Linear(VISION["hidden_size"], sum(sizes))
    parameters = [*tower.parameters(), *probe.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
    tower.train()
    for step in range(steps):
        rows = [boards[index] for index in range(step * batch_size, (step + 1) * batch_size)]
        labels = torch.stack([row["labels"] for row in rows])
        features = tower(torch.stack([row["pixel_values"] for row in rows])).last_hidden_state
        scores = probe(features).split(sizes, dim=-1)
        losses = [F.cross_entropy(s.flatten(0, 1), labels[:, k].flatten()) for k, s in enumerate(scores)]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(f"tower: step {step + 1}, losses {[round(loss.item(), 3) for loss in losses]}", flush=True)
    tower.eval()
