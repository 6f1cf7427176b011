"""`JanusProSFTTrainer`: TRL's `SFTTrainer`, trained on the model's own loss.

TRL 1.16 replaces `model.forward` on the instance by one that knows a single head, reads its weight instead of calling
it (under FSDP2 that gives wrong gradients), and computes the loss itself. Janus-Pro has two heads and an id space
that spans both. So three things of TRL are set aside, each in one place below: the replaced forward, `compute_loss`,
and the demand that the training data be a `datasets.Dataset` (a pack plan is not). What stays is the rest: PEFT and
QLoRA set-up with its ZeRO-3 corrections, activation offloading, the argument class, tags.
`tests/training/test_canary.py` fails when a new TRL changes this contract.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import nn
from trl import SFTTrainer

from ...checkpoints.cards import model_card
from ...modeling import JanusProForConditionalGeneration
from ..batches import with_dummy_picture
from ..callbacks import SampleCallback
from ..metrics import LossRecord
from ..recording import FACTS_FILE, check_same_run, training_card
from ..stages import (
    apply_stage,
    find_stage,
    frozen_parts,
    hold_still,
    lora_config,
    trainable_table,
    trains_understanding,
)
from .sft_config import JanusProSFTConfig


class JanusProSFTTrainer(SFTTrainer):
    """Trains one stage of Janus-Pro, drawing and understanding in the same batches.

    Args:
        model: `JanusProForConditionalGeneration`. Which of its parameters train is set here, from `args.stage`.
        args: The configuration.
        train_dataset: A `datasets.Dataset` or `IterableDataset`, or any map-style dataset; its rows go to the
            collator.
        data_collator: Rows -> a batch: `input_ids (B, T)` joint ids, `labels (B, T)` in the same space (-100
            untrained; so is the first of every document), `position_ids (B, T)` restarting per document, no
            `attention_mask`; optionally `pixel_values (M, 3, S, S)` and `task_ids (B, T)` (numbers in
            `janus_hf.data.TASKS`, -1 where nothing is trained), by which the losses are logged.
        processing_class: The `JanusProProcessor`, saved with the model.
        facts: What else the checkpoint and the card should state, such as `plan_hash`, `sources`. A checkpoint whose
            plan hash differs is not resumed.
        kwargs: As in `transformers.Trainer` (`eval_dataset`, `callbacks`, `optimizers`, ...).

    Raises:
        ValueError, TypeError: If the launcher started other processes than it said, FSDP was asked for and is not
            there, or an argument is of the wrong kind.
    """

    _tag_names = ["janus_hf", "trl", "sft"]
    args: JanusProSFTConfig
    model_accepts_loss_kwargs: bool

    def __init__(
        self,
        model: JanusProForConditionalGeneration,
        args: JanusProSFTConfig,
        *,
        train_dataset: Any,
        data_collator: Any,
        processing_class: Any,
        facts: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(model, JanusProForConditionalGeneration) or not isinstance(args, JanusProSFTConfig):
            raise TypeError(
                "JanusProSFTTrainer takes a loaded JanusProForConditionalGeneration and a JanusProSFTConfig, got "
                f"{type(model).__name__} and {type(args).__name__}."
            )
        if data_collator is None:
            raise TypeError("data_collator must be given: it builds the joint ids this trainer expects.")
        if "peft_config" in kwargs:
            raise TypeError("peft_config follows from args.stage and the lora_ fields; do not pass one.")
        adapters = _stage_on(model, args)
        forward = model.__dict__.get("forward")
        is_hf_dataset = isinstance(train_dataset, (Dataset, IterableDataset))
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset if is_hf_dataset else Dataset.from_dict({"input_ids": [[0]]}),
            processing_class=processing_class,
            peft_config=adapters,
            **kwargs,
        )
        self.train_dataset = train_dataset
        _restore_forward(model, forward)
        if not args.sharded:  # FSDP and DeepSpeed keep master weights of their own
            _keep_trained_in_float32(self.model, autocast=bool(args.bf16))

        self.facts: dict[str, Any] = {"stage": args.stage, "ratios": args.ratios, **(facts or {})}
        self._record = LossRecord()
        self._frozen = frozen_parts(model)
        # Sharded parts gather their weights together, trained or not: no rank may leave the tower out.
        self._needs_pictures = trains_understanding(model) or args.sharded
        self._check_distributed()
        if self.is_fsdp_enabled:
            _sum_gradients_in_float32(self.accelerator.state.fsdp_plugin)
        if not self.model_accepts_loss_kwargs:
            raise ValueError("Sequence parallelism counts labels by itself and cannot split documents: turn it off.")
        self.trainable_table = trainable_table(self.model)
        self._add_samples()

    def _add_samples(self) -> None:
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

    def _check_distributed(self) -> None:
        found, launched = self.accelerator.num_processes, int(os.environ.get("WORLD_SIZE", "1"))
        if found != launched:
            raise ValueError(f"The launcher started {launched} processes but this one works with {found}.")
        if self.args.wants_fsdp and not self.is_fsdp_enabled:
            raise ValueError(
                "FSDP was asked for but is not active: without a GPU accelerate leaves it out silently. Train without "
                "it, or on GPUs."
            )
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.fsdp_version != 2:
            raise ValueError("FSDP 1 is not supported: set fsdp_version: 2, as accelerate_configs/fsdp2.yaml does.")
        parallel = self.accelerator.parallelism_config
        if parallel is not None and (parallel.cp_enabled or parallel.sp_enabled):
            raise ValueError("Context and sequence parallelism drop the mask between packed documents: turn them off.")

    # Loss

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The model's own loss: `Trainer.compute_loss`, past TRL's.

        Raises:
            FloatingPointError: If it is not finite.
            ValueError: If no label of an accumulated batch is trained.
        """
        training = self.model.training
        for part in self._frozen if training else ():
            hold_still(part)
        if self._needs_pictures and inputs.get("pixel_values") is None:
            inputs = with_dummy_picture(inputs, self._base_model.config)
        inputs = dict(inputs)
        task_ids = inputs.pop("task_ids", None)
        with self._record.watch(self._base_model, inputs["labels"], task_ids, training=training):
            loss, outputs = super(SFTTrainer, self).compute_loss(
                model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        if not torch.isfinite(loss):
            self._explain_loss(loss, num_items_in_batch)
        self._record.add(outputs, inputs["labels"], training=training)
        return (loss, outputs) if return_outputs else loss

    def _explain_loss(self, loss: torch.Tensor, num_items: torch.Tensor | int | None) -> None:
        if num_items is not None and int(num_items) == 0:
            raise ValueError(
                f"Step {self.state.global_step + 1} has no trained label at all: every label is -100. Check the "
                "labels of the data."
            )
        raise FloatingPointError(
            f"The loss of step {self.state.global_step + 1} is {loss.item()}; the weights are as the last step left "
            "them. Lower the learning rate, lengthen the warm-up, or look for broken rows in the data."
        )

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """As in transformers; gradients that are not finite stop before the optimiser moves."""
        norm = super()._clip_grad_norm(model)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise FloatingPointError(
                f"The gradients of step {self.state.global_step + 1} have norm {float(norm)}; the weights are as the "
                "last step left them. Lower the learning rate or lengthen the warm-up."
            )
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the losses per head and per task since the last log. Called on every process."""
        prefix = "eval_" if any(key.startswith("eval_") for key in logs) else ""
        values = self._record.reduce(self.accelerator, training=not prefix)
        super(SFTTrainer, self).log({**logs, **{f"{prefix}{key}": value for key, value in values.items()}}, start_time)

    # Sharding

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """As in transformers; refuses other runs' checkpoints whatever loads them, and shards without gathering per
        head call.
        """
        if resume_from_checkpoint is not None:
            check_same_run(resume_from_checkpoint, self.facts)
        with _head_in_the_root_unit(self._base_model):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    # Saving and resuming

    @property
    def _base_model(self) -> JanusProForConditionalGeneration:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """As in transformers, in the layout asked for, with what the run is."""
        folder = Path(output_dir or self.args.output_dir)
        writes = self.args.should_save
        if isinstance(self.model, PeftModel):
            super()._save(str(folder), state_dict)
        elif writes or self.is_distributed_loading_by_transformers:
            layout = self.args.save_layout
            self.model.save_pretrained(folder, state_dict=state_dict, is_main_process=writes, layout=layout)
            if writes:
                self.processing_class.save_pretrained(folder)
                torch.save(self.args, folder / "training_args.bin")  # resuming compares it
        if writes:
            (folder / FACTS_FILE).write_text(json.dumps(self.facts, indent=2, default=str) + "\n", encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """transformers would look for the names in memory, which the original layout does not have, and not mind."""
        check_same_run(resume_from_checkpoint, self.facts)
        if isinstance(self.model, PeftModel) or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = JanusProForConditionalGeneration.from_pretrained(resume_from_checkpoint, dtype=torch.float32)
        (model or self.model).load_state_dict(saved.state_dict())

    def _load_best_model(self) -> None:
        if isinstance(self.model, PeftModel) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """A card that says what was trained, on what and how."""
        if self.is_world_process_zero():
            repo_id = self.hub_model_id or "<this repository>"
            card = training_card(model_card(self._base_model, repo_id), self)
            card.save(Path(self.args.output_dir) / "README.md")


def _stage_on(model: JanusProForConditionalGeneration, args: JanusProSFTConfig) -> Any:
    """Freeze and unfreeze the model's own parameters; the adapters' configuration if the stage has any."""
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


def _restore_forward(model: nn.Module, forward: Any) -> None:
    """Undo TRL's patch; a forward that somebody else had put on the instance (accelerate's hooks) comes back."""
    model.__dict__.pop("forward", None)
    if forward is not None:
        model.__dict__["forward"] = forward


@contextmanager
def _head_in_the_root_unit(model: nn.Module) -> Iterator[None]:
    """accelerate makes FSDP2 units of what the model names as its input and output embeddings.

    A unit talks to the other ranks at every call (it gathers weights, it sums gradients), and the text head is called
    once per chunk of labels: ranks with other numbers of chunks would wait for each other forever. Unnamed, it falls
    to the root, which talks once per step, as the image head does.
    """
    model.__dict__["get_output_embeddings"] = lambda: None
    try:
        yield
    finally:
        del model.__dict__["get_output_embeddings"]


def _sum_gradients_in_float32(plugin: Any) -> None:
    """accelerate's FSDP2 would sum gradients over ranks and micro-batches in bfloat16, and return the loss in it."""
    policy = plugin.mixed_precision_policy
    if policy is not None:
        plugin.mixed_precision_policy = dataclasses.replace(policy, reduce_dtype=torch.float32, output_dtype=None)


def _keep_trained_in_float32(model: nn.Module, *, autocast: bool) -> None:
    """bfloat16 holds 8 bits: an update smaller than 1/256 of a weight would be rounded away.

    Raises:
        ValueError: If the forward pass would then mix dtypes.
    """
    narrow = [p for p in model.parameters() if p.requires_grad and p.is_floating_point() and p.dtype != torch.float32]
    if narrow and not autocast:
        raise ValueError(
            f"Weights of {narrow[0].dtype} are to be trained: load the model with dtype float32, or set bf16=True, "
            "which keeps what is trained in float32 and computes in bfloat16."
        )
    for parameter in narrow:
        parameter.data = parameter.data.float()


__all__ = ["JanusProSFTTrainer"]
