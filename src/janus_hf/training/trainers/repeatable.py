"""`RepeatableTrainer`, the base class of trainers whose `train` may be called again, as in a cell of a notebook."""

import logging
from typing import Any

from transformers.trainer_utils import TrainOutput

from ..recording import newest_checkpoint
from .uploading import UploadingTrainer


logger = logging.getLogger(__name__)


class RepeatableTrainer(UploadingTrainer):
    """A trainer whose `train` does nothing once all steps are done, and starts cleanly after an interrupted call."""

    _output: TrainOutput | None = None  # the result of the last call of `train` that ended

    # Any: the further arguments of `transformers.Trainer.train`.
    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train to the last step, unless an earlier call has reached it.

        If training is interrupted or fails, the mode (training or evaluation) of every module is restored and
        gradients are removed, so that the model can be used and this method can be called again.

        Args:
            resume_from_checkpoint: Folder of the checkpoint to resume from, or True for the newest one in the output
                folder; False starts at the first step. None is the value of `args.resume_from_checkpoint`, of which
                "auto" resumes from the newest checkpoint if there is one.
            args: Further arguments of `transformers.Trainer.train`.
            kwargs: Further arguments of `transformers.Trainer.train`.

        Returns:
            The number of steps, the mean loss and the metrics. If all steps were done by an earlier call and no
            checkpoint is given, a warning says so and the result is that of the earlier call.
        """
        if resume_from_checkpoint is None and self.state.global_step == 0:
            resume_from_checkpoint = self.args.resume_from_checkpoint
        if resume_from_checkpoint == "auto":
            resume_from_checkpoint = newest_checkpoint(self.args.output_dir)
        elif resume_from_checkpoint is True:
            resume_from_checkpoint = newest_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"`resume_from_checkpoint` must be 'auto' or False without a checkpoint in {self.args.output_dir}"
                    ", got True: 'auto' starts at the first step then."
                )
        last = self.args.max_steps if self.args.max_steps > 0 else self.state.max_steps
        if self._output is not None and not resume_from_checkpoint and 0 < last <= self.state.global_step:
            logger.warning(
                "All %d steps are done, so nothing is trained: to train further, make a new trainer with this model "
                "and another `output_dir`; to repeat the run, load the model again first.",
                self.state.global_step,
            )
            return self._output
        if resume_from_checkpoint:
            self.check_checkpoint(str(resume_from_checkpoint))
        modes = {module: module.training for module in self.model.modules()}
        self.forget_losses()
        try:
            self._output = super().train(resume_from_checkpoint, *args, **kwargs)
        except BaseException:  # also KeyboardInterrupt, which is not an Exception
            for module, mode in modes.items():
                module.training = mode
            self.model.zero_grad()
            self.is_in_train = False  # transformers resets this only if training ends normally; evaluations read it
            raise
        return self._output

    def check_checkpoint(self, checkpoint: str) -> None:
        """Raise a ValueError if training cannot be resumed from a checkpoint, which is a folder.

        `train` calls this method before it loads anything. This method does nothing; trainers whose checkpoints state
        facts about their run override it.
        """

    def forget_losses(self) -> None:
        """Reset the losses that the trainer has added up since the last log.

        `train` calls this method first, because an interrupted call leaves such losses. This method does nothing;
        trainers that add up losses override it.
        """


__all__ = ["RepeatableTrainer"]
