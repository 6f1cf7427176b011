"""Measure the time to decode and encode 384x384 images: this package's image codec against that of transformers.

    python -m benchmarks.codec [--device cpu] [--batch-size 1] [--rounds 5]

The calls of both are interleaved in one process. Both codecs have full size and the same random weights. The benchmark
also prints the largest difference of 8-bit pixels in decoded images, between the two codecs in the same dtype, and
between bfloat16 and float32. The latter decides whether bfloat16 may become a default; `--model` measures it with the
codec of a trained checkpoint too.
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
    """Convert pixels in [-1, 1] to 8-bit levels in [0, 255], int32, by truncation as deepseek-ai/Janus does."""
    return ((pixels.float() + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).int()


def make_pair(
    dtype: torch.dtype, device: str, vq_config: JanusProVQConfig | None = None
) -> tuple[JanusProVQModel, JanusVQVAE]:
    """Return this package's image codec and that of transformers' Janus, with the same random weights.

    Args:
        dtype: Dtype of both.
        device: Device of both.
        vq_config: Config of the codec; None takes that of the released models.
    """
    torch.manual_seed(0)
    ours = JanusProVQModel(vq_config or JanusProVQConfig()).eval()
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
    """Call a function and return the seconds until the device has finished its work."""
    start = now(device)
    function()
    return now(device) - start


def describe_difference(first: torch.Tensor, second: torch.Tensor) -> str:
    """Describe in words by how many 8-bit levels the pixels of two batches of images differ."""
    levels = (first - second).abs()
    share = (levels > 1).float().mean().item()
    return f"up to {levels.max().item()} levels of 255, {share:.1%} of values by more than one"


def median_seconds(functions: Sequence[Callable[[], Any]], rounds: int, device: str) -> list[float]:
    """Return the median seconds of a call of each function.

    The functions are called in turn, `rounds` times each, after a round of warm-up.
    """
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds + 1):
        for function, found in zip(functions, seconds, strict=True):
            found.append(timed(function, device))
    return [statistics.median(found[1:]) for found in seconds]


@torch.no_grad()
def main() -> None:
    """Print the table of times of both codecs, then how decoded images differ between bfloat16 and float32."""
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
    base: dict[str, float] = {}  # "decode" or "encode" -> seconds of transformers' codec in float32
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
