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

import numpy as np

from ..arguments import checked, of_kind
from ..data import (
    JanusProCollator,
    PackedDataset,
    PreparedDataset,
    ShardShuffle,
    finish_prepared,
    load_prepared,
    make_plan,
    prepare,
    stream_packs,
)
from ..data.fingerprint import gathered
from ..data.planning.plan import AHEAD, digest_lengths
from ..data.planning.shard_order import BUFFER
from ..data.store import META
from ..generation.context import context_length
from ..modeling import JanusProForConditionalGeneration
from ..processing import JanusProProcessor
from .batches import Collator, TrainingRows
from .distributed.processes import together
from .reports.forecast import forecast
from .stages import trained_parts
from .trainers.guards import check_tasks, tasks_of
from .trainers.sft_config import JanusProSFTConfig
from .validation.settings import EvaluationSource


@dataclass
class TrainingData:
    """The dataset and the collator of a training run, with facts about the data.

    Args:
        dataset: The packs (rows of the training batches, each with several tokenized examples), either map-style (with
            `__len__` and `__getitem__`) or a `datasets.IterableDataset`.
        collator: Function from a list of packs to a batch with the keys that `JanusProTrainer` describes.
        facts: Entries for the checkpoints and the model card, such as `plan_hash`, a hash of the order of the data.
        evaluation: Data to evaluate the model on while it is trained, by name of their source.
        told: Lines for the user, before the first step, about how much the run trains on.
    """

    dataset: TrainingRows
    collator: Collator
    facts: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, EvaluationSource] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)


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
    with the command. The sources of `evaluation` are treated in the same way; each of their rows is packed once.

    Without `max_steps`, the plan covers `num_train_epochs` passes over the data: in every epoch, each row of every
    source is visited at least once, and the rows of the source that its ratio makes the last to be finished exactly
    once. Then `args.num_train_epochs` is set to 1, because one pass over the plan contains them all.

    Args:
        section: The recipe's section `data`, with the key `sources` and optionally `evaluation`, `seed` (default:
            `args.seed`), `streaming`, `shuffle` and `shuffle_buffer`.
        args: The run's configuration; its `max_length`, `caption_drop`, `max_steps` and batch sizes are used here.
        model: The model, whose image codec encodes the images to generate and whose context limits `max_length`.
        processor: The model's processor.

    Returns:
        The dataset, the collator and facts about the data, such as the hash of the plan.

    Raises:
        ValueError: If `max_length` exceeds the model's context, no source reaches a part that the stage trains, a
            source cannot be read or prepared, a source was prepared for another model, or a source that is already
            prepared has options that would have no effect.
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
    prepared = {name: _load_checked(folder, args, model, processor) for name, folder in folders.items()}
    check_tasks(args, {name: tasks_of(rows) for name, rows in prepared.items()})
    lengths = {name: rows.lengths for name, rows in prepared.items()}
    evaluation = {
        source["name"]: _open_evaluation(source, args, model, processor) for source in section.get("evaluation") or ()
    }
    if section.get("streaming"):
        if args.max_steps <= 0:
            raise ValueError(
                f"`max_steps` must be set with data.streaming, which has no end, got {args.max_steps}: set it, or "
                "leave data.streaming out to train for num_train_epochs."
            )
        order: dict[str, Any] = {"max_length": args.max_length, "ratios": ratios, "seed": seed}
        stream = stream_packs({name: str(folder) for name, folder in folders.items()}, **order)
        # A stream has no plan to hash; its order follows from these settings and the sources' lengths.
        identity = json.dumps([order, {name: digest_lengths(rows) for name, rows in lengths.items()}])
        plan_hash = f"streamed-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        told = forecast(args, lengths, ratios)
        return TrainingData(stream, collator, {"plan_hash": plan_hash, "data_seed": seed}, evaluation, told)

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
    known = counts if len(plan) <= AHEAD else None  # of longer plans `counts` covers only the first 16,384 packs
    if known is not None:
        facts["documents"] = known
        facts["visits"] = {name: round(count / len(lengths[name]), 2) for name, count in known.items()}
    told = forecast(args, lengths, ratios, packs=len(plan), documents=known)
    return TrainingData(dataset, collator, facts, evaluation, told)


def _load_checked(
    folder: Path, args: JanusProSFTConfig, model: JanusProForConditionalGeneration, processor: JanusProProcessor
) -> PreparedDataset:
    """Return the prepared rows of a folder, whose shards the processes have checked together.

    They are checked before the first step, because a run may meet a certain shard only after weeks.

    Raises:
        ValueError: If a shard is damaged, or the rows were prepared with another model or processor.
    """
    rows = load_prepared(folder, model=model, processor=processor)
    together(lambda: rows.check_shards(args.process_index, args.world_size))
    return rows


def _open_evaluation(
    source: dict[str, Any],
    args: JanusProSFTConfig,
    model: JanusProForConditionalGeneration,
    processor: JanusProProcessor,
) -> EvaluationSource:
    """Return a source of `data.evaluation` with each of its rows packed once, after preparing it where necessary.

    The arguments are those of `_find_or_prepare`.
    """
    folder = _find_or_prepare(source, args, model, processor, into="_prepared_evaluation")
    rows = _load_checked(folder, args, model, processor)
    packs = PackedDataset({source["name"]: rows}, max_length=args.max_length)
    return EvaluationSource(packs, tuple(np.unique(rows.tasks).tolist()), float(source.get("ratio", 1)))


def _plan_extent(args: JanusProSFTConfig) -> dict[str, Any]:
    """Return the keyword argument of `make_plan` that sets how many packs (rows of a batch) the data plan lists.

    With `args.max_steps`, the result is `{"num_packs": n}` with the number of packs that these steps use. Otherwise it
    is `{"epochs": n}` with the number of passes over the data, and `args.num_train_epochs` is set to 1, because one
    pass over the plan contains them all.
    """
    if args.max_steps > 0:
        return {"num_packs": args.max_steps * args.packs_per_step}
    epochs, args.num_train_epochs = args.num_train_epochs, 1
    return {"epochs": epochs}


def _find_or_prepare(
    source: dict[str, Any],
    args: JanusProSFTConfig,
    model: JanusProForConditionalGeneration,
    processor: JanusProProcessor,
    *,
    into: str = "_prepared",
) -> Path:
    """Return the folder of the prepared rows (token ids, labels and images) of a data source.

    If the source's `path` is not such a folder, all processes first prepare the source together, into
    `<output_dir>/<into>/<name>`.

    Args:
        source: Entry of `data.sources` in the recipe: `name`, `path`, `ratio`, and options of `janus_hf.data.prepare`.
        args: The run's configuration; its output folder, device and `max_length` are used.
        model: The model, whose image codec encodes the images to generate; the codec is moved to the run's device.
        processor: The model's processor.
        into: Name of the folder of prepared sources in the output folder.

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
    folder = Path(args.output_dir) / into / source["name"]
    model.model.vqmodel.to(args.device)
    options = {"max_length": args.max_length, **options}
    with gathered(model.model.vqmodel.parameters()):
        together(lambda: prepare(source["path"], folder, model, processor, **options))
    together(lambda: finish_prepared(folder) if args.process_index == 0 else None)
    return folder


__all__ = ["TrainingData", "load_mixture"]
