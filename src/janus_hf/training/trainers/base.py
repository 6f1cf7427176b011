"""`JanusProTrainerMixin`: everything that trainers of Janus-Pro share except the loss.

Trainers place this class before TRL's `SFTTrainer` and define `compute_loss`. TRL 1.16 replaces `model.forward` on the
instance by one that knows a single head, reads its weight instead of calling it (under FSDP2 that gives wrong
gradients), and computes the loss itself. Janus-Pro has two heads and one id space for text tokens and image tokens.
So three parts of TRL are set aside: the replaced `forward` and the demand that the training data be a
`datasets.Dataset` (a pack plan is not one) in this file, `compute_loss` in each trainer. TRL still sets up PEFT and
QLoRA with its ZeRO-3 corrections, offloads activations, and provides the arguments class and the tags.
`tests/training/test_canary.py` fails when a new TRL changes this contract.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from peft import PeftModel
from torch import nn
from transformers import Trainer

from ...checkpoints.cards import model_card
from ...modeling import JanusProForConditionalGeneration
from ...processing import JanusProProcessor
from ..batches import Collator, TrainingRows, with_dummy_picture
from ..callbacks import SampleCallback
from ..metrics import LossRecord
from ..recording import FACTS_FILE, check_same_run, read_state, training_card
from ..stages import (
    apply_stage,
    base_model,
    find_stage,
    frozen_parts,
    hold_still,
    lora_config,
    trainable_table,
    trains_understanding,
)
from .guards import check_processes, keep_trained_in_float32, root_unit_text_head, sum_gradients_in_float32
from .sft_config import JanusProSFTConfig


if TYPE_CHECKING:
    from peft import LoraConfig


class JanusProTrainerMixin(Trainer):
    """Train one stage of Janus-Pro: freezing, adapters, checkpoints, resuming, sharding, loss record and samples.

    Subclasses put TRL's `SFTTrainer` behind this class and define `compute_loss`, which calls `prepare_batch` before
    the model and `check_loss` after it, and adds its losses to `loss_record`.

    Args:
        model: The model to train. Which of its parameters require gradients is set here, from `args.stage`.
        args: The configuration.
        train_dataset: A `datasets.Dataset` or `IterableDataset`, or any map-style dataset. Its rows go to the
            collator.
        data_collator: Function from a list of rows to a batch: `input_ids (B, T)` int64 in the model's joint id space
            (text ids, then the text vocabulary's size plus image tokens), `labels (B, T)` in the same space (-100
            where nothing is trained, which includes the first position of every document), `position_ids (B, T)`
            that restart at 0 in every document, no `attention_mask`; optionally `pixel_values (M, 3, S, S)` and
            `task_ids (B, T)` (indices into `janus_hf.data.TASKS`, -1 where nothing is trained). With `task_ids` the
            losses are logged per task.
        processing_class: The model's processor, saved with the model.
        facts: Further entries for the checkpoint's facts file and the card, such as `plan_hash`. A checkpoint with
            another plan hash is not resumed.
        kwargs: Further arguments of `transformers.Trainer` (`eval_dataset`, `callbacks`, `optimizers`, ...).

    Raises:
        TypeError: If the model, the configuration or the collator is of the wrong kind, or `peft_config` is given.
        ValueError: If the number of processes is not what the launcher started, FSDP was requested and is not active,
            or a parallelism is on that packed documents do not allow.
    """

    args: JanusProSFTConfig
    # TRL writes these tags on the model. It has no public name for them: `add_model_tags` adds and cannot replace.
    _tag_names: list[str]

    def __init__(
        self,
        model: JanusProForConditionalGeneration,
        args: JanusProSFTConfig,
        *,
        train_dataset: TrainingRows,
        data_collator: Collator,
        processing_class: JanusProProcessor,
        facts: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(model, JanusProForConditionalGeneration) or not isinstance(args, JanusProSFTConfig):
            raise TypeError(
                "`model` and `args` must be a loaded JanusProForConditionalGeneration and a JanusProSFTConfig, got "
                f"{type(model).__name__} and {type(args).__name__}: load the model with from_pretrained first."
            )
        if data_collator is None:
            raise TypeError(
                "`data_collator` must be a function from rows to a batch, got None: pass janus_hf.data's "
                "JanusProCollator, which builds the joint ids that this trainer expects."
            )
        if "peft_config" in kwargs:
            raise TypeError(
                "`peft_config` must not be given: set `stage` and the lora_ fields of `args`, from which it follows."
            )
        adapters = _set_up_stage(model, args)
        forward = model.__dict__.get("forward")
        # TRL refuses other datasets, but never reads this one: the dataset is set again after TRL's constructor.
        is_hf_dataset = isinstance(train_dataset, (datasets.Dataset, datasets.IterableDataset))
        placeholder = None if is_hf_dataset else datasets.Dataset.from_dict({"input_ids": [[0]]})
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset if placeholder is None else placeholder,
            processing_class=processing_class,
            peft_config=adapters,
            **kwargs,
        )
        self.train_dataset = train_dataset
        _restore_forward(model, forward)
        if not args.sharded:  # FSDP and DeepSpeed keep float32 copies of the weights themselves
            keep_trained_in_float32(self.model, autocast=bool(args.bf16))

        self.facts: dict[str, Any] = {"stage": args.stage, "ratios": args.ratios, **(facts or {})}
        self.loss_record = LossRecord()
        self._frozen = frozen_parts(model)
        # Sharded ranks gather the weights of a part together, trained or not, so no rank may skip the vision tower.
        self._needs_images = trains_understanding(model) or args.sharded
        check_processes(self.accelerator, args, is_fsdp_enabled=self.is_fsdp_enabled)
        if self.is_fsdp_enabled:
            sum_gradients_in_float32(self.accelerator.state.fsdp_plugin)
        if not self.model_accepts_loss_kwargs:
            raise ValueError(
                "Sequence parallelism must be off: it counts labels itself and cannot split packed documents."
            )
        self.trainable_table = trainable_table(self.model)
        self._add_samples()

    @property
    def base_model(self) -> JanusProForConditionalGeneration:
        """The Janus-Pro model itself, without PEFT's wrapper."""
        return base_model(self.model)

    def _add_samples(self) -> None:
        """Add a `SampleCallback` if the configuration asks for samples, and give all of them the run's loggers."""
        if self.args.sample_steps:
            samples = SampleCallback(
                self.processing_class,
                prompts=self.args.sample_prompts,
                questions=self.args.sample_questions,
                every=self.args.sample_steps,
                guidance_scale=self.args.sample_guidance_scale,
                max_new_tokens=self.args.sample_max_new_tokens,
                seed=self.args.seed,
            )
            self.add_callback(samples)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, SampleCallback):
                callback.loggers = self.callback_handler.callbacks

    # Loss

    def prepare_batch(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], torch.Tensor | None]:
        """Make a collated batch ready for the model, and switch dropout off in the frozen parts while training.

        Args:
            inputs: A batch of the collator; not modified.

        Returns:
            The model's inputs, with an untrained grey image where every batch must pass through the vision tower, and
            the batch's `task_ids` `(B, T)`, or None if it has none.
        """
        # At every batch, because transformers puts the whole model into training mode before every batch.
        for part in self._frozen if self.model.training else ():
            hold_still(part)
        batch = dict(inputs)
        if self._needs_images and batch.get("pixel_values") is None:
            batch = with_dummy_picture(batch, self.base_model.config)
        return batch, batch.pop("task_ids", None)

    def check_loss(self, loss: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> None:
        """Raise unless the loss is finite, so that no update is made with it.

        Args:
            loss: The scalar loss of a micro-batch.
            num_items_in_batch: Number of trained labels of the accumulated batch over all processes; None if unknown.

        Raises:
            ValueError: If no label of the accumulated batch is trained.
            FloatingPointError: If the loss is infinite or NaN for another reason.
        """
        if torch.isfinite(loss):
            return
        if num_items_in_batch is not None and int(num_items_in_batch) == 0:
            raise ValueError(
                f"Step {self.state.global_step + 1} has no trained label: every label is -100. Check the labels of "
                "the data."
            )
        raise FloatingPointError(
            f"The loss of step {self.state.global_step + 1} is {loss.item()}; the weights are those after the step "
            "before. Lower the learning rate, lengthen the warm-up, or look for broken rows in the data."
        )

    # The public callback `on_pre_optimizer_step` runs at the right time, but transformers does not pass it the norm.
    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip the gradients as transformers does, and return their norm.

        Raises:
            FloatingPointError: If the norm is not finite; the optimizer has not moved then.
        """
        norm = super()._clip_grad_norm(model)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise FloatingPointError(
                f"The gradients of step {self.state.global_step + 1} have norm {float(norm)}; the weights are those "
                "after the step before. Lower the learning rate or lengthen the warm-up."
            )
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log `logs` together with the losses per head and per task since the last log.

        Every process must call this method, because the losses are summed over processes.
        """
        prefix = "eval_" if any(key.startswith("eval_") for key in logs) else ""
        values = self.loss_record.reduce(self.accelerator, training=not prefix)
        # Past TRL's `log`, which averages metrics that only TRL's own loss collects.
        Trainer.log(self, {**logs, **{f"{prefix}{key}": value for key, value in values.items()}}, start_time)

    # Sharding

    # The public callback `on_train_begin` runs too late: the model is sharded, and the checkpoint loaded, by then.
    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """Wrap and shard the model as transformers does, with the text head in FSDP2's root unit.

        Raises:
            ValueError: If the checkpoint belongs to another run. FSDP and DeepSpeed load checkpoints without
                `_load_from_checkpoint`, so that its check would not see them.
        """
        if resume_from_checkpoint is not None:
            check_same_run(resume_from_checkpoint, self.facts)
        with root_unit_text_head(self.base_model):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    # Saving and resuming

    # The public `save_model` gathers a sharded model's weights and calls this method with them.
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the model in `args.save_layout` (or the adapter), the processor, the arguments and the run's facts."""
        folder = Path(output_dir or self.args.output_dir)
        writes = self.args.should_save
        if isinstance(self.model, PeftModel):
            super()._save(str(folder), state_dict)
        elif writes or self.is_distributed_loading_by_transformers:
            layout = self.args.save_layout
            self.model.save_pretrained(folder, state_dict=state_dict, is_main_process=writes, layout=layout)
            if writes:
                self.processing_class.save_pretrained(folder)
                torch.save(self.args, folder / "training_args.bin")  # transformers compares it when resuming
        if writes:
            (folder / FACTS_FILE).write_text(json.dumps(self.facts, indent=2, default=str) + "\n", encoding="utf-8")

    def restore(self, checkpoint: str) -> None:
        """Load the weights and the trainer's state of a checkpoint without training. The model must not be sharded.

        Args:
            checkpoint: Folder of a checkpoint of this run.

        Raises:
            ValueError: If the checkpoint belongs to another run.
        """
        self._load_from_checkpoint(checkpoint)
        self.state = read_state(checkpoint)

    # `Trainer.train` calls this method to resume. It has no public argument or callback that replaces the loading.
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the weights of a checkpoint in either layout.

        transformers' own method looks for the parameter names of the model in memory. It finds none of them in the
        original layout, and goes on without an error.

        Raises:
            ValueError: If the checkpoint belongs to another run.
        """
        check_same_run(resume_from_checkpoint, self.facts)
        if isinstance(self.model, PeftModel) or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = JanusProForConditionalGeneration.from_pretrained(resume_from_checkpoint, dtype=torch.float32)
        (model or self.model).load_state_dict(saved.state_dict())

    # `Trainer.train` calls this method for `load_best_model_at_end`, with the same fault as the method above.
    def _load_best_model(self) -> None:
        """Load the weights of the best checkpoint in either layout."""
        if isinstance(self.model, PeftModel) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the output folder's README.md: a model card with the stage, the data and the hyper-parameters.

        The arguments are those of `transformers.Trainer.create_model_card` and are ignored.
        """
        if not self.is_world_process_zero():
            return
        adapter = self.model.peft_config["default"] if isinstance(self.model, PeftModel) else None
        card = training_card(
            model_card(self.base_model, self.hub_model_id or "<this repository>"),
            self.args,
            self.facts,
            steps=self.state.global_step,
            table=self.trainable_table,
            tags=self._tag_names,
            adapter_base=adapter.base_model_name_or_path if adapter else None,
        )
        card.save(Path(self.args.output_dir) / "README.md")


def _set_up_stage(model: JanusProForConditionalGeneration, args: JanusProSFTConfig) -> "LoraConfig | None":
    """Set which parameters of the model require gradients; for a LoRA stage, return its adapters' configuration."""
    if not find_stage(args.stage).lora:
        apply_stage(model, args.stage, train_generation_embeddings=args.train_generation_embeddings)
        return None
    return lora_config(
        model,
        args.stage,
        rank=args.lora_r,
        alpha=args.lora_alpha,
        dropout=args.lora_dropout,
        vision_tower=args.lora_vision_tower,
        targets=args.lora_targets,
        train_generation_embeddings=args.train_generation_embeddings,
    )


def _restore_forward(model: nn.Module, forward: Callable[..., Any] | None) -> None:
    """Undo TRL's replacement of `model.forward`.

    Args:
        model: The model that TRL's constructor changed.
        forward: The `forward` that was set on the instance before, for example by accelerate's hooks; None if there
            was none.
    """
    model.__dict__.pop("forward", None)
    if forward is not None:
        model.__dict__["forward"] = forward


__all__ = ["JanusProTrainerMixin"]
