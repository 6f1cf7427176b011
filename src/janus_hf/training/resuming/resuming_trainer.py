"""`ResumingTrainer`, a trainer whose runs are resumed exactly or refused, and that stops when SIGTERM asks it to."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput
from transformers.utils import logging

from ...data import JanusProCollator
from ..recording import read_state
from ..trainers.repeatable import RepeatableTrainer
from .changes import ChangesCallback
from .run_record import check_same_run, model_settings, run_settings
from .stopping import RunInterruptedError, StopCallback, last_step, without_jit_callback


if TYPE_CHECKING:
    from ...modeling import JanusProForConditionalGeneration
    from ..trainers.sft_config import JanusProSFTConfig


logger = logging.get_logger(__name__)


class ResumingTrainer(RepeatableTrainer):
    """A trainer that checks a checkpoint before it resumes it, and applies what may change (`resume_fields`).

    Args:
        model: The Janus-Pro model, whose settings are compared too.
        args: The configuration of the run.
        kwargs: Further arguments of the parent classes.
    """

    args: "JanusProSFTConfig"
    facts: dict[str, Any]  # Any: facts of any kind, see `JanusProTrainer`

    # Any: arguments of the parent classes.
    def __init__(self, model: "JanusProForConditionalGeneration", args: "JanusProSFTConfig", **kwargs: Any) -> None:
        self._model_settings = model_settings(model)  # before adapters are added and dtypes change
        self._stop, self._changes = StopCallback(), ChangesCallback()
        with without_jit_callback(args):
            super().__init__(model=model, args=args, **kwargs)
        self.add_callback(self._changes)
        self.add_callback(self._stop)

    @property
    def settings(self) -> Mapping[str, Any]:  # Any: settings of any kind, as JSON
        """The settings of the run that its checkpoints record."""
        collator = self.data_collator
        # A collator that the caller has made decides itself which captions it drops.
        of_ours = isinstance(collator, JanusProCollator)
        own = {"caption_drop": collator.caption_drop, "data.seed": collator.seed} if of_ours else {}
        return {**run_settings(self.args, self._model_settings), **own}

    def last_step(self) -> int:
        """Return the step after which the run ends; 0 if the number of steps is not known yet."""
        return last_step(self.args, super().last_step())

    # Any: the further arguments of `transformers.Trainer.train`.
    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train to the last step, as `RepeatableTrainer.train` does, from the first step or from a checkpoint.

        Args:
            resume_from_checkpoint: See `RepeatableTrainer.train`.
            args: Further arguments of `transformers.Trainer.train`.
            kwargs: Further arguments of `transformers.Trainer.train`.

        Returns:
            The number of steps, the mean loss and the metrics. If the checkpoint is the last of the run, nothing is
            trained: its weights and its state are loaded, a warning says so, and the loss is the last of its log.

        Raises:
            ValueError: If the checkpoint is of a run with other rows, or with settings that cannot change or that
                `args.resume_changes` does not name.
            RunInterruptedError: If SIGTERM came, after the step was finished and a checkpoint was saved. Nothing else
                is saved or uploaded then.
        """
        self._changes.resumed_steps = None
        checkpoint = self.find_checkpoint(resume_from_checkpoint)
        # transformers would train one more step.
        if isinstance(checkpoint, (str, os.PathLike)) and self.is_finished(checkpoint):
            return self._take_finished(checkpoint)
        with self._stop.listen(self.args.enable_jit_checkpoint):
            output = super().train(resume_from_checkpoint, *args, **kwargs)
        if self._stop.interrupted:
            self._output = None
            step = self.state.global_step
            saved = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
            raise RunInterruptedError(step, last_step(self.args, self.state.max_steps), str(saved))
        return output

    def is_finished(self, checkpoint: str | os.PathLike[str]) -> bool:
        """Return whether a checkpoint was saved after the last step of this run.

        Args:
            checkpoint: Folder of the checkpoint. Without `max_steps`, it states the number of steps, unless its run
                had another number of packs.
        """
        if not (Path(checkpoint) / TRAINER_STATE_NAME).is_file():
            return False
        state = read_state(checkpoint)
        steps = self.args.max_steps
        if steps <= 0:
            steps = state.max_steps
            packs, per_step = self.facts.get("packs"), self.settings["packs_per_step"]
            if packs is not None:
                steps = -(-packs // per_step)
        return 0 < last_step(self.args, steps) <= state.global_step

    def _take_finished(self, checkpoint: str | os.PathLike[str]) -> TrainOutput:
        """Load the last checkpoint of the run instead of training, and return the result that its log states."""
        self.restore(checkpoint)
        logger.warning(
            "%s is the last checkpoint of this run, so nothing is trained: to train further, raise `max_steps` or "
            "`stop_step`, or start a new run from this model.",
            checkpoint,
        )
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        self._output = TrainOutput(self.state.global_step, losses[-1] if losses else float("nan"), {})
        return self._output

    def restore(self, checkpoint: str | os.PathLike[str]) -> None:
        """Load the trainer's state (number of steps, log history) of a checkpoint and the weights, without training.

        Every process must call this method.

        Args:
            checkpoint: Folder of a checkpoint of this run. The weights are those of `find_weights`.

        Raises:
            ValueError: If the checkpoint is of another run; see `check_same_run`.
        """
        self.check_checkpoint(checkpoint)
        self.state = read_state(checkpoint)
        self.load_weights(self.find_weights(checkpoint))

    def find_weights(self, checkpoint: str | os.PathLike[str]) -> str:
        """Return the folder of the weights that belong to a checkpoint; trainers that choose others override this."""
        return os.fspath(checkpoint)

    def load_weights(self, checkpoint: str) -> None:
        """Load the weights of a checkpoint, which is a folder, without training; every process must call this method.

        Trainers of sharded models override it.
        """
        self._load_from_checkpoint(checkpoint)

    def check_checkpoint(self, checkpoint: str | os.PathLike[str]) -> None:
        """Raise a ValueError unless this run may resume a checkpoint; see `check_same_run`."""
        check_same_run(checkpoint, self.facts, self.settings, changes=self.args.resume_changes)
        self._changes.resumed_steps = read_state(checkpoint).max_steps

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the optimizer as transformers does, and remember its hyper-parameters before a checkpoint is loaded."""
        optimizer = super().create_optimizer(model)
        self._changes.remember(optimizer)
        return optimizer

    # See `UploadingTrainer`: no public callback runs at that time.
    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Start an upload of a checkpoint's model, unless SIGTERM has stopped the run, which leaves no time for it."""
        if not self._stop.interrupted:
            super()._push_from_checkpoint(checkpoint_folder)


__all__ = ["ResumingTrainer"]
