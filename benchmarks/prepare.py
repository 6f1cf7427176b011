"""Measure how many images per second `janus-hf prepare` encodes as image tokens, and which of its stages bounds it.

    python -m benchmarks.prepare [--images 256] [--threads 1 4] [--batch-size 32] [--model FOLDER] [--device cpu]
        [--output FILE]

The images are JPEG files of 640 x 480 pixels. Every stage runs alone, then the whole command runs (`prepare`, which
the command line calls), once per number of threads:

- read: the file is read. The threads of the command do this, decode and resize, one image per thread.
- decode: the JPEG file becomes pixels.
- resize: the image is resized, cropped and converted to the input of the codec.
- read, decode, resize: the three together.
- encode: the codec computes the image tokens of a batch, with copying it to the device.
- write: the rows are written to a shard.
- prepare: the command. Reading overlaps with encoding. The stages that bound it are the slowest of "read, decode,
  resize" with as many threads, and "encode".
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from janus_hf import JanusProForConditionalGeneration, JanusProProcessor
from janus_hf.assets import DEFAULT_MODEL
from janus_hf.data import prepare
from janus_hf.data.store import make_table, write_shard
from janus_hf.processing import load_picture

from .machine import describe_machine, now
from .reporting import Report, add_device, add_output, make_parser


READ, ENCODE, WHOLE = "read, decode, resize", "encode", "prepare"
# Names of the stages, with whether their speed depends on the number of threads.
STAGES = {"read": False, "decode": False, "resize": False, READ: True, ENCODE: False, "write": False, WHOLE: True}


def write_images(folder: Path, count: int) -> list[str]:
    """Write `count` JPEG files with smooth random content, like that of photographs, and return their paths."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(256, size=(24, 32, 3), dtype=np.uint8))
        path = folder / f"{number}.jpg"
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(str(path))
    return paths


def measure(
    model: JanusProForConditionalGeneration,
    processor: JanusProProcessor,
    count: int,
    threads: Sequence[int],
    batch_size: int,
) -> Iterator[tuple[str, str, Callable[[], float]]]:
    """Iterate over the rows of the table, each with a function that measures it.

    Yields:
        `(stage, number of threads or "", function that returns images per second)`. The files exist until the
        iterator ends.
    """
    device = str(model.device)
    with tempfile.TemporaryDirectory() as folder:
        files = write_images(Path(folder), count)
        contents = [Path(path).read_bytes() for path in files]
        images = [load_picture(content) for content in contents[:batch_size]]

        def resized(image: Any) -> torch.Tensor:
            pixels: torch.Tensor = processor.image_processor(image, mode="generation")["pixel_values"]
            return pixels

        def rate(work: Callable[[Any], Any], items: Sequence[Any], threads: int = 1) -> float:
            with ThreadPoolExecutor(threads) as pool:
                start = time.perf_counter()
                list(pool.map(work, items))
                return len(items) / (time.perf_counter() - start)

        def encode() -> float:
            pixels = torch.cat([resized(image) for image in images])
            model.encode_image_ids(pixels)  # the first call chooses kernels
            start, rounds = now(device), max(1, min(4, count // len(images)))
            for _ in range(rounds):
                model.encode_image_ids(pixels)
            return rounds * len(images) / (now(device) - start)

        def write() -> float:
            ids = list(range(model.config.vq_config.num_image_tokens + 20))
            row = {
                "input_ids": ids,
                "labels": ids,
                "task": "drawing",
                "images": [],
                "prompt_end": 1,
                "length": len(ids),
            }
            start = time.perf_counter()
            write_shard(make_table([row] * count), Path(folder) / "written.arrow")
            return count / (time.perf_counter() - start)

        def whole(threads: int) -> float:
            rows = [{"prompt": "a photograph", "image": path} for path in files]
            start = now(device)
            output = Path(folder) / f"rows{threads}"
            prepare(rows, output, model, processor, batch_size=batch_size, num_threads=threads)
            return count / (now(device) - start)

        def read(threads: int) -> float:
            return rate(lambda path: resized(load_picture(Path(path).read_bytes())), files, threads)

        yield "read", "", lambda: rate(lambda path: Path(path).read_bytes(), files)
        yield "decode", "", lambda: rate(load_picture, contents[:batch_size])
        yield "resize", "", lambda: rate(resized, images)
        for number in threads:
            yield READ, str(number), lambda number=number: read(number)
        yield ENCODE, "", encode
        yield "write", "", write
        for number in threads:
            yield WHOLE, str(number), lambda number=number: whole(number)


def bound(rates: dict[tuple[str, str], float | None], threads: str) -> str | None:
    """Return which stage bounds the whole command with this number of threads, or None if that is not known."""
    found = {READ: rates.get((READ, threads)), ENCODE: rates.get((ENCODE, ""))}
    known = {stage: rate for stage, rate in found.items() if rate}
    return min(known, key=lambda stage: known[stage]) if len(known) == 2 else None


def main() -> None:
    """Measure every stage and print the table with one row for each."""
    parser = make_parser(__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    add_device(parser)
    add_output(parser)
    arguments = parser.parse_args()
    # As the command line does for the small model; many CPUs are slow in bfloat16.
    dtype = torch.float32 if arguments.device == "cpu" else "auto"
    model = JanusProForConditionalGeneration.from_pretrained(arguments.model, dtype=dtype, device_map=arguments.device)
    processor = JanusProProcessor.from_pretrained(arguments.model)
    report = Report()
    report.add(describe_machine(arguments.device, model.dtype), "", "| stage | threads | images/s | slower stage |")
    report.add("|---|---:|---:|---|")
    rates: dict[tuple[str, str], float | None] = {}
    for stage, threads, run in measure(model, processor, arguments.images, arguments.threads, arguments.batch_size):
        rates[stage, threads] = run()
        slower = bound(rates, threads) if stage == WHOLE else None
        report.add(f"| {stage} | {threads} | {rates[stage, threads]:.1f} | {slower or ''} |")
    report.save(arguments.output)


if __name__ == "__main__":
    main()
