"""Data of a recipe: open or prepare the sources, plan the packs, make the collator.

A pack is one row of a training batch: several documents one after another, up to `max_length` ids. A plan lists the
documents of every pack in advance, so that a run can be repeated and resumed exactly.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..data import JanusProCollator, PackedDataset, finish_prepared, load_prepared, make_plan, prepare, stream_packs
from ..data.planning.plan import AHEAD, digest_lengths
from ..data.store import META
from ..modeling import JanusProForConditionalGeneration
from ..processing import JanusProProcessor
from .batches import Collator, TrainingRows
from .stages import trained_parts
from .trainers.sft_config import JanusProSFTConfig


@dataclass
class TrainingData:
    """The data of a training run.

    Args:
        dataset: Packs, either map-style (with `__len__` and `__getitem__`) or a `datasets.IterableDataset`.
        collator: Function from a list of packs to a batch; see `JanusProSFTTrainer`.
        facts: `plan_hash` and further entries for the model card.
    """

    dataset: TrainingRows
    collator: Collator
    facts: dict[str, Any] = field(default_factory=dict)


def load_mixture(
    section: dict[str, Any],
    args: JanusProSFTConfig,
    model: JanusProForConditionalGeneration,
    processor: JanusProProcessor,
) -> TrainingData:
    """Return the packs and the collator of a recipe: open or prepare its sources and plan the packs.

    A pack is one row of a training batch, which holds several documents; the plan lists the documents of all packs.

    A source whose `path` is a folder written by `janus-hf prepare` is opened. Any other source is first prepared into
    `<output_dir>/_prepared/<name>`; its further keys are arguments of `janus_hf.data.prepare` (`adapter`, `task`,
    `split`, ...). That is suitable for small data; prepare large data once with the command.

    Without `max_steps`, the plan covers `num_train_epochs` passes over the data, and `args.num_train_epochs` is set to
    1, because the plan then counts as one epoch.

    Args:
        section: The recipe's section `data`: `sources`, and optionally `seed` (default: the training's seed) and
            `streaming`.
        args: The configuration, of which `max_length`, `caption_drop`, `max_steps` and the batch sizes matter here.
        model: The model, whose codec encodes target images and whose context limits `max_length`.
        processor: The model's processor.

    Returns:
        Packs, collator and facts.

    Raises:
        ValueError: If `max_length` exceeds the context, a source cannot be read or prepared, a source was prepared for
            another model, or a prepared source has options that would have no effect.
    """
    limit = model.config.text_config.max_position_embeddings
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
        # Ranks of a sharded run gather the tower's weights together, so each of their batches must use the tower.
        always_picture="aligner" in parts or "vision_tower" in parts or args.lora_vision_tower or args.sharded,
        # transformers has no public attribute for this: `attn_implementation` is an argument of from_pretrained only.
        varlen="flash" in (model.config._attn_implementation or ""),
        return_task_ids=True,
    )
    prepared = {name: load_prepared(folder, model=model, processor=processor) for name, folder in folders.items()}
    lengths = {name: rows.lengths for name, rows in prepared.items()}
    if section.get("streaming"):
        order: dict[str, Any] = {"max_length": args.max_length, "ratios": ratios, "seed": seed}
        stream = stream_packs({name: str(folder) for name, folder in folders.items()}, **order)
        # A stream has no plan to hash; its order follows from these settings and the sources' lengths.
        identity = json.dumps([order, {name: digest_lengths(rows) for name, rows in lengths.items()}])
        plan_hash = f"streamed-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        return TrainingData(stream, collator, {"plan_hash": plan_hash, "data_seed": seed})

    extent: dict[str, Any] = {**_plan_extent(args), "folder": Path(args.output_dir) / "_plan"}
    plan = make_plan(lengths, max_length=args.max_length, ratios=ratios, seed=seed, **extent)
    dataset = PackedDataset(prepared, plan)
    # Computed before the loader's workers are forked, so that they share the packs that were planned for it.
    counts, efficiency = plan.counts(), round(dataset.efficiency(), 4)
    facts = {"plan_hash": plan.hash, "data_seed": seed, "packs": len(plan), "packing_efficiency": efficiency}
    if len(plan) <= AHEAD:  # of longer plans `counts` covers the first block of packs only
        facts["documents"] = counts
    return TrainingData(dataset, collator, facts)


def _plan_extent(args: JanusProSFTConfig) -> dict[str, Any]:
    """Return the arguments of `make_plan` that set how many packs the plan lists.

    That is the number of packs that `max_steps` steps use, or else as many as `num_train_epochs` passes over the data
    fill. In the second case set `args.num_train_epochs` to 1, because the plan contains all passes.
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
    """Return the folder of a source's prepared rows (token ids, labels and images, ready to be packed).

    If the source's path is not such a folder, all processes prepare the source together.

    Raises:
        ValueError: If a prepared source has options, or a source cannot be prepared.
    """
    options = {key: value for key, value in source.items() if key not in ("name", "path", "ratio")}
    if (Path(source["path"]) / META).is_file():
        if options:
            raise ValueError(
                f"The source {source['name']!r} is prepared already, so {', '.join(options)} would change nothing: "
                "leave it out, or name the raw data."
            )
        return Path(source["path"])
    # The underscore keeps the data private: `push_to_hub` leaves out names that begin with one.
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
