"""Topic "prepare": images per second of `janus-hf prepare`, and which of its stages bounds them."""

from typing import Any

from janus_hf import JanusProProcessor
from janus_hf.assets import DEFAULT_MODEL
from janus_hf.processing import JanusProImageProcessor

from ... import prepare
from ...peers import make_config, make_ours
from ..bench import Bench
from ..tables import Column, Part, Topic


THREADS = (4, 16)
BATCH = 32


def measure(bench: Bench) -> None:
    """Time every stage alone, then the whole command, on JPEG files of 640 x 480 pixels."""
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
    for stage, threads, run in prepare.measure(model, processor, bench.pick(512, 4), THREADS, BATCH):
        with bench.row(stage, threads) as row:
            row["rate"] = run()


def bound(rows: Any) -> None:
    """Say in the rows of the whole command which stage is slower with the same number of threads."""
    rates = {row.labels: row.values.get("rate") for row in rows}
    for row in rows:
        if row.labels[0] == prepare.WHOLE and row.values and (slower := prepare.bound(rates, row.labels[1])):
            row.values["bound"] = slower


_ROWS = tuple(
    (stage, str(threads)) for stage, depends in prepare.STAGES.items() for threads in (THREADS if depends else ("",))
)

TOPIC = Topic(
    title="Preparing data",
    explanation="Drawing rows from JPEG files of 640 x 480 pixels, in batches of 32. Stages are measured alone, those "
    "without a number of threads in one thread. `prepare` reads the next batch in its threads while it encodes one. "
    "`python -m benchmarks.prepare` prints the same table for a model in a folder.",
    labels=("what", "threads"),
    columns=(Column("rate", "images/s", ".1f"), Column("bound", "slower stage")),
    parts=(Part("prepare", 16, _ROWS, measure),),
    derive=bound,
)
