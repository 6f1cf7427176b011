"""The `data` section of a recipe -> packs and their collator, through `janus_hf.data`."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..data import JanusProCollator, PackedDataset, finish_prepared, load_prepared, make_plan, prepare, stream_packs
from ..data.planning.plan import AHEAD, digest_lengths
from ..data.store import META
from ..modeling import JanusProForConditionalGeneration
from ..processing import JanusProProcessor
from .stages import trained_parts
from .trainers.sft_config import JanusProSFTConfig


@dataclass
class TrainingData:
    """What the trainer needs of the data.

    Args:
        dataset: Packs, map-style (with `__len__`) or a `datasets.IterableDataset`.
        collator: Rows of it -> a batch, see `JanusProSFTTrainer`.
        facts: `plan_hash` and whatever else belongs in the card.
    """

    dataset: Any
    collator: Callable[[list[Any]], dict[str, torch.Tensor]]
    facts: dict[str, Any] = field(default_factory=dict)


def load_mixture(
    section: dict[str, Any],
    args: JanusProSFTConfig,
    model: JanusProForConditionalGeneration,
    processor: JanusProProcessor,
) -> TrainingData:
    """Open (or first prepare) the sources, plan the packs, make the collator.

    A source whose `path` is a folder written by `janus-hf prepare` is opened. Any other is prepared into
    `<output_dir>/_prepared/<name>` first, its further keys being arguments of `janus_hf.data.prepare` (`adapter`,
    `task`, `split`, ...): fine for small data; large data are better prepared beforehand, once.

    Without `max_steps`, the plan holds `num_train_epochs` passes, and `args.num_train_epochs` becomes 1.

    Args:
        section: `sources`, and optionally `seed` (default: the training's) and `streaming`.
        args: `max_length`, `caption_drop`, `max_steps`, batch sizes.
        model, processor: What ids, codes and pixels are made for.

    Raises:
        ValueError: If `max_length` exceeds the context, a source cannot be read or prepared, was prepared for another
            model, or has options that would do nothing.
    """
    limit = model.config.text_config.max_position_embeddings
    assert args.max_length is not None  # checked by the configuration
    if args.max_length > limit:
        raise ValueError(f"max_length is {args.max_length}, but the model's context holds {limit} tokens.")
    seed = {"seed": args.seed, **section}["seed"]
    sources = section["sources"]
    folders = {source["name"]: _prepared(source, args, model, processor) for source in sources}
    ratios = {source["name"]: float(source["ratio"]) for source in sources}
    whole = trained_parts(args.stage, args.train_generation_embeddings)
    collator = JanusProCollator(
        processor,
        caption_drop=args.caption_drop,
        seed=seed,
        max_length=limit,  # packs fill `args.max_length`; a dummy picture may stand behind one
        always_picture="aligner" in whole or "vision_tower" in whole or args.lora_vision_tower or args.sharded,
        varlen="flash" in (model.config._attn_implementation or ""),
        return_task_ids=True,
    )
    prepared = {name: load_prepared(folder, model=model, processor=processor) for name, folder in folders.items()}
    lengths = {name: rows.lengths for name, rows in prepared.items()}
    if section.get("streaming"):
        order: dict[str, Any] = {"max_length": args.max_length, "ratios": ratios, "seed": seed}
        stream = stream_packs({name: str(folder) for name, folder in folders.items()}, **order)
        what = json.dumps([order, {name: digest_lengths(rows) for name, rows in lengths.items()}])
        plan_hash = f"streamed-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
        return TrainingData(stream, collator, {"plan_hash": plan_hash, "data_seed": seed})

    extent: dict[str, Any] = {**_extent(args), "folder": Path(args.output_dir) / "_plan"}
    plan = make_plan(lengths, max_length=args.max_length, ratios=ratios, seed=seed, **extent)
    dataset = PackedDataset(prepared, plan)
    # Asked before loader workers are forked, so that they share what it takes to answer.
    counts, efficiency = plan.counts(), round(dataset.efficiency(), 4)
    facts = {"plan_hash": plan.hash, "data_seed": seed, "packs": len(plan), "packing_efficiency": efficiency}
    if len(plan) <= AHEAD:  # otherwise only a part has been planned so far
        facts["documents"] = counts
    return TrainingData(dataset, collator, facts)


def _extent(args: JanusProSFTConfig) -> dict[str, Any]:
    """How long a plan is: as many packs as the steps use, or so many passes."""
    if args.max_steps > 0:
        at_once = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return {"num_packs": args.max_steps * at_once}
    epochs, args.num_train_epochs = args.num_train_epochs, 1
    return {"epochs": epochs}


def _prepared(
    source: dict[str, Any],
    args: JanusProSFTConfig,
    model: JanusProForConditionalGeneration,
    processor: JanusProProcessor,
) -> Path:
    """The source's prepared folder; all processes work on it if there is none yet."""
    options = {key: value for key, value in source.items() if key not in ("name", "path", "ratio")}
    if (Path(source["path"]) / META).is_file():
        if options:
            raise ValueError(
                f"The source {source['name']!r} is prepared already, so {', '.join(options)} would change nothing: "
                "leave it out, or name the raw data."
            )
        return Path(source["path"])
    folder = Path(args.output_dir) / "_prepared" / source["name"]  # push_to_hub leaves out what begins with "_"
    model.model.vqmodel.to(args.device)
    prepare(source["path"], folder, model, processor, **{"max_length": args.max_length, **options})
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        finish_prepared(folder)
    state.wait_for_everyone()
    return folder


__all__ = ["TrainingData", "load_mixture"]
