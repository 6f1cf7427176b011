"""How a run stops before its last step: at a step that `stop_step` names, or because the machine is asked for.

A cluster announces with SIGTERM that it takes its machine back. The run then ends the step, saves a checkpoint and
raises `RunInterruptedError`. transformers' own callback for this is not used: it saves between the gradients and the
optimizer's step, so random states do not fit the checkpoint, and every process decides alone when to save.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import logging


if TYPE_CHECKING:
    from ..trainers.sft_config import JanusProSFTConfig

logger = logging.get_logger(__name__)


class RunInterruptedError(RuntimeError):
    """Raised when SIGTERM ended a training run before its last step, after its checkpoint was saved.

    Args:
        step: Number of steps that were done.
        last: Number of steps of the run.
        checkpoint: Folder of the checkpoint that was saved.
    """

    def __init__(self, step: int, last: int, checkpoint: str) -> None:
        self.step, self.last, self.checkpoint = step, last, checkpoint
        super().__init__(
            f"SIGTERM stopped the run after step {step} of {last}, and {checkpoint} was saved: resume it with "
            "training.resume_from_checkpoint=auto."
        )

    def __reduce__(self) -> tuple[type["RunInterruptedError"], tuple[int, int, str]]:
        """Return how to make the exception again in another process, which launchers of notebooks do."""
        return type(self), (self.step, self.last, self.checkpoint)


def last_step(args: "JanusProSFTConfig", max_steps: int) -> int:
    """Return the step after which a run ends: `max_steps`, the end of its schedule, or an earlier `stop_step`."""
    return max_steps if args.stop_step is None else min(args.stop_step, max_steps)


class StopCallback(TrainerCallback):
    """Stop the training after the step `args.stop_step`, and after the step during which SIGTERM came.

    The first is an end like that at `max_steps`; the second sets `interrupted` and only saves a checkpoint.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._asked = False

    @contextmanager
    def listen(self, enabled: bool) -> Iterator[None]:
        """Note SIGTERM inside the `with` block instead of ending the process, if `enabled`.

        Only the main thread of a process can do so. In another thread, SIGTERM keeps its meaning.
        """
        self.interrupted = self._asked = False
        if not enabled or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGTERM, self._note)
        try:
            yield
        finally:
            # None stands for a handler that was not installed from Python and cannot be installed again from there.
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        """Note that SIGTERM came; the step that runs is finished first."""
        self._asked = True

    # Any: the further arguments of transformers' callbacks.
    def on_step_end(
        self, args: "JanusProSFTConfig", state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop after the last step that the run asks for, or if a process has received SIGTERM.

        All processes of the run decide the same, because saving needs all of them.
        """
        asked = args.enable_jit_checkpoint and self._any_process_asked(args)
        if control.should_training_stop:  # the run ends after this step anyway
            return
        if state.global_step >= last_step(args, state.max_steps):
            control.should_training_stop = True
            control.should_save |= args.save_strategy == SaveStrategy.STEPS
            control.should_evaluate |= (
                args.eval_strategy == IntervalStrategy.STEPS and args.eval_delay <= state.global_step
            )
        elif asked:
            self.interrupted = control.should_training_stop = control.should_save = True
            control.should_evaluate = False  # the time before the process is killed is short

    def _any_process_asked(self, args: "JanusProSFTConfig") -> bool:
        """Return whether any process of the run has received SIGTERM."""
        if args.world_size == 1:
            return self._asked
        asked = torch.tensor(float(self._asked), device=args.device)
        torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        return bool(asked)


@contextmanager
def without_jit_callback(args: "JanusProSFTConfig") -> Iterator[None]:
    """Keep transformers' trainer, if it is made inside the `with` block, from adding its own callback for SIGTERM."""
    enabled, args.enable_jit_checkpoint = args.enable_jit_checkpoint, False
    try:
        yield
    finally:
        args.enable_jit_checkpoint = enabled


__all__ = ["RunInterruptedError", "StopCallback", "last_step", "without_jit_callback"]
