"""Train the small Janus-Pro that ships with the package, from nothing, on this machine's CPU.

    python scripts/train_shapes.py [--work FOLDER] [--only PIECE ...] [--threads N]

The run is a sequence of tasks, called pieces (`PIECES` below). Each piece writes a folder below `--work` and is
skipped if that folder is complete, so a run that was stopped continues with the unfinished piece. Training stages also
resume from the trainer's own checkpoints. Seeds are fixed: the same machine trains the same weights.

The training differs from that of the paper, which starts from a trained SigLIP, a trained VQ tokenizer and a trained
language model. Here all three begin with random weights, so they are trained before the paper's stage 1: the image
codec (VQ tokenizer), the vision encoder and the language model. The images are simple (64-pixel boards of coloured
shapes), every model is small, and learning rates are those of small models.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch

from janus_hf import JanusProForConditionalGeneration, JanusProPipeline, JanusProProcessor
from janus_hf.evaluation.benchmarks.shapes_world import ShapesWorld, tables
from small_world.codec import train_codec
from small_world.rows import prepare_data
from small_world.settings import GUIDANCE_SCALE
from small_world.stages import RECIPES, train_stage
from small_world.start import make_start


def export(folder: Path) -> None:
    """Write the checkpoint that ships with the package, and a report of its scores, to `folder`.

    The model is that of the last training stage, in the folder `end` beside `folder`. It is written to
    `folder / "model"` in bfloat16 and the file layout of deepseek-ai's releases, the report to `folder / "report.md"`.
    """
    source = folder.parent / "end"
    model = JanusProForConditionalGeneration.from_pretrained(source, dtype=torch.bfloat16)
    model.generation_config.image_guidance_scale = GUIDANCE_SCALE
    model.save_pretrained(folder / "model")
    JanusProProcessor.from_pretrained(source).save_pretrained(folder / "model")
    pipe = JanusProPipeline.from_pretrained(folder / "model", dtype="float32")
    report = tables(ShapesWorld()(pipe))
    (folder / "report.md").write_text(report, encoding="utf-8")
    print(report)


def draw_figures(folder: Path) -> None:
    """Plot the loss curves of all training stages and write them to `loss_curves.png` in `folder`, for docs/.

    The losses are read from the `log.json` that every stage has written to its folder beside `folder`. The package
    matplotlib is needed.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2))
    for axis, key in zip(axes, ("loss_drawing", "loss_understanding", "loss_text"), strict=True):
        begin = 0
        for name in RECIPES:
            log = json.loads((folder.parent / name / "log.json").read_text())
            rows = [(begin + row["step"], row[key]) for row in log if key in row and "train_runtime" not in row]
            if rows:
                axis.plot(*zip(*rows, strict=True), label=name, linewidth=1)
            begin += RECIPES[name].steps
        axis.set(title=key.removeprefix("loss_"), xlabel="step", yscale="log")
        axis.legend()
    axes[0].set_ylabel("cross-entropy, nats per label")
    figure.tight_layout()
    figure.savefig(folder / "loss_curves.png", dpi=80)


# Name of a piece -> the function that does it and writes the folder of that name. The order is that of the run.
PIECES: dict[str, Callable[[Path], None]] = {
    "codec": train_codec,
    "start": make_start,
    "data": prepare_data,
    **dict.fromkeys(RECIPES, train_stage),
    "export": export,
    "figures": draw_figures,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=Path("runs/shapes"), help="folder of the run")
    parser.add_argument("--only", nargs="*", choices=PIECES, default=list(PIECES), help="pieces to run, in this order")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="number of CPU threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name in options.only:
        folder = options.work / name
        if (folder / "done").exists():
            print(f"{name}: done before")
            continue
        folder.mkdir(parents=True, exist_ok=True)
        PIECES[name](folder)
        (folder / "done").touch()


if __name__ == "__main__":
    main()
