"""`ShardingTrainer`, the base class of trainers whose weights and sums are sharded by FSDP2 or by DeepSpeed's ZeRO."""

import gc
from pathlib import Path
from typing import Any

from transformers.integrations.deepspeed import propagate_args_to_deepspeed
from transformers.trainer_utils import HubStrategy

from ...modeling import JanusProForConditionalGeneration
from ..stages import base_model
from ..trainers.guards import root_unit_text_head, sum_gradients_in_float32
from ..trainers.repeatable import RepeatableTrainer
from ..trainers.sft_config import JanusProSFTConfig
from .zero import keep_float32


class ShardingTrainer(RepeatableTrainer):
    """A trainer that keeps gradients in float32 however they are summed, and whose checkpoints may be sharded."""

    args: JanusProSFTConfig

    @property
    def base_model(self) -> JanusProForConditionalGeneration:
        """The Janus-Pro model that is trained, without PEFT's wrapper."""
        return base_model(self.model)

    def keep_sums_in_float32(self) -> None:
        """Let FSDP2 and DeepSpeed sum gradients in float32, and DDP hold them once. Call this before `train`."""
        if self.is_fsdp_enabled:
            sum_gradients_in_float32(self.accelerator.state.fsdp_plugin)
        if self.is_deepspeed_enabled:
            # accelerate has set DeepSpeed's options of mixed precision again.
            keep_float32(self.accelerator.state.deepspeed_plugin, bf16=bool(self.args.bf16))
            propagate_args_to_deepspeed(self.accelerator, self.args)
        if self.accelerator.ddp_handler is not None:
            # DDP then reduces the gradients where they are; otherwise it holds all of them twice.
            self.accelerator.ddp_handler.gradient_as_bucket_view = True

    # The public callback `on_train_begin` runs too late: the model is sharded already.
    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        """Wrap and shard the model as transformers does, but let FSDP2 shard the text head with the root module.

        The arguments and the result are those of the method of `transformers.Trainer`.
        """
        with root_unit_text_head(self.base_model):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def load_weights(self, checkpoint: str) -> None:
        """Load the weights of a checkpoint, which is a folder, without training; every process must call this method.

        The trainer's state must be that of the checkpoint already.
        """
        # No public method loads weights without training.
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            self._prepare_for_training(self.state.max_steps, None, checkpoint)
        else:
            self._load_from_checkpoint(checkpoint)

    # Any: the argument `_internal_call` is private in transformers, whose own methods pass it.
    def save_model(self, output_dir: str | None = None, **kwargs: Any) -> None:
        """Save the model, or only its adapter, with its processor; every process must call this method.

        If the weights are sharded, the checkpoints that `train` saves hold the shards only, from which training
        resumes, unless they are pushed to the Hub. Any other folder gets the whole model.

        Args:
            output_dir: Folder to save to; by default the run's output folder.
            kwargs: Further arguments of `transformers.Trainer.save_model`.
        """
        # transformers calls this method with a folder and `_internal_call` for checkpoints only.
        if output_dir is not None and kwargs.get("_internal_call") and self._shards_suffice():
            if self.args.should_save:
                self.write_facts(Path(output_dir))
        elif self.is_fsdp_enabled:
            # transformers saves nothing here if the state dict type of the launcher's configuration is sharded.
            self._save(output_dir or self.args.output_dir, self.accelerator.get_state_dict(self.model))
            if self.args.push_to_hub and not kwargs.get("_internal_call"):
                self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
        else:
            super().save_model(output_dir, **kwargs)

    def _shards_suffice(self) -> bool:
        """Return whether a checkpoint needs no whole model, because transformers writes the shards of all weights."""
        if self.args.save_only_model or (self.args.push_to_hub and self.args.hub_strategy != HubStrategy.END):
            return False
        if self.is_fsdp_enabled:
            return "SHARDED" in str(self.accelerator.state.fsdp_plugin.state_dict_type)
        return self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3

    def end_processes(self) -> None:
        """Wait for all processes and leave the process group, after which the trainer neither trains nor saves.

        A process that leaves early would hang the others. And if DDP is the last that holds the group, torch 2.13
        destroys the group while it holds Python's global lock, for which a thread of the group may wait forever.
        """
        self.accelerator.wait_for_everyone()
        self.model_wrapped = self.model
        self.accelerator.free_memory()
        gc.collect()  # DDP refers to itself
        self.accelerator.end_training()

    def write_facts(self, folder: Path) -> None:
        """Write what `check_checkpoint` reads into a folder. This method does nothing; subclasses override it."""


__all__ = ["ShardingTrainer"]
