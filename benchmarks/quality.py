"""What fewer bits cost: the small model in float32, in bfloat16, and with int8 and int4 weights.

    python -m benchmarks.quality [--contenders float32 bfloat16 int8 int4] [--prompts-per-tag 20]
        [--images-per-prompt 4] [--questions 600] [--seed 0] [--device cpu] [--output FILE]

The embedded model draws and answers; int8 and int4 are torchao's weight-only quantisation of its language model, which
computes in bfloat16. Of every contender:

- same code, KL: the float32 model draws `--prompts-per-tag` pictures for each of the six tags, and the contender is
  led along its codes. The share of codes at which both hold the same code for the likeliest, and the divergence of the
  contender's distribution from the float32 model's, in nats per code, both after guidance. bfloat16's rounding is the
  measure of what to worry about.
- drawing, answers: the scores of `janus-hf eval shapes`, without the combinations that training never showed.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from janus_hf import JanusProPipeline
from janus_hf.assets import DEFAULT_MODEL
from janus_hf.evaluation.benchmarks.shapes_world import ShapesWorld
from janus_hf.shapes import TAGS, make_drawing

from .peers import describe_machine


CONTENDERS = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "int8": (torch.bfloat16, "int8"),
    "int4": (torch.bfloat16, "int4"),
}
BATCH = 64


def make_pipeline(name: str, device: str) -> JanusProPipeline:
    """The small model as a contender."""
    dtype, bits = CONTENDERS[name]
    quantisation = {"quantization_config": bits, "device_map": device} if bits else {}
    pipe = JanusProPipeline.from_pretrained(DEFAULT_MODEL, dtype=dtype, **quantisation).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_prompts(per_tag: int, seed: int) -> list[str]:
    """Prompts of every tag."""
    rng = np.random.default_rng(seed)
    return [make_drawing(tag, rng).prompt for tag in TAGS for _ in range(per_tag)]


def guided_logits(
    pipe: Any, prompts: list[str], seed: int, forced: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes `(N, P)`, drawn or given, and the logits `(N, P, K)` from which each of them was, or would have been."""
    codes, logits = [], []
    for start in range(0, len(prompts), BATCH):
        rows = slice(start, start + BATCH)
        inputs = pipe.processor.prepare_image_generation(prompts[rows]).to(pipe.device)
        given = None if forced is None else forced[rows].to(pipe.device)
        drawn = pipe.model.generate_images(
            **inputs,
            pad_token_id=pipe.processor.pad_token_id,
            generator=[torch.Generator().manual_seed(seed + n) for n in range(len(prompts))[rows]],
            callback=None if given is None else lambda step, _, given=given: given[:, step],
            output_logits=True,
            return_dict_in_generate=True,
        )
        codes.append(drawn.image_ids.cpu())
        logits.append(drawn.logits.cpu())
    return torch.cat(codes), torch.cat(logits)


def compare(expected: torch.Tensor, found: torch.Tensor) -> tuple[float, float]:
    """Share of equal likeliest codes, and mean divergence KL(expected || found) in nats."""
    same = (expected.argmax(dim=-1) == found.argmax(dim=-1)).float().mean().item()
    wanted, given = expected.log_softmax(dim=-1), found.log_softmax(dim=-1)
    return same, (wanted.exp() * (wanted - given)).sum(dim=-1).mean().item()


def versions(device: str) -> str:
    """Hardware and versions, torchao's too where it is installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        torchao = f", torchao {version('torchao')}"
    except PackageNotFoundError:
        torchao = ""
    return describe_machine(device, torch.bfloat16) + torchao


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contenders", nargs="+", choices=tuple(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--prompts-per-tag", type=int, default=20)
    parser.add_argument("--images-per-prompt", type=int, default=4)
    parser.add_argument("--questions", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="write the table here as well")
    arguments = parser.parse_args()

    prompts = make_prompts(arguments.prompts_per_tag, arguments.seed + 100)
    codes, expected = guided_logits(make_pipeline("float32", arguments.device), prompts, arguments.seed)
    pictures = len(TAGS) * arguments.prompts_per_tag * arguments.images_per_prompt
    lines = [
        f"{versions(arguments.device)}; {codes.numel()} codes led along, {pictures} pictures, "
        f"{arguments.questions} questions",
        "",
        "| weights | same code as float32 | KL per code, nats | drawing | answers |",
        "|---|---:|---:|---:|---:|",
    ]
    print("\n".join(lines), flush=True)
    for name in arguments.contenders:
        pipe = make_pipeline(name, arguments.device)
        same, divergence = compare(expected, guided_logits(pipe, prompts, arguments.seed, codes)[1])
        evaluate = ShapesWorld(
            prompts_per_tag=arguments.prompts_per_tag,
            images_per_prompt=arguments.images_per_prompt,
            questions=arguments.questions,
            held_out=False,
            seed=arguments.seed,
            batch_size=BATCH,
        )
        metrics = evaluate(pipe).metrics
        scores = f"{metrics['overall']:.3f} | {metrics['answers: overall']:.3f}"
        row = f"| {name} | {same:.4f} | {divergence:.1e} | {scores} |"
        lines.append(row)
        print(row, flush=True)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
