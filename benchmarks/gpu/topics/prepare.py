"""Topic "prepare": images per second of `janus-hf prepare`, and which of its stages bounds them."""

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from janus_hf import JanusProProcessor
from janus_hf.assets import DEFAULT_MODEL
from janus_hf.data import prepare
from janus_hf.processing import JanusProImageProcessor

from ...machine import now
from ...peers import make_config, make_ours
from ..bench import Bench
from ..tables import Column, Part, Topic


THREADS = (4, 16)
BATCH = 32
STAGES = ("read and resize", "encode")


def measure(bench: Bench) -> None:
    """Time both stages alone, then the whole command, on JPEG files of 640 x 480 pixels."""
    count = bench.pick(192, 4)
    # The language model is not used, so it is tiny; the codec has full size.
    model = make_ours(bench.pick("tiny", "dry"), bench.dtype, bench.device)
    side = make_config(bench.pick("tiny", "dry")).vq_config.image_size
    small = JanusProProcessor.from_pretrained(DEFAULT_MODEL)
    placeholders = model.config.vision_config.num_image_tokens
    processor = JanusProProcessor(
        JanusProImageProcessor(image_size=side), small.tokenizer, num_image_tokens=placeholders
    )
    # `prepare` refuses a processor whose ids are not the model's.
    model.generation_config.pad_token_id = processor.pad_token_id
    model.config.image_token_id = processor.image_token_id
    with tempfile.TemporaryDirectory() as folder:
        files = write_images(Path(folder), count)

        def read(path: str) -> Any:
            return processor.image_processor(path, mode="generation")["pixel_values"]

        for threads in THREADS:
            with bench.row("read and resize", str(threads)) as row, ThreadPoolExecutor(threads) as pool:
                start = time.perf_counter()
                list(pool.map(read, files))
                row["rate"] = count / (time.perf_counter() - start)
        with bench.row("encode", "") as row:
            pixels = torch.cat([read(path) for path in files[:BATCH]])
            model.encode_image_ids(pixels)  # the first call chooses kernels
            start = now(bench.device)
            for _ in range(rounds := bench.pick(4, 1)):
                model.encode_image_ids(pixels)
            row["rate"] = rounds * len(pixels) / (now(bench.device) - start)
        rows = [{"prompt": "a photograph", "image": path} for path in files]
        for threads in THREADS:
            with bench.row("prepare", str(threads)) as row:
                start = now(bench.device)
                prepare(rows, Path(folder) / f"rows{threads}", model, processor, batch_size=BATCH, num_threads=threads)
                row["rate"] = count / (now(bench.device) - start)


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


def bound(rows: Any) -> None:
    """Say in the rows of the whole command which stage is slower with the same number of threads."""
    known = {row.labels: row.values.get("rate") for row in rows}
    for row in rows:
        rates = {stage: known.get((stage, row.labels[1] if stage != "encode" else "")) for stage in STAGES}
        if row.labels[0] == "prepare" and row.values and all(rates.values()):
            row.values["bound"] = min(rates, key=lambda stage: rates[stage] or 0)


_ROWS = (
    *(("read and resize", str(threads)) for threads in THREADS),
    ("encode", ""),
    *(("prepare", str(threads)) for threads in THREADS),
)

TOPIC = Topic(
    title="Preparing data",
    explanation="Drawing rows from JPEG files of 640 x 480 pixels, in batches of 32. Stages are measured alone; "
    "`prepare` runs them one after the other and writes the rows.",
    labels=("what", "threads"),
    columns=(Column("rate", "images/s", ".1f"), Column("bound", "slower stage")),
    parts=(Part("prepare", 14, _ROWS, measure),),
    derive=bound,
)
