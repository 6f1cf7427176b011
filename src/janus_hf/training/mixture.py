"""`load_mixture`, which makes the training data of a recipe from its data sources, and the class of its result.

A document is one prepared (tokenized) row of a source. A pack is one row of a training batch: several documents one
after another, up to `max_length` tokens. A plan lists the documents of every pack in advance, so that a run can be
repeated and resumed exactly.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..arguments import checked, of_kind
from ..data import (
    JanusProCollator,
    PackedDataset,
    ShardShuffle,
    finish_prepared,
    load_prepared,
    make_plan,
    prepare,
    stream_packs,
)
from ..data.planning.plan import AHEAD, digest_lengths
from ..data.planning.shard_order import BUFFER
from ..data.store import META
from ..generation.context import context_length
from ..modeling import JanusProForConditionalGeneration
from ..processing import JanusProProcessor
from .batches import Collator, TrainingRows
from .stages import trained_parts
from .trainers.sft_config import JanusProSFTConfig


@dataclass
class TrainingData:
    """The dataset and the collator of a training run, with facts about the data.

    Args:
        dataset: The packs (rows of the training batches, each with several tokenized examples), either map-style (with
            `__len__` and `__getitem__`) or a `datasets.IterableDataset`.
        collator: Function from a list of packs to a batch with the keys that `JanusProTrainerMixin` describes.
        facts: Entries for the checkpoints and the model card, such as `plan_hash`, a hash of the order of the data.
    """

    dataset: TrainingRows
    collator: Collator
    facts: dict[str, Any] = field(default_factory=dict)


def _is_section(section: object) -> bool:
    sources = section.get("sources") if isinstance(section, Mapping) else None
    whole = [isinstance(one, Mapping) and {"name", "path", "ratio"} <= one.keys() for one in sources or ()]
    return isinstance(sources, list) and bool(sources) and all(whole)


@checked(
    section=of_kind(
        "the section `data` of a recipe, whose sources have a name, a path and a ratio each", _is_section, None
    ),
    args=of_kind("a JanusProSFTConfig", JanusProSFTConfig, None),
)
def load_mixture(
    section: dict[str, Any],
    args: JanusProSFTConfig,
    model: JanusProForConditionalGeneration,
    processor: JanusProProcessor,
) -> TrainingData:
    """Make the training data of a recipe: the dataset, which mixes the recipe's data sources, and its collator.

    The rows of the dataset are packs. A pack is one row of a training batch and contains several documents (tokenized
    examples). A plan lists the documents of all packs in advance; with `streaming`, packs are made while the data are
    read, and there is no plan.

    If the `path` of a source is a folder written by `janus-hf prepare`, its rows are used as they are. Any other
    source is first prepared into `<output_dir>/_prepared/<name>`; its further keys are arguments of
    `janus_hf.data.prepare` (`adapter`, `task`, `split`, ...). That is suitable for small data; prepare large data once
    with the command.

    Without `max_steps`, the plan covers `num_train_epochs` passes over the data. Then `args.num_train_epochs` is set
    to 1, because one pass over the plan contains them all.

    Args:
        section: The recipe's section `data`, with the key `sources` and optionally `seed` (default: `args.seed`),
            `streaming`, `shuffle` and `shuffle_buffer`.
        args: The run's configuration; its `max_length`, `caption_drop`, `max_steps` and batch sizes are used here.
        model: The model, whose image codec encodes the images to generate and whose context limits `max_length`.
        processor: The model's processor.

    Returns:
        The dataset, the collator and facts about the data, such as the hash of the plan.

    Raises:
        ValueError: If `max_length` exceeds the model's context, a source cannot be read or prepared, a source was
            prepared for another model, or a source that is already prepared has options that would have no effect.
    """
    limit = context_length(model.config.text_config)
    assert args.max_length is not None  # checked by the configuration
    if args.max_length > limit:
        raise ValueError(
            f"`max_length` must fit the model, whose context holds {limit} tokens, got {args.max_length}: lower it."
        )
    seed = {"seed": args.seed, **section}["seed"]
    sources = section["sources"]
    folders = {source["name"]: _find_or_prepare(source, args, model, processor) for source in sources}
    ratios = {source["name"]: float(source["ratio"]) for source in sources}
    parts = trained_parts(args.stage, args.train_generation_embeddings)
    collator = JanusProCollator(
        processor,
        caption_drop=args.caption_drop,
        seed=seed,
        max_length=limit,  # packs fill `args.max_length`, but a grey image may be appended to one
        # Ranks of a sharded run gather the vision tower's weights together, so each of their batches must use it.
        always_picture="aligner" in parts or "vision_tower" in parts or args.lora_vision_tower or args.sharded,
        # transformers has no public attribute for this: `attn_implementation` is an argument of from_pretrained only.
        varlen="flash" in (model.config._attn_implementation or ""),
        return_task_ids=True,
    )
    prepared = {name: load_prepared(folder, model=model, processor=processor) for name, folder in folders.items()}
    state = PartialState()
    for rows in prepared.values():  # before the first step, because a run may meet a certain shard only after weeks
        rows.check_shards(state.process_index, state.num_processes)
    lengths = {name: rows.lengths for name, rows in prepared.items()}
    if section.get("streaming"):
        order: dict[str, Any] = {"max_length": args.max_length, "ratios": ratios, "seed": seed}
        stream = stream_packs({name: str(folder) for name, folder in folders.items()}, **order)
        # A stream has no plan to hash; its order follows from these settings and the sources' lengths.
        identity = json.dumps([order, {name: digest_lengths(rows) for name, rows in lengths.items()}])
        plan_hash = f"streamed-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        return TrainingData(stream, collator, {"plan_hash": plan_hash, "data_seed": seed})

    extent: dict[str, Any] = {**_plan_extent(args), "folder": Path(args.output_dir) / "_plan"}
    if section.get("shuffle") == "shards":
        starts = {name: rows.starts for name, rows in prepared.items()}
        extent["shuffle"] = ShardShuffle(starts, section.get("shuffle_buffer") or BUFFER)
    plan = make_plan(lengths, max_length=args.max_length, ratios=ratios, seed=seed, **extent)
    dataset = PackedDataset(prepared, plan)
    # These facts are computed before the loader's workers are forked, because that plans packs, which the workers then
    # share.
    counts, efficiency = plan.counts(), round(dataset.efficiency(), 4)
    facts = {"plan_hash": plan.hash, "data_seed": seed, "packs": len(plan), "packing_efficiency": efficiency}
    if len(plan) <= AHEAD:  # of longer plans `counts` covers only the first 16,384 packs
        facts["documents"] = counts
    return TrainingData(dataset, collator, facts)


def _plan_extent(args: JanusProSFTConfig) -> dict[str, Any]:
    """Return the keyword argument of `make_plan` that sets how many packs (rows of a batch) the data plan lists.

    With `args.max_steps`, the result is `{"num_packs": n}` with the number of packs that these steps use. Otherwise it
    is `{"epochs": n}` with the number of passes over the data, and `args.num_train_epochs` is set to 1, because one
    pass over the plan contains them all.
    """
    if args.max_steps > 0:
        packs_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return {"num_packs": args.max_steps * packs_per_step}
    epochs, args.num_train_epochs = args.num_train_epochs, 1
    return {"epochs": epochs}


def _find_or_prepare(
    source: dict[str, Any],
    args: JanusProSFTConfig,
    model: JanusProForConditionalGeneration,
    processor: JanusProProcessor,
) -> Path:
    """Return the folder of the prepared rows (token ids, labels and images) of a data source.

    If the source's `path` is not such a folder, all processes first prepare the source together, into
    `<output_dir>/_prepared/<name>`.

    Args:
        source: Entry of `data.sources` in the recipe: `name`, `path`, `ratio`, and options of `janus_hf.data.prepare`.
        args: The run's configuration; its output folder, device and `max_length` are used.
        model: The model, whose image codec encodes the images to generate; the codec is moved to the run's device.
        processor: The model's processor.

    Raises:
        ValueError: If a source that is already prepared has options, or a source cannot be prepared.
    """
    options = {key: value for key, value in source.items() if key not in ("name", "path", "ratio")}
    if (Path(source["path"]) / META).is_file():
        if options:
            raise ValueError(
                f"The source {source['name']!r} is prepared already, so {', '.join(options)} would change nothing: "
                "leave it out, or name the raw data."
            )
        return Path(source["path"])
    # The underscore keeps the data private, because `push_to_hub` leaves out names that begin with one.
    folder = Path(args.output_dir) / "_prepared" / source["name"]
    model.model.vqmodel.to(args.device)
    prepare(source["path"], folder, model, processor, **{"max_length": args.max_length, **options})
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        finish_prepared(folder)
    state.wait_for_everyone()
    return folder


__all__ = ["TrainingData", "load_mixture"]
