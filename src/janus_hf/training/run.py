"""Functions that run the training of a recipe (YAML file): load its model and data, train or resume, save, upload."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from ..modeling import JanusProForConditionalGeneration
from ..processing import JanusProProcessor
from .distributed.processes import together
from .mixture import TrainingData, load_mixture
from .recipes import Recipe, load_recipe
from .recording import newest_checkpoint
from .reports.forecast import HoursCallback
from .reports.memory_report import memory_report
from .resuming.run_record import is_same_run
from .resuming.stopping import RunInterruptedError
from .stages import find_stage
from .trainers.sft import JanusProSFTTrainer
from .trainers.sft_config import JanusProSFTConfig
from .trainers.uploading import prepare_repository
from .validation.benchmarks import Benchmark, MakeBenchmarks
from .validation.settings import is_turned_off, set_metric


# Type of functions that make the training data of a run; their arguments are those of `load_mixture`.
LoadData = Callable[
    [dict[str, Any], JanusProSFTConfig, JanusProForConditionalGeneration, JanusProProcessor], TrainingData
]


def build_trainer(
    recipe: Recipe,
    *,
    load_data: LoadData = load_mixture,
    make_benchmarks: MakeBenchmarks | None = None,
    model: JanusProForConditionalGeneration | None = None,
    processor: JanusProProcessor | None = None,
) -> JanusProSFTTrainer:
    """Load the model, the processor and the data of a recipe, and return a trainer for them.

    Args:
        recipe: The recipe, as `load_recipe` returns it.
        load_data: Function that makes the training data; the default reads the data sources of the recipe.
        make_benchmarks: Function that makes the benchmarks of the recipe's section `evaluate`.
        model: Model to use instead of the one that the recipe names.
        processor: Processor to use instead of the one that the recipe names.

    Raises:
        ValueError: If a value of the recipe is out of range, or model, data and configuration do not fit together.
        FileNotFoundError: If the data of a benchmark are missing.
    """
    return _build(recipe, load_data=load_data, make_benchmarks=make_benchmarks, model=model, processor=processor)[0]


def _build(
    recipe: Recipe,
    *,
    load_data: LoadData,
    make_benchmarks: MakeBenchmarks | None,
    model: JanusProForConditionalGeneration | None = None,
    processor: JanusProProcessor | None = None,
) -> tuple[JanusProSFTTrainer, list[str]]:
    """Return the trainer of a recipe, and lines for the user about its data; see `build_trainer`."""
    # The configuration is made first, so that its errors come before anything large is loaded.
    args = JanusProSFTConfig(**{"ratios": recipe.ratios, **recipe.training})
    section, evaluate = recipe.data, recipe.evaluate
    if is_turned_off(recipe.training):
        section, evaluate = {**section, "evaluation": None}, {}
    benchmarks = _make_benchmarks(evaluate, make_benchmarks)
    if args.push_to_hub:  # the trainer does so too, but after the model is loaded and the data are prepared
        together(lambda: prepare_repository(args) if args.process_index == 0 else None)
    if model is None:
        model = _load_model(recipe.model, args)
        # The branch of a repository may move between two downloads, but the processor must be that of the weights.
        processor = processor or load_processor(recipe.model, commit=model.loaded_commit)
    processor = processor or load_processor(recipe.model)
    if model.config.image_token_id is None:
        model.config.image_token_id = processor.image_token_id
    data = load_data(section, args, model, processor)
    evaluates = bool(data.evaluation or benchmarks)
    if section.get("evaluation") and not data.evaluation:
        raise ValueError("`load_data` must return the data of data.evaluation, got none: add them to its result.")
    set_metric(recipe.training, args, data.evaluation, benchmarks)
    facts = {"recipe": recipe.name, **data.facts}
    if recipe.model.get("revision"):
        facts["model_revision"] = recipe.model["revision"]
    trainer = JanusProSFTTrainer(
        model,
        args,
        train_dataset=data.dataset,
        # Without sources, an empty dict lets benchmarks alone be evaluated.
        eval_dataset={name: source.rows for name, source in data.evaluation.items()} if evaluates else None,
        data_collator=data.collator,
        processing_class=processor,
        facts=facts,
    )
    trainer.evaluation_ratios = {name: source.ratio for name, source in data.evaluation.items()}
    trainer.add_benchmarks(benchmarks, every=evaluate.get("every"))
    return trainer, data.told


# Any: a section of a recipe.
def _make_benchmarks(evaluate: Mapping[str, Any], make: MakeBenchmarks | None) -> Mapping[str, Benchmark]:
    """Return the benchmarks of a recipe's section `evaluate`, by name.

    Raises:
        ValueError: If the section names benchmarks, and no function to make them was given.
    """
    if not evaluate:
        return {}
    if make is None:
        raise ValueError(
            "`make_benchmarks` must be given for a recipe with the section evaluate, got None: use the command "
            "janus-hf train, or pass janus_hf_cli.benchmarks_in_training.make_benchmarks."
        )
    return make(evaluate["benchmarks"])


def train(
    recipe: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    overrides: Sequence[str] = (),
    *,
    load_data: LoadData = load_mixture,
    make_benchmarks: MakeBenchmarks | None = None,
    report: Callable[[str], object] = print,
) -> Path:
    """Run the training of a recipe to its last step, from the start or from a checkpoint, and save the model.

    With `training.resume_from_checkpoint: auto` in the recipe, training resumes from the newest complete checkpoint in
    the output folder, if there is one. With `training.push_to_hub: true`, the result is uploaded. If all steps of this
    run were done before, nothing is trained, and `report` is called with a message that says so.

    Args:
        recipe: The recipe: its YAML file, a mapping with the sections `model`, `data` and `training`, or a `Recipe`.
        overrides: Changes of single values of the recipe, each written `section.key=value`; see `load_recipe`.
        load_data: Function that makes the training data; the default reads the data sources of the recipe.
        make_benchmarks: Function that makes the benchmarks of the recipe's section `evaluate`, such as
            `janus_hf_cli.benchmarks_in_training.make_benchmarks`, which the command `janus-hf train` uses.
        report: Function that is called with messages for the user, on the main process only; the default prints them.

    Returns:
        The output folder, which contains the model (or the adapter), its processor and its model card.

    Raises:
        ValueError: If the recipe is malformed, a value is out of range, or the checkpoint belongs to another run.
        FileNotFoundError: If there is no such recipe file, or the data of a benchmark are missing.
        FloatingPointError: If a loss or the norm of the gradients is not finite.
        RunInterruptedError: If SIGTERM came. A checkpoint was saved, from which `resume_from_checkpoint: auto` goes
            on; no model was saved in the output folder, and nothing was uploaded.
    """
    trainer, told = together(
        lambda: _build(load_recipe(recipe, overrides), load_data=load_data, make_benchmarks=make_benchmarks),
        loads_weights=True,
    )
    args = trainer.args
    main = trainer.is_world_process_zero()
    if main:
        report(trainer.trainable_table)
        if memory := memory_report(args, trainer.model, trainer.accelerator):
            told.append(memory)
        for line in told:
            report(line)
    trainer.add_callback(HoursCallback(report))
    # The main process reads the output folder for all processes, because a shared file system may not show the same
    # files to all nodes yet.
    newest, done = broadcast_object_list(
        [newest_checkpoint(args.output_dir), is_same_run(args.output_dir, trainer.facts, trainer.settings)]
        if main
        else [None, None]
    )
    checkpoint = args.resume_from_checkpoint
    if checkpoint in ("auto", True):
        checkpoint = newest
    # A run that is not to be resumed, and that has saved its last state in the output folder, is not repeated either.
    previous: str | None = checkpoint or (args.output_dir if done else None)
    finished = previous is not None and trainer.is_finished(previous)
    if main and newest and not checkpoint and not finished:
        report(
            f"{newest} is of an earlier run, which is not resumed and whose files are replaced: set "
            "training.resume_from_checkpoint=auto to resume it, or another training.output_dir to keep it"
        )
    if previous is None or not finished:
        try:
            trainer.train(resume_from_checkpoint=checkpoint or False)
        except RunInterruptedError:
            trainer.end_processes()
            raise
    elif done and args.sharded:
        # The whole model is saved already. It is not loaded, because that would gather and shard it again.
        trainer.check_checkpoint(previous)
    else:
        trainer.restore(previous)
    saves = not (finished and done and args.sharded)
    if main and finished:
        report(
            f"{previous} is the last of this run and holds the trained model: nothing is left to do. To train "
            "further, raise training.max_steps (or training.stop_step), or start from this model with another "
            "training.output_dir"
        )
    if saves:
        # Without `_internal_call` a run with push_to_hub would upload here, together with the card of the last
        # checkpoint. `save_pretrained` cannot replace this call, because it does not gather a sharded model's weights.
        trainer.save_model(_internal_call=True)
        trainer.save_state()
        trainer.create_model_card()
    trainer.end_processes()
    if main and saves:
        if args.push_to_hub:  # after the process group has ended, so that no rank waits for the upload
            trainer.finish_upload(trainer.start_upload("End of training"))
        best = "".join(f", {name}: {value}" for name, value in trainer.best_fact.items())
        report(f"{args.output_dir}: {args.stage}, {trainer.state.global_step} steps{best}")
    return Path(args.output_dir)


def load_processor(section: Mapping[str, Any], *, commit: str | None = None) -> JanusProProcessor:
    """Load the processor that a recipe names, or else the processor of the recipe's model at the model's revision.

    Args:
        section: The recipe's section `model`, with the key `path` and optionally `revision` and `processor`.
        commit: Commit of the model's repository to use instead of the revision, which may have moved since.
    """
    if section.get("processor"):
        return JanusProProcessor.from_pretrained(section["processor"])
    at = commit or section.get("revision")
    revision = {"revision": at} if at else {}
    return JanusProProcessor.from_pretrained(section["path"], **revision)


def _load_model(section: Mapping[str, Any], args: JanusProSFTConfig) -> JanusProForConditionalGeneration:
    """Load the model of a recipe in the recipe's dtype, and quantise it if the recipe requests that.

    Args:
        section: The recipe's section `model`; see `Recipe`.
        args: The run's configuration. The dtype "auto" means bfloat16 in LoRA stages with `bf16` and without
            DeepSpeed, else float32.

    Raises:
        ValueError: If the quantisation is neither "4bit" nor "8bit", or the stage has no LoRA adapters, because
            quantised weights cannot be trained themselves.
    """
    kwargs = {key: section[key] for key in ("revision", "attn_implementation") if section.get(key) is not None}
    lora = find_stage(args.stage).lora
    if quantization := section.get("quantization"):
        from transformers import BitsAndBytesConfig

        if quantization not in ("4bit", "8bit"):
            raise ValueError(f"model.quantization must be 4bit or 8bit, got {quantization!r}: choose one of them.")
        if not lora:
            raise ValueError(
                f"model.quantization must be left out in the stage {args.stage!r}, got {quantization!r}: quantised "
                "weights cannot be trained."
            )
        four_bits = quantization == "4bit"
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=four_bits,
            load_in_8bit=not four_bits,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    dtype = section.get("dtype") or "auto"
    if dtype == "auto":
        # DeepSpeed holds all weights in float32; see `keep_float32`.
        dtype = "bfloat16" if args.bf16 and lora and args.deepspeed_plugin is None else "float32"
    return JanusProForConditionalGeneration.from_pretrained(section["path"], dtype=dtype, **kwargs)


__all__ = ["LoadData", "TrainingData", "build_trainer", "load_processor", "train"]
