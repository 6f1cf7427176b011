"""Train the image codec, the VQ tokenizer, on random boards.

A codec trained with a random codebook did not work: the codebook collapsed within 400 steps (docs/small_world.md). So
k-means over raw patches finds the world's patches first, and a teacher tells the codec which token each patch has.
"""

import json
from pathlib import Path

import numpy as np
import torch

from janus_hf import JanusProVQConfig
from janus_hf.modeling import JanusProVQModel
from janus_hf.rewards.geneval_rules import score
from janus_hf.rewards.shapes_detector import detect
from janus_hf.shapes import COLORS, SHAPES, TAGS, make_drawing, place, render
from janus_hf.training.trainers.codec import CodecTrainer, CodecTrainingArguments, PatchTeacher

from .boards import Boards, to_pixels
from .settings import CODEC, PATCH, SEED
from .trainer_files import last_checkpoint, record_log


def patch_teacher() -> PatchTeacher:
    """Return a teacher that has found the world's 129 patches by k-means."""
    rng = np.random.default_rng(SEED)
    kinds = [(color, shape) for color in COLORS for shape in SHAPES]
    return PatchTeacher.fit(to_pixels([render(place([kind], rng)) for kind in kinds]), CODEC["num_embeddings"], PATCH)


def train_codec(folder: Path) -> None:
    """Train the codec and save it in `folder`.

    Raises:
        SystemExit: If too many images are unrecognisable after encoding and decoding, see `round_trip`.
    """
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
        raise SystemExit("The codec loses too much of the images for a model to learn from its tokens.")
    (folder / "round_trip.json").write_text(json.dumps(shares, indent=2) + "\n")
    codec.save_pretrained(folder)


@torch.no_grad()
def round_trip(codec: JanusProVQModel, prompts: int = 100) -> dict[str, float]:
    """Return, for each tag, the share of images that still meet their prompt after encoding and decoding.

    Args:
        codec: The codec to test; it is put into evaluation mode.
        prompts: Number of prompts per tag, each with the rendered image of its own scene.
    """
    codec.eval()
    rng = np.random.default_rng(SEED + 1)
    shares = {}
    for tag in TAGS:
        drawings = [make_drawing(tag, rng) for _ in range(prompts)]
        pixels = codec.decode_image_ids(codec.encode_image_ids(to_pixels([render(d.scene) for d in drawings])))
        images = ((pixels.clamp(-1, 1) + 1) * 127.5).to(torch.uint8).movedim(1, -1).numpy()
        verdicts = [score(detect(image), d.metadata).correct for image, d in zip(images, drawings, strict=True)]
        shares[tag] = float(np.mean(verdicts))
    return shares
