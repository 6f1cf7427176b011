"""A recipe -> a trained model."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..modeling import JanusProForConditionalGeneration
from ..processing import JanusProProcessor
from .mixture import TrainingData, load_mixture
from .recipes import Recipe, load_recipe
from .recording import check_same_run
from .trainers.sft import JanusProSFTTrainer
from .trainers.sft_config import JanusProSFTConfig


logger = logging.getLogger(__name__)

LoadData = Callable[
    [dict[str, Any], JanusProSFTConfig, JanusProForConditionalGeneration, JanusProProcessor], TrainingData
]


def build_trainer(
    recipe: Recipe,
    *,
    load_data: LoadData = load_mixture,
    model: JanusProForConditionalGeneration | None = None,
    processor: JanusProProcessor | None = None,
) -> JanusProSFTTrainer:
    """Everything up to the first step.

    Args:
        recipe: See `load_recipe`.
        load_data: Where rows come from, see `load_mixture`.
        model, processor: To use instead of loading the recipe's.
    """
    args = JanusProSFTConfig(**{"ratios": recipe.ratios, **recipe.training})  # before anything heavy is loaded
    processor = processor or _load_processor(recipe.model)
    model = model or _load_model(recipe.model, args)
    if model.config.image_token_id is None:
        model.config.image_token_id = processor.image_token_id
    data = load_data(recipe.data, args, model, processor)
    return JanusProSFTTrainer(
        model,
        args,
        train_dataset=data.dataset,
        data_collator=data.collator,
        processing_class=processor,
        facts={"recipe": recipe.name, **data.facts},
    )


def train(
    path: Any,
    overrides: Sequence[str] = (),
    *,
    load_data: LoadData = load_mixture,
    report: Callable[[str], Any] = logger.info,
) -> Path:
    """Train a recipe from beginning to end, or go on where it stopped.

    With `training.resume_from_checkpoint: auto` the newest checkpoint in the output folder is continued, if there is
    one.

    Args:
        path, overrides: See `load_recipe`.
        load_data: See `build_trainer`.
        report: Called with lines for people, on the main process.

    Returns:
        The output folder: the model (or adapter), its processor and its card.
    """
    trainer = build_trainer(load_recipe(path, overrides), load_data=load_data)
    args = trainer.args
    main = trainer.is_world_process_zero()
    if main:
        report(trainer.trainable_table)
    checkpoint = args.resume_from_checkpoint
    if checkpoint in ("auto", True):  # the main process chooses: file systems do not show everyone the same at once
        (checkpoint,) = broadcast_object_list([_newest_checkpoint(Path(args.output_dir))])
    finished = _is_finished(args, checkpoint)
    if not finished:
        trainer.train(resume_from_checkpoint=checkpoint)
    elif args.sharded:  # such a model is loaded by training only
        check_same_run(checkpoint, trainer.facts)
    else:
        trainer._load_from_checkpoint(checkpoint)
        trainer.state = _state_of(checkpoint)
    exported = not (finished and args.sharded)
    if exported:
        trainer.save_model(_internal_call=True)  # else it would push, with the last card
        trainer.save_state()
        trainer.create_model_card()
    trainer.accelerator.wait_for_everyone()  # a group that one rank has left does not always let the others go
    trainer.accelerator.end_training()
    if main and exported:
        if args.push_to_hub:  # now that nobody waits for it
            _push(trainer)
        report(f"{args.output_dir}: {args.stage}, {trainer.state.global_step} steps")
    elif main:
        report(f"{checkpoint} is the last of this run and holds the trained model: nothing is left to do")
    return Path(args.output_dir)


def _newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end: the trainer's state is the last of its files."""
    complete = [path.parent for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")]
    return str(max(complete, key=lambda path: int(path.name.split("-")[-1]))) if complete else None


def _is_finished(args: JanusProSFTConfig, checkpoint: Any) -> bool:
    """Whether the checkpoint is the run's last: transformers would train one step more."""
    return bool(checkpoint) and 0 < args.max_steps <= _state_of(checkpoint).global_step


def _state_of(checkpoint: Any) -> TrainerState:
    return TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))


def _push(trainer: JanusProSFTTrainer) -> None:
    """Upload what `Trainer.push_to_hub` uploads; that one saves first once more, which takes all processes."""
    trainer._finish_current_push()
    HfApi(token=trainer.args.hub_token).upload_folder(
        repo_id=trainer.hub_model_id,
        folder_path=trainer.args.output_dir,
        commit_message="End of training",
        ignore_patterns=["_*", f"{PREFIX_CHECKPOINT_DIR}-*"],
        revision=trainer.args.hub_revision,
    )


def _load_processor(section: Mapping[str, Any]) -> JanusProProcessor:
    """That of the model, at its revision, unless the recipe names another."""
    if section.get("processor"):
        return JanusProProcessor.from_pretrained(section["processor"])
    revision = {"revision": section["revision"]} if section.get("revision") else {}
    return JanusProProcessor.from_pretrained(section["path"], **revision)


def _load_model(section: Mapping[str, Any], args: JanusProSFTConfig) -> JanusProForConditionalGeneration:
    kwargs = {key: section[key] for key in ("revision", "attn_implementation") if section.get(key) is not None}
    if quantization := section.get("quantization"):
        from transformers import BitsAndBytesConfig

        if quantization not in ("4bit", "8bit"):
            raise ValueError(f"model.quantization must be 4bit or 8bit, got {quantization!r}.")
        if not args.stage.startswith("lora_"):
            raise ValueError(f"Quantised weights cannot be trained: {args.stage} needs an unquantised model.")
        four = quantization == "4bit"
        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=four,
            load_in_8bit=not four,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    dtype = section.get("dtype") or "auto"
    if dtype == "auto":
        dtype = "bfloat16" if args.bf16 and args.stage.startswith("lora_") else "float32"
    return JanusProForConditionalGeneration.from_pretrained(section["path"], dtype=dtype, **kwargs)


__all__ = ["TrainingData", "build_trainer", "train"]
