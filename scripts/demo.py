"""What `make demo` runs, offline: the small model inside the package draws prompts and answers questions.

Every picture is judged against its prompt by the exact detector of the small world, every answer against the scene
that was asked about.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from janus_hf import JanusProPipeline
from janus_hf.assets import DEFAULT_MODEL
from janus_hf.rewards.geneval_rules import score
from janus_hf.rewards.shapes_detector import detect
from janus_hf.shapes import TAGS, Drawing, ask, make_drawing, picture, random_scene


FOLDER = Path("janus_hf_demo")
SEED = 7
PROMPTS_PER_TAG = 2
QUESTIONS = 6
SCALE, COLUMNS, MARGIN, CAPTION = 3, 4, 16, 30


def main() -> int:
    start = time.perf_counter()
    FOLDER.mkdir(exist_ok=True)
    pipe = JanusProPipeline.from_pretrained(DEFAULT_MODEL, dtype="float32")
    pipe.set_progress_bar_config(desc="drawing", leave=False)
    rng = np.random.default_rng(SEED)

    drawings = [make_drawing(tag, rng) for tag in TAGS for _ in range(PROMPTS_PER_TAG)]
    seeds = [torch.Generator().manual_seed(seed) for seed in range(len(drawings))]
    pictures = pipe([d.prompt for d in drawings], generator=seeds, batch_size=len(drawings)).images
    print("drawn by the model inside the package:\n")
    for drawing, image in zip(drawings, pictures, strict=True):
        right = score(detect(image), drawing.metadata).correct
        print(f"  {'yes' if right else 'NO ':3}  {drawing.prompt}")
    grid = FOLDER / "drawn.png"
    make_grid(drawings, pictures).save(grid)

    print("\nasked about pictures:\n")
    for number in range(QUESTIONS):
        scene = random_scene(rng)
        question = ask(scene, rng)
        path = FOLDER / f"asked-{number + 1}.png"
        image = picture(scene)
        image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.NEAREST).save(path)
        answer = pipe.ask(image, question.question)
        print(f"  {'yes' if answer == question.answer else 'NO ':3}  {path.name}: {question.question} {answer}")

    print(f"\nThe pictures are in {grid}, those asked about in {FOLDER}/ ({time.perf_counter() - start:.0f} s).")
    print("yes: the detector, or the scene, agrees. `janus-hf eval shapes` measures how often it does.")
    return 0


def make_grid(drawings: list[Drawing], pictures: list[Image.Image]) -> Image.Image:
    """The pictures, enlarged, each above its prompt."""
    side = pictures[0].width * SCALE
    cell, rows = (side + MARGIN, side + CAPTION + MARGIN), -(-len(pictures) // COLUMNS)
    grid = Image.new("RGB", (COLUMNS * cell[0] + MARGIN, rows * cell[1] + MARGIN), "gainsboro")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(11)
    for index, (drawing, image) in enumerate(zip(drawings, pictures, strict=True)):
        left = MARGIN + index % COLUMNS * cell[0]
        top = MARGIN + index // COLUMNS * cell[1]
        grid.paste(image.resize((side, side), Image.Resampling.BICUBIC), (left, top))
        words = drawing.prompt.removeprefix("a photo of ").split(" and ")
        draw.multiline_text((left, top + side + 2), "\nand ".join(words), fill="black", font=font, spacing=1)
    return grid


if __name__ == "__main__":
    sys.exit(main())
