"""Measure what fewer bits cost: the small model in float32, in bfloat16, and with int8 and int4 weights.

    python -m benchmarks.quality [--contenders float32 bfloat16 int8 int4] [--prompts-per-tag 20]
        [--images-per-prompt 4] [--questions 600] [--seed 0] [--device cpu] [--output FILE]

The model inside the package generates and answers. int8 and int4 are torchao's weight-only quantisation of its
language model, which computes in bfloat16. For every contender the table shows:

- same code, KL: the float32 model generates images of `--prompts-per-tag` prompts for each of the six tags, and the
  contender is teacher-forced with their image tokens. "same code" is the share of tokens at which both models find the
  same token most likely; KL is the divergence of the contender's distribution from the float32 model's, in nats per
  token. Both are taken after guidance. The values of bfloat16 show how much rounding alone costs.
- drawing, answers: the scores of `janus-hf eval shapes`, without the combinations that training never showed.
"""

import numpy as np
import torch

from janus_hf import JanusProPipeline
from janus_hf.assets import DEFAULT_MODEL
from janus_hf.evaluation.benchmarks.shapes_world import ShapesWorld
from janus_hf.shapes import TAGS, make_drawing

from .machine import describe_machine
from .reporting import Report, add_device, add_output, make_parser


# Name -> dtype, and the bits of the language model's weights if they are quantised.
CONTENDERS = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "int8": (torch.bfloat16, "int8"),
    "int4": (torch.bfloat16, "int4"),
}
BATCH = 64


def make_pipeline(name: str, device: str) -> JanusProPipeline:
    """Load the model inside the package as a contender."""
    dtype, bits = CONTENDERS[name]
    quantisation = {"quantization_config": bits, "device_map": device} if bits else {}
    pipe = JanusProPipeline.from_pretrained(DEFAULT_MODEL, dtype=dtype, **quantisation).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_prompts(per_tag: int, seed: int) -> list[str]:
    """Return `per_tag` prompts of every tag."""
    rng = np.random.default_rng(seed)
    return [make_drawing(tag, rng).prompt for tag in TAGS for _ in range(per_tag)]


def guided_logits(
    pipe: JanusProPipeline, prompts: list[str], seed: int, forced: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generate one image per prompt and return its image tokens and their logits.

    Args:
        pipe: The contender.
        prompts: N prompts.
        seed: Seed of the first image; every further image has the next one.
        forced: Image tokens `(N, P)` to feed instead of the generated ones.

    Returns:
        The image tokens `(N, P)`, P per image, and the logits after guidance `(N, P, K)` over the K codebook entries,
        from which each token was sampled, or would have been without `forced`.
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
    """Return the share of equal most likely tokens, and the mean divergence KL(expected || found) in nats."""
    same = (expected.argmax(dim=-1) == found.argmax(dim=-1)).float().mean().item()
    wanted, given = expected.log_softmax(dim=-1), found.log_softmax(dim=-1)
    return same, (wanted.exp() * (wanted - given)).sum(dim=-1).mean().item()


def main() -> None:
    """Print one row per contender."""
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
