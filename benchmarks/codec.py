"""Decoding and encoding of 384x384 pictures: our codec against transformers' own, interleaved in one process.

    python -m benchmarks.codec [--device cpu] [--batch-size 1] [--rounds 5]

The full-size codec with random weights, shared by both. Decoding is also checked: the largest difference of 8-bit
pixels between the two in the same dtype, and between bfloat16 and float32, which decides whether bfloat16 may be used
unasked; `--model` takes a trained checkpoint's codec for that.
"""

import argparse
import statistics
import time
from functools import partial
from typing import Any

import torch
from transformers.models.janus.modeling_janus import JanusVQVAE

from janus_hf import JanusProForConditionalGeneration, JanusProVQConfig
from janus_hf.modeling import JanusProVQModel

from .peers import describe_machine


def to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """As the original truncates."""
    return ((pixels.float() + 1) / 2 * 255).clamp(0, 255).to(torch.uint8).int()


def make_pair(dtype: torch.dtype, device: str) -> tuple[Any, Any]:
    """Ours and transformers' codec around the same weights."""
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


def timed(function: Any, device: str) -> float:
    start = time.perf_counter()
    function()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", help="folder or repository whose codec decides about bfloat16")
    arguments = parser.parse_args()
    device, size = arguments.device, arguments.batch_size
    codes = torch.randint(16384, (size, 576), generator=torch.Generator().manual_seed(0)).to(device)
    print(describe_machine(device, torch.float32), f"; {size} picture(s) at a time, median of {arguments.rounds}\n")
    print("| what | dtype | in-tree, s | ours, s | in-tree / ours | in-tree float32 / ours | pixels differ by |")
    print("|---|---|---:|---:|---:|---:|---:|")
    base: dict[str, float] = {}
    exact = None
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = make_pair(dtype, device)
        pixels = torch.rand(size, 3, 384, 384, device=device).to(dtype) * 2 - 1
        pairs = {
            "decode": (partial(theirs.decode, codes), partial(ours.decode_image_ids, codes)),
            "encode": (partial(theirs.encode, pixels), partial(ours.encode_image_ids, pixels)),
        }
        for what, functions in pairs.items():
            seconds: tuple[list[float], list[float]] = ([], [])
            for _ in range(arguments.rounds + 1):
                for function, found in zip(functions, seconds, strict=True):
                    found.append(timed(function, device))
            their_time, our_time = (statistics.median(found[1:]) for found in seconds)
            base.setdefault(what, their_time)
            differ = ""
            if what == "decode":
                differ = str(
                    (to_bytes(theirs.decode(codes)) - to_bytes(ours.decode_image_ids(codes))).abs().max().item()
                )
            print(
                f"| {what} | {str(dtype)[6:]} | {their_time:.2f} | {our_time:.2f} | {their_time / our_time:.2f} | "
                f"{base[what] / our_time:.2f} | {differ} |",
                flush=True,
            )
        decoded = to_bytes(ours.decode_image_ids(codes))
        if exact is None:
            exact = decoded
    differences = (decoded - exact).abs()
    print(f"\nbfloat16 against float32, random weights: up to {differences.max().item()} levels of 255, "
          f"{(differences > 1).float().mean().item():.1%} of values by more than one")  # fmt: skip
    if arguments.model:
        model = JanusProForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
        codec = model.model.vqmodel.to(device)
        grid = codec.config.num_image_tokens
        codes = torch.randint(codec.config.num_embeddings, (8, grid)).to(device)
        whole = to_bytes(codec.decode_image_ids(codes))
        differences = (to_bytes(codec.bfloat16().decode_image_ids(codes)) - whole).abs()
        print(f"bfloat16 against float32, {arguments.model}: up to {differences.max().item()} levels, "
              f"{(differences > 1).float().mean().item():.1%} of values by more than one")  # fmt: skip


if __name__ == "__main__":
    main()
