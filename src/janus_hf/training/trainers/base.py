"""`JanusProTrainer`, the base class of the trainers of Janus-Pro, which does everything but compute the loss.

Its parent is transformers' `Trainer`, not TRL's `SFTTrainer`. Janus-Pro has two heads, one for text and one for
images, and one id space for text tokens and image tokens. TRL 1.16 replaces `model.forward` on the instance by one
for a single head, which reads the head's weight instead of calling the head (that gives wrong gradients under FSDP2),
and computes the loss itself. Both parents need the same four private methods of `Trainer`: `_save`,
`_clip_grad_norm`, `_prepare_for_training` and `_issue_warnings_after_load`. TRL's parent needs six things more: its
`forward` is removed again, it is given a dataset that it never reads, its `compute_loss` and its `log` are skipped by
name, and two private members are replaced (`_tag_names`, and `_save_checkpoint`, which writes a card). It would save
the fifty lines of `adapters.py`. TRL's configuration stays the parent of ours, because recipes use or refuse its
options by name.
`tests/training/test_canary.py` fails if a new version of transformers changes what this file relies on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from torch import nn
from transformers.trainer import TRAINING_ARGS_NAME

from ...files import open_to_others
from ...hub.cards import model_card, read_card
from ...modeling import JanusProForConditionalGeneration
from ...processing import JanusProProcessor
from ..batches import Collator, TrainingRows, with_dummy_picture
from ..callbacks import SampleCallback
from ..distributed.zero import all_in_float32
from ..metrics import LossRecord
from ..recording import training_card, write_card
from ..reports.throughput import Throughput
from ..resuming.run_record import write_record
from ..stages import frozen_parts, hold_still, trainable_table, trains_understanding
from ..validation.evaluating import EvaluatingTrainer
from .adapters import offload_activations, set_up_stage
from .guards import (
    check_arguments,
    check_card_arguments,
    check_data,
    check_processes,
    keep_trained_in_float32,
    plan_facts,
)
from .sft_config import JanusProSFTConfig


class JanusProTrainer(EvaluatingTrainer):
    """Base class of the trainers of Janus-Pro; it does everything but compute the loss.

    It freezes parameters and adds LoRA adapters as the training stage requires, saves and resumes checkpoints, shards
    the model, logs losses, and makes samples. Subclasses define `compute_loss`, which calls `prepare_batch` before the
    model and `check_loss` after it, and adds its losses to `loss_record` and its batches to `throughput`.

    Args:
        model: The model to train. `args.stage` decides which of its parameters are set to require gradients.
        args: The configuration of the run.
        train_dataset: A `datasets.Dataset` or `IterableDataset`, or any map-style dataset. Its rows go to the
            collator.
        data_collator: Function from a list of rows to a batch, a dict of tensors: `input_ids (B, T)` int64, where a
            text token has its id and an image token has its id plus the size of the text vocabulary; `labels (B, T)`
            with the same ids (-100 where nothing is trained, which includes the first position of every document);
            `position_ids (B, T)` that restart at 0 in every document (tokenized example; a row can contain several);
            no `attention_mask`; optionally `pixel_values (M, 3, S, S)` and `task_ids (B, T)` (indices into
            `janus_hf.data.TASKS`, -1 where nothing is trained). With `task_ids` the losses are logged per task.
        processing_class: The model's processor, saved with the model.
        facts: Further entries for the file of facts in the checkpoints and for the model card, such as `plan_hash`, a
            hash of the order of the data, which a `PackedDataset` states itself. A checkpoint with another plan hash
            is not resumed. `model_revision` is the
            revision of the model's Hub repository for the configs of adapters (by default `loaded_revision`).
        kwargs: Further arguments of `transformers.Trainer`: `eval_dataset`, `callbacks`, `optimizers` and
            `optimizer_cls_and_kwargs`. The others have no effect here and are refused by name (`SFT_REFUSED`).

    Raises:
        TypeError: If the model, the configuration, the collator or the processor is of the wrong kind, or another
            argument is unknown or refused.
        ValueError: If the number of processes is not what the launcher started, FSDP was requested and is not active,
            context or sequence parallelism is on, which would mix the documents of a row, or the stage trains a part
            of the model that no row of the data changes.
    """

    args: JanusProSFTConfig
    tags: tuple[str, ...] = ("janus_hf", "sft")
    """Tags of the model on the Hub."""

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
        check_arguments(model, args, data_collator, processing_class, kwargs, train_dataset, facts)
        check_data(args, train_dataset)
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        facts = facts or {}
        revision = facts.get("model_revision") or getattr(model, "loaded_revision", None)
        if isinstance(train_dataset, torch.utils.data.IterableDataset):
            # Otherwise accelerate concatenates the batches of all processes, whose lengths differ, on the first one.
            args.accelerator_config.dispatch_batches = False
        if args.deepspeed_plugin is not None:
            all_in_float32(model)
        super().__init__(
            model=set_up_stage(model, args, revision=revision),
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.model.add_model_tags(list(self.tags))
        self._offloading = offload_activations(self.model, args)
        if not args.sharded:  # FSDP and DeepSpeed keep float32 copies of the weights themselves
            keep_trained_in_float32(self.model, autocast=bool(args.bf16))

        self.facts: dict[str, Any] = {
            "stage": args.stage,
            "ratios": args.ratios,
            **plan_facts(train_dataset),
            **facts,
        }
        self.loss_record = LossRecord()
        self._frozen = frozen_parts(model)
        # Sharded ranks gather the weights of a part together, trained or not, so no rank may skip the vision tower.
        self._needs_images = trains_understanding(model) or args.sharded
        check_processes(self.accelerator, args, is_fsdp_enabled=self.is_fsdp_enabled)
        self.keep_sums_in_float32()
        if not self.model_accepts_loss_kwargs:
            raise ValueError(
                "Sequence parallelism must be off: it counts labels itself and cannot split packed documents."
            )
        self.trainable_table = trainable_table(self.model)
        self._add_samples()
        # After the samples, whose time it leaves out.
        self.throughput = Throughput(self.model, args.device, peak_tflops=args.peak_tflops)
        self.add_callback(self.throughput)

    def forget_losses(self) -> None:
        """Reset the losses that the trainer has added up since the last log."""
        self.loss_record = LossRecord()

    def _add_samples(self) -> None:
        """Add a `SampleCallback`, which makes images and answers during training, if `args.sample_steps` is set.

        Also give every `SampleCallback` of the trainer the list of all callbacks, among them those that write logs.
        """
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
        """Convert a batch of the collator to inputs of the model, and in training switch dropout off in frozen parts.

        Args:
            inputs: A batch of the collator; not modified.

        Returns:
            The model's inputs, and the batch's `task_ids` `(B, T)`, or None if it has none. If every batch must pass
            through the vision tower, a batch without images gets a grey image that has no labels.
        """
        # This is repeated at every batch, because transformers sets the whole model to training mode before each.
        for part in self._frozen if self.model.training else ():
            hold_still(part)
        batch = dict(inputs)
        if self._needs_images and batch.get("pixel_values") is None:
            batch = with_dummy_picture(batch, self.base_model.config)
        return batch, batch.pop("task_ids", None)

    def check_loss(self, loss: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> None:
        """Raise if the loss of a micro-batch is infinite or NaN, so that the weights are not updated with it.

        Args:
            loss: The scalar loss of the micro-batch.
            num_items_in_batch: Number of trained labels in all micro-batches of the step, over all processes; None if
                unknown.

        Raises:
            ValueError: If the loss is not finite because the step has no trained label.
            FloatingPointError: If the loss is not finite for another reason.
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

    # Any: the arguments are those of transformers' method.
    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the loss of a micro-batch and its gradients, and return the loss, which has no gradient."""
        with self._offloading:
            loss: torch.Tensor = super().training_step(*args, **kwargs)
        return loss

    # The public callback `on_pre_optimizer_step` runs at the right time, but does not get the norm of the gradients.
    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip the gradients as transformers does, and return their norm before clipping.

        Raises:
            FloatingPointError: If the norm is infinite or NaN. The weights have not been updated then.
        """
        norm = super()._clip_grad_norm(model)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise FloatingPointError(
                f"The gradients of step {self.state.global_step + 1} have norm {float(norm)}; the weights are those "
                "after the step before. Lower the learning rate or lengthen the warm-up."
            )
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log `logs` together with mean losses since the last log, and in training with the speed of the run.

        Every process must call this method, because the losses are summed over all processes.

        Args:
            logs: Names and values to log. Those of an evaluation contain its losses already; to others the losses of
                the training and the values of `Throughput.lap` are added.
            start_time: Not used. With it, transformers would log a second, mean number of tokens per second.
        """
        values: dict[str, float] = {}
        if not self.is_evaluating:
            self.store_flos()
            losses = self.loss_record.reduce(self.accelerator, training=True)
            values = losses | self.throughput.lap(self.args.world_size)
        super().log({**logs, **values})

    # Any: a batch, as in transformers.
    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0 for every batch, because `store_flos` counts exactly, without waiting for the device."""
        return 0

    def store_flos(self) -> None:
        """Add the floating-point operations since the last call, of all processes, to `state.total_flos`."""
        self.state.total_flos += self.throughput.collect(self.accelerator)

    # Saving and resuming

    # The public `save_model` gathers a sharded model's weights and calls this method with them.
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the model (or only its LoRA adapter), the processor, a card, the arguments and the facts about the run.

        A full model is saved in the file layout `args.save_layout`: that of deepseek-ai/Janus ("original") or of
        transformers.

        Args:
            output_dir: Folder to save to; by default the run's output folder.
            state_dict: Weights to save, such as the gathered ones of a sharded model; by default the model's own.
        """
        folder = Path(output_dir or self.args.output_dir)
        writes = self.args.should_save
        found = read_card(folder)
        if isinstance(self.model, PeftModel):
            super()._save(str(folder), state_dict)
            for saved in (folder, *(folder / name for name in self.model.peft_config)):
                open_to_others(saved)
        elif writes or self.is_distributed_loading_by_transformers:
            layout = self.args.save_layout
            self.model.save_pretrained(folder, state_dict=state_dict, is_main_process=writes, layout=layout)
            if writes:
                self.processing_class.save_pretrained(folder)
        if writes:
            # PEFT's own card names a local base model by its folder, and the Hub refuses such a card.
            write_card(folder, self.generated_card(), found)
            self.write_facts(folder)

    def write_facts(self, folder: Path) -> None:
        """Write the facts about the run, its settings and its configuration into a folder, which is created."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.args, folder / TRAINING_ARGS_NAME)
        write_record(folder, self.facts, self.settings)

    # `Trainer` calls this method after it has loaded a checkpoint, and no public method.
    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Raise a ValueError if a checkpoint lacks weights of the model, or holds others; transformers only warns.

        Args:
            load_result: Result of `torch.nn.Module.load_state_dict`.
        """
        if wrong := [*load_result.missing_keys, *load_result.unexpected_keys]:
            raise ValueError(
                f"A checkpoint must hold the weights of the model, got one with {len(load_result.missing_keys)} "
                f"missing and {len(load_result.unexpected_keys)} unexpected ones, such as {wrong[0]!r}: resume from "
                "another checkpoint of this run."
            )

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write a model card to `README.md` in the output folder. Only the main process writes.

        The card states the training stage, facts about the data, the hyper-parameters and the numbers of parameters. A
        card that was edited by hand is kept. Arguments of `transformers.Trainer.create_model_card` are refused,
        but for `model_name`.
        """
        check_card_arguments(args, kwargs)
        if self.is_world_process_zero():
            write_card(self.args.output_dir, self.generated_card(), read_card(self.args.output_dir))

    def generated_card(self) -> ModelCard:
        """Return the model card of the run in its present state."""
        adapter = self.model.peft_config["default"] if isinstance(self.model, PeftModel) else None
        return training_card(
            model_card(self.base_model, self.hub_model_id or "<this repository>"),
            self.args,
            {**self.facts, **self.best_fact},
            steps=self.state.global_step,
            table=self.trainable_table,
            tags=self.tags,
            adapter_base=adapter.base_model_name_or_path if adapter else None,
        )


__all__ = ["JanusProTrainer"]
