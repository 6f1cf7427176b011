"""Train the small model on few images until it overfits, and let evaluations choose the checkpoint.

    python scripts/validation_curve.py [--work FOLDER]

The script writes `TRAINED` images for training and `UNSEEN` others (houses and known prompts, as `teach_house.py`
does), and trains an adapter with `recipes/lora_drawing.yaml`. Every 5 steps the run measures the loss on the unseen
images, and every 10 steps a part of the shapes benchmark; the checkpoint with the lowest loss is its result. The
curves are written to `validation_curve.png` in the folder, for docs/, and their values are printed. The package
matplotlib is needed. The script takes a few minutes on two cores.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from janus_hf.assets import DEFAULT_MODEL
from janus_hf.shapes import TAGS, make_drawing, picture
from janus_hf.training import train
from janus_hf_cli.benchmarks_in_training import make_benchmarks
from teach_house import PROMPT, ROOT, SEED, house


TRAINED, UNSEEN = 24, 48
# The same as overrides of the command `janus-hf train recipes/lora_drawing.yaml`.
OVERRIDES = {
    "model.path": DEFAULT_MODEL,
    "model.dtype": "float32",
    "evaluate.every": 10,
    "evaluate.benchmarks": "{shapes: {prompts_per_tag: 4, images_per_prompt: 1, questions: 0}}",
    "training.eval_steps": 5,
    "training.eval_on_start": "true",
    "training.save_steps": 5,
    "training.load_best_model_at_end": "true",
    "training.metric_for_best_model": "loss_drawing",
    "training.max_steps": 60,
    "training.learning_rate": 5e-4,
    "training.warmup_steps": 5,
    "training.total_batch_size": 12,
    "training.per_device_train_batch_size": 12,
    "training.max_length": 168,
    "training.activation_checkpointing": "false",
    "training.sample_steps": 0,
    "training.logging_steps": 5,
    "training.report_to": "none",
    "training.use_cpu": "true",
    "training.seed": SEED,
}


def write_images(folder: Path, count: int, seed: int) -> None:
    """Write images to a new folder, with their prompts in `metadata.jsonl`: houses and known prompts in turn.

    Args:
        folder: The folder.
        count: Number of images.
        seed: Seed of the images.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    lines = []
    for index in range(count):
        drawing = make_drawing(TAGS[index // 2 % len(TAGS)], rng)
        prompt, scene = (drawing.prompt, drawing.scene) if index % 2 else (PROMPT, house(rng))
        picture(scene).save(folder / f"{index:03}.png")
        lines.append(json.dumps({"file_name": f"{index:03}.png", "prompt": prompt}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def train_and_read(work: Path) -> dict[str, Any]:
    """Write the images, train the adapter in the folder `adapter`, and return the state of its trainer.

    Args:
        work: Folder for images and adapter.
    """
    write_images(work / "trained", TRAINED, SEED)
    write_images(work / "unseen", UNSEEN, SEED + 1)
    overrides = [f"{name}={value}" for name, value in OVERRIDES.items()]
    overrides += [f"data.sources.0.path={work / 'trained'}", f"training.output_dir={work / 'adapter'}"]
    overrides += [f"data.evaluation=[{{name: unseen, path: {work / 'unseen'}}}]"]
    output = train(ROOT / "recipes" / "lora_drawing.yaml", overrides, make_benchmarks=make_benchmarks)
    state: dict[str, Any] = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    return state


def plot(state: dict[str, Any], file: Path) -> None:
    """Print the losses and the score of a run as a Markdown table, and plot them.

    Args:
        state: Content of the run's `trainer_state.json`.
        file: Image file to write.
    """
    import matplotlib.pyplot as plt

    log = state["log_history"]
    trained = {row["step"]: row["loss_drawing"] for row in log if "loss_drawing" in row and "loss" in row}
    unseen = {row["step"]: row for row in log if "eval_loss_drawing" in row}
    print("| step | loss, trained images | loss, unseen images | shapes, overall |\n|---:|---:|---:|---:|")
    for step, row in unseen.items():
        before = f"{trained[step]:.4f}" if step in trained else "-"
        mark = " (best)" if step == state["best_global_step"] else ""
        score = f"{row['eval_shapes_overall']:.3f}" if "eval_shapes_overall" in row else "-"
        print(f"| {step}{mark} | {before} | {row['eval_loss_drawing']:.4f} | {score} |")

    figure, (losses, scores) = plt.subplots(1, 2, figsize=(9, 3.2))
    losses.plot(trained.keys(), trained.values(), label="trained images")
    losses.plot(unseen.keys(), [row["eval_loss_drawing"] for row in unseen.values()], label="unseen images")
    losses.axvline(state["best_global_step"], color="grey", linestyle=":", label="best checkpoint")
    losses.set(title="loss_drawing, eval_loss_drawing", xlabel="step", ylabel="nats per image token", yscale="log")
    losses.legend()
    judged = {step: row["eval_shapes_overall"] for step, row in unseen.items() if "eval_shapes_overall" in row}
    scores.plot(judged.keys(), judged.values(), color="C2")
    scores.set(title="eval_shapes_overall", xlabel="step", ylim=(0, 1.05))
    figure.tight_layout()
    figure.savefig(file, dpi=70)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/validation"), help="new folder for images and adapter")
    options = parser.parse_args()
    if options.work.exists():
        raise SystemExit(f"--work must be a new folder, got {options.work}, which exists: remove it, or name another.")
    plot(train_and_read(options.work), options.work / "validation_curve.png")


if __name__ == "__main__":
    main()
