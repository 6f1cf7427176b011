"""Functions that train and test the image codec (VQ tokenizer) on images of random boards of coloured shapes.

Training from a random codebook did not work: the codebook collapsed within 400 steps (docs/small_world.md). Therefore
k-means first finds the distinct image patches of the boards, and a teacher tells the codec which token each patch has.
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
    """Return a teacher that gives each of the 129 distinct patches of board images a token of its own.

    `PatchTeacher.fit` finds the patches by k-means, in images of one object of every colour and shape.
    """
    rng = np.random.default_rng(SEED)
    kinds = [(color, shape) for color in COLORS for shape in SHAPES]
    return PatchTeacher.fit(to_pixels([render(place([kind], rng)) for kind in kinds]), CODEC["num_embeddings"], PATCH)


def train_codec(folder: Path) -> None:
    """Train the image codec and save it in `folder`; resume if `folder` has checkpoints of an earlier run.

    Raises:
        SystemExit: If, for any tag, less than 98 % of images still meet their prompt after encoding and decoding (see
            `round_trip`).
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
    """Encode and decode images with the codec and return the share that still meets their prompt, for each tag.

    Tags are GenEval's six categories of prompts. The images are rendered without a model, and rules judge whether an
    image meets its prompt.

    Args:
        codec: The image codec to test; it is put into evaluation mode.
        prompts: Number of prompts per tag, each with one image.

    Returns:
        The share of images for each tag, in [0, 1].
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
