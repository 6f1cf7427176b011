"""Codec and tower."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from janus_hf import JanusProVQConfig
from janus_hf.modeling import JanusProVQModel
from janus_hf.rewards.geneval_rules import score
from janus_hf.rewards.shapes_detector import detect
from janus_hf.shapes import COLORS, SHAPES, SIDE, TAGS, Scene, make_drawing, place, render
from janus_hf.training.trainers.codec import CodecTrainer, CodecTrainingArguments, PatchTeacher

from .settings import CODEC, PATCH, SEED, VISION
from .trainer_files import last_checkpoint, record_log


CROWDS = [1, 2, 3, 4, 6, 10, 14]  # things on a board for the encoders


def to_pixels(pictures: list[np.ndarray]) -> torch.Tensor:
    """`(H, W, 3)` uint8 pictures -> `(B, 3, H, W)` float32 in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).movedim(-1, 1).float() / 127.5 - 1


class Boards(Dataset):
    """Crowded and empty boards of every colour and shape, for the codec: the i-th is a function of seed and i.

    The codec sees the combinations that are held out from drawing and answering, as the released one has seen
    pictures of everything: a code it does not have could not be drawn at all.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """What stands on a board."""
        rng = np.random.default_rng((self.seed, index))
        kinds = [(str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))) for _ in range(int(rng.choice(CROWDS)))]
        return place(kinds, rng)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": to_pixels([render(self.scene(index))])[0]}


def patch_teacher() -> PatchTeacher:
    """Names the world's 129 patches."""
    rng = np.random.default_rng(SEED)
    kinds = [(color, shape) for color in COLORS for shape in SHAPES]
    return PatchTeacher.fit(to_pixels([render(place([kind], rng)) for kind in kinds]), CODEC["num_embeddings"], PATCH)


def train_codec(folder: Path) -> None:
    """The VQ tokenizer, taught by k-means over raw patches; gated on what survives a round trip."""
    torch.manual_seed(SEED)
    codec = JanusProVQModel(JanusProVQConfig(**CODEC))
    arguments = CodecTrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=16,
        max_steps=1200,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        adam_beta2=0.95,
        l1_weight=2.0,
        l2_weight=2.0,
        logging_steps=20,
        save_steps=200,
        save_total_limit=1,
        report_to="none",
        use_cpu=True,
        seed=SEED,
    )
    boards = Boards(1200 * 16, SEED)
    trainer = CodecTrainer(codec, teacher=patch_teacher(), args=arguments, train_dataset=boards)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder / "trainer"))
    record_log(folder, trainer)
    shares = round_trip(codec)
    print("round trip:", shares)
    if min(shares.values()) < 0.98:
        raise SystemExit("The codec loses too much for anything to be learned from its codes.")
    (folder / "round_trip.json").write_text(json.dumps(shares, indent=2) + "\n")
    codec.save_pretrained(folder)


@torch.no_grad()
def round_trip(codec: JanusProVQModel, prompts: int = 100) -> dict[str, float]:
    """Share of true pictures that the detector still accepts after encoding and decoding, per tag."""
    codec.eval()
    rng = np.random.default_rng(SEED + 1)
    shares = {}
    for tag in TAGS:
        drawings = [make_drawing(tag, rng) for _ in range(prompts)]
        pixels = codec.decode_image_ids(codec.encode_image_ids(to_pixels([render(d.scene) for d in drawings])))
        pictures = ((pixels.clamp(-1, 1) + 1) * 127.5).to(torch.uint8).movedim(1, -1).numpy()
        verdicts = [score(detect(p), d.metadata).correct for p, d in zip(pictures, drawings, strict=True)]
        shares[tag] = float(np.mean(verdicts))
    return shares


class LabelledBoards(Boards):
    """Boards with what stands at every patch: `pixel_values`, and `labels` `(4, P)` int64: colour and shape (0 where
    nothing is), row, column.
    """

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        scene, side = self.scene(index), SIDE // PATCH
        labels = np.zeros((4, side, side), dtype=np.int64)
        for thing in scene.things:
            cell = np.s_[2 * thing.row : 2 * thing.row + 2, 2 * thing.column : 2 * thing.column + 2]
            labels[0][cell] = 1 + list(COLORS).index(thing.color)
            labels[1][cell] = 1 + SHAPES.index(thing.shape)
        labels[2:] = np.indices((side, side))
        return {"pixel_values": to_pixels([render(scene)])[0], "labels": torch.from_numpy(labels).flatten(1)}


def pretrain_tower(tower: nn.Module, steps: int = 400, batch_size: int = 32) -> None:
    """What stands in for SigLIP's pre-training: linear probes read colour, shape and place off every patch.

    Place matters: off a tower that had only learned to name patches, row and column could be read for two thirds.
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
