"""`JanusProTrainerMixin`, the base class of the trainers of Janus-Pro, which does everything but compute the loss.

Trainers inherit from this class first and from TRL's `SFTTrainer` second, and define `compute_loss`. TRL 1.16 replaces
`model.forward` on the instance. The new `forward` supports only one output head, reads the head's weight instead of
calling the head (which gives wrong gradients under FSDP2), and computes the loss itself. But Janus-Pro has two heads,
one for text and one for images, and one id space for text tokens and image tokens.

So three things of TRL are not used: its `forward`, its requirement that the training data be a `datasets.Dataset`
(this package's `PackedDataset` is not one), and its `compute_loss`. The first two are undone in this file; each
trainer replaces the third. TRL still sets up PEFT and QLoRA with its corrections for ZeRO-3, offloads activations, and
provides the class of the arguments and the tags. `tests/training/test_canary.py` fails if a new version of TRL changes
what this file relies on.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from torch import nn
from transformers import Trainer

from ...files import open_to_others
from ...hub.cards import model_card, read_card
from ...modeling import JanusProForConditionalGeneration
from ...processing import JanusProProcessor
from ..batches import Collator, TrainingRows, with_dummy_picture
from ..callbacks import SampleCallback
from ..metrics import LossRecord
from ..recording import FACTS_FILE, check_same_run, read_state, training_card, write_card
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
from .guards import (
    check_arguments,
    check_card_arguments,
    check_processes,
    keep_trained_in_float32,
    restore_forward,
    root_unit_text_head,
    sum_gradients_in_float32,
)
from .repeatable import RepeatableTrainer
from .sft_config import JanusProSFTConfig


if TYPE_CHECKING:
    from peft import LoraConfig


class JanusProTrainerMixin(RepeatableTrainer):
    """Base class of the trainers of Janus-Pro; it does everything but compute the loss.

    It freezes parameters and adds LoRA adapters as the training stage requires, saves and resumes checkpoints, shards
    the model, logs losses, and makes samples. Subclasses inherit from this class first and from TRL's `SFTTrainer`
    second. They define `compute_loss`, which calls `prepare_batch` before the model and `check_loss` after it, and
    adds its losses to `loss_record`.

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
            hash of the order of the data. A checkpoint with another plan hash is not resumed. `model_revision` is the
            revision of the model's Hub repository for the configs of adapters (by default `loaded_revision`).
        kwargs: Further arguments of `transformers.Trainer`: `eval_dataset`, `callbacks`, `optimizers` and
            `optimizer_cls_and_kwargs`. The others have no effect here and are refused by name (`SFT_REFUSED`).

    Raises:
        TypeError: If the model, the configuration, the collator or the processor is of the wrong kind, or another
            argument is unknown or refused.
        ValueError: If the number of processes is not what the launcher started, FSDP was requested and is not active,
            or context or sequence parallelism is on, which would mix the documents of a row.
    """

    args: JanusProSFTConfig
    # TRL writes these tags on the model. No public name replaces them: `add_model_tags` can only add tags.
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
        check_arguments(model, args, data_collator, processing_class, kwargs, train_dataset, facts)
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        facts = facts or {}
        adapters = _set_up_stage(
            model, args, revision=facts.get("model_revision") or getattr(model, "loaded_revision", None)
        )
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
        restore_forward(model, forward)
        if not args.sharded:  # FSDP and DeepSpeed keep float32 copies of the weights themselves
            keep_trained_in_float32(self.model, autocast=bool(args.bf16))

        self.facts: dict[str, Any] = {"stage": args.stage, "ratios": args.ratios, **facts}
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
        """The Janus-Pro model that is trained, without PEFT's wrapper."""
        return base_model(self.model)

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
        """Log `logs` together with the mean losses of text, of images and of each task since the last log.

        Every process must call this method, because the losses are summed over all processes.

        Args:
            logs: Names and values to log. If a name begins with `eval_`, the mean losses of the evaluation are added
                under names with this prefix, otherwise those of the training.
            start_time: See `transformers.Trainer.log`.
        """
        prefix = "eval_" if any(key.startswith("eval_") for key in logs) else ""
        values = self.loss_record.reduce(self.accelerator, training=not prefix)
        # TRL's `log` is skipped, because it averages metrics that only TRL's own loss collects.
        Trainer.log(self, {**logs, **{f"{prefix}{key}": value for key, value in values.items()}}, start_time)

    # Sharding

    # The public callback `on_train_begin` runs too late: the model is sharded and the checkpoint loaded already.
    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """Wrap and shard the model as transformers does, but let FSDP2 shard the text head with the root module.

        The arguments and the result are those of the method of `transformers.Trainer`.

        Raises:
            ValueError: If the run of the checkpoint has another training stage or another order of the data. This is
                checked here, because FSDP and DeepSpeed load checkpoints without calling `_load_from_checkpoint`,
                which checks it too.
        """
        if resume_from_checkpoint is not None:
            check_same_run(resume_from_checkpoint, self.facts)
        with root_unit_text_head(self.base_model):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    # Saving and resuming

    # The public `save_model` gathers a sharded model's weights and calls this method with them.
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the model (or only its LoRA adapter), the processor, the arguments and the facts about the run.

        A full model is saved in the file layout `args.save_layout`: that of deepseek-ai/Janus ("original") or of
        transformers.

        Args:
            output_dir: Folder to save to; by default the run's output folder.
            state_dict: Weights to save, such as the gathered ones of a sharded model; by default the model's own.
        """
        folder = Path(output_dir or self.args.output_dir)
        writes = self.args.should_save
        if isinstance(self.model, PeftModel):
            found = read_card(folder)
            super()._save(str(folder), state_dict)
            for saved in (folder, *(folder / name for name in self.model.peft_config)):
                open_to_others(saved)
            if writes:  # PEFT's own card names a local base model by its folder, and the Hub refuses such a card
                write_card(folder, self.generated_card(), found)
        elif writes or self.is_distributed_loading_by_transformers:
            layout = self.args.save_layout
            self.model.save_pretrained(folder, state_dict=state_dict, is_main_process=writes, layout=layout)
            if writes:
                self.processing_class.save_pretrained(folder)
                torch.save(self.args, folder / "training_args.bin")  # transformers compares it when resuming
        if writes:
            (folder / FACTS_FILE).write_text(json.dumps(self.facts, indent=2, default=str) + "\n", encoding="utf-8")

    def restore(self, checkpoint: str) -> None:
        """Load the weights and the trainer's state (number of steps, log history) of a checkpoint, without training.

        The model must not be sharded.

        Args:
            checkpoint: Folder of a checkpoint of this run.

        Raises:
            ValueError: If the checkpoint's run has another training stage or another order of the data.
        """
        self._load_from_checkpoint(checkpoint)
        self.state = read_state(checkpoint)

    # `Trainer.train` calls this method to resume. No public argument or callback of it replaces the loading.
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the weights of a checkpoint in the file layout of deepseek-ai/Janus ("original") or of transformers.

        The method of transformers looks for the parameter names of the model in memory. It finds none of them in the
        original layout, and continues without an error.

        Args:
            resume_from_checkpoint: Folder of the checkpoint.
            model: Model into which the weights are loaded; by default the trainer's model.

        Raises:
            ValueError: If the checkpoint's run has another training stage or another order of the data.
        """
        check_same_run(resume_from_checkpoint, self.facts)
        if isinstance(self.model, PeftModel) or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = JanusProForConditionalGeneration.from_pretrained(resume_from_checkpoint, dtype=torch.float32)
        (model or self.model).load_state_dict(saved.state_dict())

    # `Trainer.train` calls this method for `load_best_model_at_end`. transformers' version of it fails on the original
    # layout in the same way as the method above.
    def _load_best_model(self) -> None:
        """Load the weights of the run's best checkpoint into the model, whatever file layout they are saved in."""
        if isinstance(self.model, PeftModel) or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write a model card to `README.md` in the output folder. Only the main process writes.

        The card states the training stage, facts about the data, the hyper-parameters and the numbers of parameters. A
        card that was edited by hand is kept. Arguments of `transformers.Trainer.create_model_card` are refused,
        but for `model_name`, which TRL gives.
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
            self.facts,
            steps=self.state.global_step,
            table=self.trainable_table,
            tags=self._tag_names,
            adapter_base=adapter.base_model_name_or_path if adapter else None,
        )


def _set_up_stage(
    model: JanusProForConditionalGeneration, args: JanusProSFTConfig, *, revision: str | None
) -> "LoraConfig | None":
    """Prepare the model for the training stage `args.stage`.

    In a stage without adapters, set which parameters of the model require gradients, and return None. In a LoRA stage,
    leave the model unchanged and return the PEFT configuration to wrap it with, which states its Hub `revision`.
    """
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
        revision=revision,
    )


__all__ = ["JanusProTrainerMixin"]
