"""Measure the quality that the small model of this package loses in bfloat16, and with int8, int4 and fp8 weights.

    python -m benchmarks.quality [--contenders float32 bfloat16 int8 int4 fp8] [--prompts-per-tag 20]
        [--images-per-prompt 4] [--questions 600] [--seed 0] [--device cpu] [--output FILE]

The model that ships inside the package, trained on synthetic images of coloured shapes, generates images and answers
questions. int8, int4 and fp8 are torchao's weight-only quantisation of its language model, which computes in bfloat16.
For every contender (float32, bfloat16, int8, int4, fp8) the table shows:

- same code, KL: the float32 model generates images of `--prompts-per-tag` prompts for each of the six tags (kinds of
  prompts), and the contender is teacher-forced with their image tokens. "same code" is the share of tokens at which
  both models find the same token most likely; "KL" is the divergence KL(float32 || contender) of their distributions,
  in nats per token. Both are computed after guidance. The values of bfloat16 show how much rounding alone costs.
- drawing, answers: the scores of `janus-hf eval shapes` for images and for answers, without the combinations of colour
  and shape that training never showed.
"""

import numpy as np
import torch

from janus_hf import JanusProPipeline
from janus_hf.assets import DEFAULT_MODEL
from janus_hf.evaluation.benchmarks.shapes_world import ShapesWorld
from janus_hf.shapes import TAGS, make_drawing

from .machine import describe_machine
from .reporting import Report, add_device, add_output, make_parser


# Contender -> dtype of the model, and quantisation of the language model's weights or None.
CONTENDERS = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "int8": (torch.bfloat16, "int8"),
    "int4": (torch.bfloat16, "int4"),
    "fp8": (torch.bfloat16, "fp8"),
}
BATCH = 64


def make_pipeline(name: str, device: str) -> JanusProPipeline:
    """Load the small model that ships inside the package, in the precision `name`, one of `CONTENDERS`."""
    dtype, bits = CONTENDERS[name]
    quantisation = {"quantization_config": bits, "device_map": device} if bits else {}
    pipe = JanusProPipeline.from_pretrained(DEFAULT_MODEL, dtype=dtype, **quantisation).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_prompts(per_tag: int, seed: int) -> list[str]:
    """Return `per_tag` random prompts about coloured shapes for each of the tags (kinds of prompts), `TAGS`."""
    rng = np.random.default_rng(seed)
    return [make_drawing(tag, rng).prompt for tag in TAGS for _ in range(per_tag)]


def guided_logits(
    pipe: JanusProPipeline, prompts: list[str], seed: int, forced: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generate one image per prompt and return its image tokens and their logits.

    Args:
        pipe: The pipeline whose model generates.
        prompts: N prompts.
        seed: Seed of the first image; image n (from 0) has the seed `seed + n`.
        forced: Image tokens `(N, P)` to feed to the model instead of those that it generates.

    Returns:
        The image tokens `(N, P)`, P per image, and the logits after guidance `(N, P, K)` over the K codebook entries.
        Each token was sampled from these logits, or would have been without `forced`.
    """
    image_ids, logits = [], []
    for start in range(0, len(prompts), BATCH):
        rows = slice(start, start + BATCH)
        inputs = pipe.processor.prepare_image_generation(prompts[rows]).to(pipe.device)
        given = None if forced is None else forced[rows].to(pipe.device)
        output = pipe.model.generate_images(
            **inputs,
            pad_token_id=pipe.processor.pad_token_id,
            generator=[torch.Generator().manual_seed(seed + n) for n in range(len(prompts))[rows]],
            callback=None if given is None else lambda step, _, given=given: given[:, step],
            output_logits=True,
            return_dict_in_generate=True,
        )
        image_ids.append(output.image_ids.cpu())
        logits.append(output.logits.cpu())
    return torch.cat(image_ids), torch.cat(logits)


def compare(expected: torch.Tensor, found: torch.Tensor) -> tuple[float, float]:
    """Compare two tensors of logits `(..., K)` over K codebook entries.

    Returns:
        The share of positions at which both have the same most likely token, and the mean divergence
        KL(expected || found) per position in nats.
    """
    same = (expected.argmax(dim=-1) == found.argmax(dim=-1)).float().mean().item()
    wanted, given = expected.log_softmax(dim=-1), found.log_softmax(dim=-1)
    return same, (wanted.exp() * (wanted - given)).sum(dim=-1).mean().item()


def main() -> None:
    """Measure every contender and print the table with one row for each."""
    parser = make_parser(__doc__)
    parser.add_argument("--contenders", nargs="+", choices=tuple(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--prompts-per-tag", type=int, default=20)
    parser.add_argument("--images-per-prompt", type=int, default=4)
    parser.add_argument("--questions", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    add_device(parser)
    add_output(parser)
    arguments = parser.parse_args()

    prompts = make_prompts(arguments.prompts_per_tag, arguments.seed + 100)
    image_ids, expected = guided_logits(make_pipeline("float32", arguments.device), prompts, arguments.seed)
    num_images = len(TAGS) * arguments.prompts_per_tag * arguments.images_per_prompt
    report = Report()
    report.add(
        f"{describe_machine(arguments.device, torch.bfloat16, 'torchao')}; {image_ids.numel()} codes led along, "
        f"{num_images} pictures, {arguments.questions} questions",
        "",
        "| weights | same code as float32 | KL per code, nats | drawing | answers |",
        "|---|---:|---:|---:|---:|",
    )
    for name in arguments.contenders:
        pipe = make_pipeline(name, arguments.device)
        same, divergence = compare(expected, guided_logits(pipe, prompts, arguments.seed, image_ids)[1])
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
        report.add(f"| {name} | {same:.4f} | {divergence:.1e} | {scores} |")
    report.save(arguments.output)


if __name__ == "__main__":
    main()
