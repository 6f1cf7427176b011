"""Teach the small model a word from 200 images: what a house is (a red triangle right on top of a brown square).

    python scripts/teach_house.py [--work FOLDER] [--prompts-per-tag 100]

The script does what a user does who has images and wants an adapter. It writes a folder of images with
`metadata.jsonl`, trains an adapter with the LoRA recipe for image generation, loads the adapter into the pipeline, and
writes a new checkpoint of the base model with the adapter merged into it. It prints the share of correct images before
and after training, for houses and for all other prompts. It also checks that the model with the adapter and the merged
model generate the same images. The script takes three minutes on two cores.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from janus_hf import JanusProPipeline
from janus_hf.assets import DEFAULT_MODEL
from janus_hf.checkpoints.merge import merge_adapter
from janus_hf.evaluation.benchmarks.shapes_world import ShapesWorld
from janus_hf.evaluation.report import Report
from janus_hf.rewards.shapes_detector import detect
from janus_hf.shapes import TAGS, Scene, Thing, make_drawing, picture
from janus_hf.training.run import train


ROOT = Path(__file__).parents[1]
SEED = 20261122
PROMPT = "a photo of a house"
HOUSES, OTHERS = 90, 110  # images of houses, and images of known prompts, so that the model does not forget those


def house(rng: np.random.Generator) -> Scene:
    """Return a scene with one house (a red triangle right on top of a brown square) at a random position."""
    row, column = (int(rng.integers(size)) for size in (3, 4))
    return Scene((Thing("red", "triangle", row, column), Thing("brown", "square", row + 1, column)))


def is_house(image: Image.Image) -> bool:
    """Return whether an image shows one house and nothing else: a red triangle right on top of a brown square."""
    detections = detect(image)
    found = {f"{one.color} {one.label}": one.box for one in detections}
    if len(detections) != 2 or set(found) != {"red triangle", "brown square"}:
        return False
    roof, wall = found["red triangle"], found["brown square"]
    # The roof must stand directly above the wall without a gap. The tolerance is half a cell: 8 pixels.
    return abs(roof[0] - wall[0]) < 8 and 0 <= wall[1] - roof[3] < 8


def write_images(folder: Path) -> None:
    """Write the training images to a new folder, with their prompts in `metadata.jsonl`.

    This is the format that the "imagefolder" loader of `datasets` reads. There are `HOUSES` images of houses and
    `OTHERS` images of prompts that the model knows already.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(SEED)
    scenes = [(PROMPT, house(rng)) for _ in range(HOUSES)]
    known = (make_drawing(TAGS[index % len(TAGS)], rng) for index in range(OTHERS))
    scenes += [(drawing.prompt, drawing.scene) for drawing in known]
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as lines:
        for index, (prompt, scene) in enumerate(scenes):
            name = f"{index:03}.png"
            picture(scene).save(folder / name)
            lines.write(json.dumps({"file_name": name, "prompt": prompt}) + "\n")


def train_adapter(images: Path, output: Path, *, steps: int = 120) -> Path:
    """Train a LoRA adapter like `janus-hf train recipes/lora_drawing.yaml`, with settings for the small model.

    Args:
        images: Folder of the training images, see `write_images`.
        output: Folder of the training run.
        steps: Number of optimizer steps.

    Returns:
        The folder of the trained adapter.
    """
    settings: dict[str, Any] = {
        "model.path": DEFAULT_MODEL,
        "model.dtype": "float32",
        "data.sources.0.path": str(images),
        "training.output_dir": str(output),
        "training.max_steps": steps,
        "training.learning_rate": 5e-4,
        "training.lr_scheduler_type": "cosine",
        "training.warmup_steps": 10,
        "training.total_batch_size": 16,
        "training.per_device_train_batch_size": 16,
        "training.max_length": 168,
        "training.activation_checkpointing": "false",
        "training.sample_prompts": f"[{PROMPT}]",
        "training.sample_steps": steps,
        "training.save_steps": steps,
        "training.logging_steps": 10,
        "training.report_to": "none",
        "training.use_cpu": "true",
        "training.seed": SEED,
    }
    return train(ROOT / "recipes" / "lora_drawing.yaml", [f"{key}={value}" for key, value in settings.items()])


def draw_houses(pipe: JanusProPipeline, count: int) -> tuple[torch.Tensor, float]:
    """Generate `count` images from `PROMPT`, "a photo of a house".

    Returns:
        The image tokens `(count, P)` int64, and the share of images that show a house, in [0, 1].
    """
    seeds = [torch.Generator().manual_seed(SEED + index) for index in range(count)]
    output = pipe(PROMPT, num_images_per_prompt=count, generator=seeds, batch_size=50)
    return output.image_ids, float(np.mean([is_house(image) for image in output.images]))


def teach(work: Path, *, prompts_per_tag: int = 100, questions: int = 600, houses: int = 100) -> dict[str, Any]:
    """Write the images, train the adapter, merge it, and measure the model before and after training.

    Args:
        work: Folder for images, adapter and merged model; it must not exist.
        prompts_per_tag: Number of prompts of the shapes benchmark (`ShapesWorld`) for each of GenEval's six tags.
        questions: Number of questions of the shapes benchmark.
        houses: Number of images to generate from `PROMPT`, "a photo of a house".

    Returns:
        A dict with the keys `before` and `after` (the `Report`s of the shapes benchmark), `houses_before` and
        `houses_after` (shares of houses among the images generated from `PROMPT`), and `equal` (whether the merged
        model and the model with the adapter generate the same image tokens).
    """
    write_images(work / "pictures")
    pipe = JanusProPipeline.from_pretrained(DEFAULT_MODEL, dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    evaluate = ShapesWorld(prompts_per_tag=prompts_per_tag, questions=questions, held_out=False)
    result: dict[str, Any] = {"houses_before": draw_houses(pipe, houses)[1], "before": evaluate(pipe)}

    adapter = train_adapter(work / "pictures", work / "adapter")
    pipe.load_lora_weights(adapter)
    codes, result["houses_after"] = draw_houses(pipe, houses)
    result["after"] = evaluate(pipe)

    merged_folder = merge_adapter(adapter, work / "merged", dtype="float32")
    merged = JanusProPipeline.from_pretrained(merged_folder)
    merged.set_progress_bar_config(disable=True)
    result["equal"] = torch.equal(draw_houses(merged, houses)[0], codes)
    return result


def print_result(result: dict[str, Any]) -> None:
    """Print the dict that `teach` returns, the scores before and after training, as a Markdown table."""
    reports: list[Report] = [result["before"], result["after"]]
    before, after = (report.metrics for report in reports)
    print("| | before | after |\n|---|---:|---:|")
    print(f"| houses that are houses | {result['houses_before']:.3f} | {result['houses_after']:.3f} |")
    for tag in TAGS:
        print(f"| {tag} | {before[tag]:.3f} | {after[tag]:.3f} |")
    print(f"| **drawing, overall** | {before['overall']:.3f} | {after['overall']:.3f} |")
    print(f"| **answering, overall** | {before['answers: overall']:.3f} | {after['answers: overall']:.3f} |")
    print(f"\nthe merged model draws the adapter's pictures: {result['equal']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/house"), help="new folder for images and models")
    parser.add_argument("--prompts-per-tag", type=int, default=100, help="prompts per tag to measure with")
    options = parser.parse_args()
    if options.work.exists():
        raise SystemExit(f"--work must be a new folder, got {options.work}, which exists: remove it, or name another.")
    print_result(teach(options.work, prompts_per_tag=options.prompts_per_tag))


if __name__ == "__main__":
    main()
