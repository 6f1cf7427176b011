"""Functions that run the training of a recipe (YAML file): load its model and data, train or resume, save, upload."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..modeling import JanusProForConditionalGeneration
from ..processing import JanusProProcessor
from .mixture import TrainingData, load_mixture
from .recipes import Recipe, load_recipe
from .recording import check_same_run, newest_checkpoint, read_state
from .stages import find_stage
from .trainers.sft import JanusProSFTTrainer
from .trainers.sft_config import JanusProSFTConfig


logger = logging.getLogger(__name__)

# Type of functions that make the training data of a run; their arguments are those of `load_mixture`.
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
    """Load the model, the processor and the data of a recipe, and return a trainer for them.

    Args:
        recipe: The recipe, as `load_recipe` returns it.
        load_data: Function that makes the training data; the default reads the data sources of the recipe.
        model: Model to use instead of the one that the recipe names.
        processor: Processor to use instead of the one that the recipe names.

    Raises:
        ValueError: If a value of the recipe is out of range, or model, data and configuration do not fit together.
    """
    # The configuration is made first, so that its errors come before anything large is loaded.
    args = JanusProSFTConfig(**{"ratios": recipe.ratios, **recipe.training})
    processor = processor or load_processor(recipe.model)
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
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    load_data: LoadData = load_mixture,
    report: Callable[[str], Any] = logger.info,
) -> Path:
    """Run the training of a recipe to its last step, from the start or from a checkpoint, and save the model.

    With `training.resume_from_checkpoint: auto` in the recipe, training resumes from the newest complete checkpoint in
    the output folder, if there is one. With `training.push_to_hub: true`, the result is uploaded.

    Args:
        path: The recipe's YAML file.
        overrides: Changes of single values of the recipe, each written `section.key=value`; see `load_recipe`.
        load_data: Function that makes the training data; the default reads the data sources of the recipe.
        report: Function that is called with messages for the user, on the main process only.

    Returns:
        The output folder, which contains the model (or the adapter), its processor and its model card.

    Raises:
        ValueError: If the recipe is malformed, a value is out of range, or the checkpoint belongs to another run.
        FileNotFoundError: If there is no such recipe file.
        FloatingPointError: If a loss or the norm of the gradients is not finite.
    """
    trainer = build_trainer(load_recipe(path, overrides), load_data=load_data)
    args = trainer.args
    main = trainer.is_world_process_zero()
    if main:
        report(trainer.trainable_table)
    checkpoint = args.resume_from_checkpoint
    if checkpoint in ("auto", True):
        # The main process chooses the checkpoint for all processes, because a shared file system may not show the same
        # files to all nodes yet.
        (checkpoint,) = broadcast_object_list([newest_checkpoint(args.output_dir)])
    finished = _is_finished(args, checkpoint)
    if not finished:
        trainer.train(resume_from_checkpoint=checkpoint)
    elif args.sharded:
        # Only `Trainer.train` can load a sharded model, so the model of a finished run is not loaded, and nothing is
        # saved below.
        check_same_run(checkpoint, trainer.facts)
    else:
        trainer.restore(checkpoint)
    saves = not (finished and args.sharded)
    if saves:
        # Without `_internal_call` a run with push_to_hub would upload here, together with the card of the last
        # checkpoint. `save_pretrained` cannot replace this call, because it does not gather a sharded model's weights.
        trainer.save_model(_internal_call=True)
        trainer.save_state()
        trainer.create_model_card()
    # If one rank leaves the process group early, the others can hang when they leave.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    if main and saves:
        if args.push_to_hub:  # after the process group has ended, so that no rank waits for the upload
            _upload(trainer)
        report(f"{args.output_dir}: {args.stage}, {trainer.state.global_step} steps")
    elif main:
        report(f"{checkpoint} is the last of this run and holds the trained model: nothing is left to do")
    return Path(args.output_dir)


def _is_finished(args: JanusProSFTConfig, checkpoint: str | None) -> bool:
    """Return whether a checkpoint was saved after all `max_steps` steps of its run.

    Such a run must not be resumed, because transformers would train one more step.

    Args:
        args: The run's configuration; without `max_steps` the result is False.
        checkpoint: Folder of the checkpoint; for None the result is False.
    """
    return bool(checkpoint) and 0 < args.max_steps <= read_state(str(checkpoint)).global_step


def _upload(trainer: JanusProSFTTrainer) -> None:
    """Upload the output folder to the Hub, except checkpoints and what has a name that begins with an underscore.

    `Trainer.push_to_hub` does the same, but first saves the model once more, for which all processes are needed. This
    function needs only the main process. The repository exists, because transformers created it when the trainer was
    made.
    """
    pending = getattr(trainer, "push_in_progress", None)
    if pending is not None and not pending.is_done():  # uploads of checkpoints, which run in the background
        pending.wait_until_done()
    HfApi(token=trainer.args.hub_token).upload_folder(
        repo_id=trainer.hub_model_id,
        folder_path=trainer.args.output_dir,
        commit_message="End of training",
        ignore_patterns=["_*", f"{PREFIX_CHECKPOINT_DIR}-*"],
        revision=trainer.args.hub_revision,
    )


def load_processor(section: Mapping[str, Any]) -> JanusProProcessor:
    """Load the processor that a recipe names, or else the processor of the recipe's model at the model's revision.

    Args:
        section: The recipe's section `model`, with the key `path` and optionally `revision` and `processor`.
    """
    if section.get("processor"):
        return JanusProProcessor.from_pretrained(section["processor"])
    revision = {"revision": section["revision"]} if section.get("revision") else {}
    return JanusProProcessor.from_pretrained(section["path"], **revision)


def _load_model(section: Mapping[str, Any], args: JanusProSFTConfig) -> JanusProForConditionalGeneration:
    """Load the model of a recipe in the recipe's dtype, and quantise it if the recipe requests that.

    Args:
        section: The recipe's section `model`; see `Recipe`.
        args: The run's configuration. The dtype "auto" means bfloat16 in LoRA stages with `bf16`, else float32.

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
        dtype = "bfloat16" if args.bf16 and lora else "float32"
    return JanusProForConditionalGeneration.from_pretrained(section["path"], dtype=dtype, **kwargs)


__all__ = ["LoadData", "TrainingData", "build_trainer", "load_processor", "train"]
