"""Time decoding and encoding of 384x384 images: our codec against transformers' own, interleaved in one process.

    python -m benchmarks.codec [--device cpu] [--batch-size 1] [--rounds 5]

Both codecs have full size and share random weights. Decoding is also checked by the largest difference of 8-bit
pixels, between the two in the same dtype, and between bfloat16 and float32. The latter decides whether bfloat16 may
become a default; `--model` measures it with a trained checkpoint's codec too.
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from transformers.models.janus.modeling_janus import JanusVQVAE

from janus_hf import JanusProForConditionalGeneration, JanusProVQConfig
from janus_hf.modeling import JanusProVQModel

from .machine import describe_machine, now
from .reporting import add_device, make_parser


def to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Convert pixels in [-1, 1] to 8-bit levels by truncation, as deepseek-ai/Janus does."""
    return ((pixels.float() + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).int()


def make_pair(dtype: torch.dtype, device: str) -> tuple[JanusProVQModel, JanusVQVAE]:
    """Return our codec and transformers' own with the same random weights."""
    torch.manual_seed(0)
    ours = JanusProVQModel(JanusProVQConfig()).eval()
    config = ours.config.to_dict()
    theirs = JanusVQVAE(
        JanusVQVAE.config_class.from_dict(
            {key: value for key, value in config.items() if key not in ("image_size", "commitment_cost")}
            | {"num_patches": ours.config.num_patches}
        )
    ).eval()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    return ours.to(device, dtype), theirs.to(device, dtype)


def timed(function: Callable[[], Any], device: str) -> float:
    """Return the seconds of one call, until the device has finished."""
    start = now(device)
    function()
    return now(device) - start


def describe_difference(first: torch.Tensor, second: torch.Tensor) -> str:
    """Describe by how many 8-bit levels two batches of images differ."""
    levels = (first - second).abs()
    share = (levels > 1).float().mean().item()
    return f"up to {levels.max().item()} levels of 255, {share:.1%} of values by more than one"


def median_seconds(functions: Sequence[Callable[[], Any]], rounds: int, device: str) -> list[float]:
    """Return the median seconds of every function, called by turns `rounds` times after a first round to warm up."""
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 1):
        for function, found in zip(functions, seconds, strict=True):
            found.append(timed(function, device))
    return [statistics.median(found[1:]) for found in seconds]


@torch.no_grad()
def main() -> None:
    """Print the table of times, then the differences between bfloat16 and float32."""
    parser = make_parser(__doc__)
    add_device(parser)
    parser.add_argument("--batch-size", type=int, default=1, help="images per call")
    parser.add_argument("--rounds", type=int, default=5, help="calls of each codec, after one that is not counted")
    parser.add_argument("--model", help="folder or repository whose codec is also decoded in bfloat16")
    arguments = parser.parse_args()
    device, size = arguments.device, arguments.batch_size
    ids = torch.randint(16384, (size, 576), generator=torch.Generator().manual_seed(0)).to(device)
    print(describe_machine(device, torch.float32), f"; {size} picture(s) at a time, median of {arguments.rounds}\n")
    print("| what | dtype | in-tree, s | ours, s | in-tree / ours | in-tree float32 / ours | pixels differ by |")
    print("|---|---|---:|---:|---:|---:|---:|")
    base: dict[str, float] = {}  # seconds of transformers' codec in float32
    decoded = {}
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = make_pair(dtype, device)
        pixels = torch.rand(size, 3, 384, 384, device=device).to(dtype) * 2 - 1
        pairs = {
            "decode": (partial(theirs.decode, ids), partial(ours.decode_image_ids, ids)),
            "encode": (partial(theirs.encode, pixels), partial(ours.encode_image_ids, pixels)),
        }
        decoded[dtype] = to_bytes(ours.decode_image_ids(ids))
        differ = {"decode": str((to_bytes(theirs.decode(ids)) - decoded[dtype]).abs().max().item()), "encode": ""}
        for what, functions in pairs.items():
            their_time, our_time = median_seconds(functions, arguments.rounds, device)
            base.setdefault(what, their_time)
            print(
                f"| {what} | {str(dtype)[6:]} | {their_time:.2f} | {our_time:.2f} | {their_time / our_time:.2f} | "
                f"{base[what] / our_time:.2f} | {differ[what]} |",
                flush=True,
            )
    found = describe_difference(decoded[torch.bfloat16], decoded[torch.float32])
    print(f"\nbfloat16 against float32, random weights: {found}")
    if arguments.model:
        model = JanusProForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
        codec = model.model.vqmodel.to(device)
        ids = torch.randint(codec.config.num_embeddings, (8, codec.config.num_image_tokens)).to(device)
        exact = to_bytes(codec.decode_image_ids(ids))
        found = describe_difference(to_bytes(codec.bfloat16().decode_image_ids(ids)), exact)
        print(f"bfloat16 against float32, {arguments.model}: {found}")


if __name__ == "__main__":
    main()
