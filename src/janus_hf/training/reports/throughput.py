"""`Throughput`, which measures how fast a run trains: tokens per second, TFLOP/s, and the share of the peak."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ...modeling.outputs import JanusProCausalLMOutput
from .flops import count_flops
from .peaks import find_peak


if TYPE_CHECKING:
    from peft import PeftModel

    from ...modeling import JanusProForConditionalGeneration

logger = logging.get_logger(__name__)
_AMOUNTS = 5  # tokens, pairs, text labels, image labels, pictures; see `Flops.total`


class Throughput(TrainerCallback):
    """Measure how fast a run trains between two logs.

    The time runs while steps are trained, waiting for data included. It stands still during evaluations, saves,
    samples and logs. The first step after the start of `train` is left out, because it also starts the data loader's
    processes, chooses kernels and compiles. Nothing waits for the GPU to measure: the amounts are added up on the
    device, and the time is read after the log itself has waited for it.

    Add it to the trainer's callbacks, after those that do work of their own at the end of a step. Call `add` after
    every forward pass of the training; `collect`, then `lap`, at a log.

    Args:
        model: The model as it is trained, with its adapters.
        device: The device that it is trained on.
        peak_tflops: Peak of the device in TFLOP/s; by default that of the card if `find_peak` lists it.
    """

    def __init__(
        self,
        model: "JanusProForConditionalGeneration | PeftModel",
        device: torch.device,
        *,
        peak_tflops: float | None = None,
    ) -> None:
        self.flops = count_flops(model)
        self.device, self.peak = device, peak_tflops
        self._card = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        if peak_tflops is None and self._card is not None:
            self.peak = find_peak(self._card)
        self._reset()

    def _reset(self) -> None:
        """Forget everything measured so far, and begin to measure after the next step."""
        self._sums: torch.Tensor | None = None  # (5,) since the last `collect`
        self._left_out: torch.Tensor | None = None  # (5,) those of the first step
        self._window = [0.0] * _AMOUNTS  # amounts of all processes since the last `lap`
        self._seconds, self._mark = 0.0, time.perf_counter()
        self._is_first_step = True

    def add(self, batch: Mapping[str, Any], outputs: JanusProCausalLMOutput) -> None:
        """Add what a micro-batch of the training contains.

        Args:
            batch: The model's inputs: `labels (B, T)`, of which all `B * T` positions are tokens, padding included;
                `position_ids (B, T)` that restart at 0 in every document (by default each row is one); optionally
                `pixel_values (M, 3, S, S)`.
            outputs: The model's outputs, of which the numbers of labels are used.
        """
        labels, positions, pictures = batch["labels"], batch.get("position_ids"), batch.get("pixel_values")
        if self._sums is None:
            # float64, so that many batches can be added without rounding errors; MPS does not support float64.
            dtype = torch.float32 if labels.device.type == "mps" else torch.float64
            self._sums = torch.zeros(_AMOUNTS, dtype=dtype, device=labels.device)
        self._sums[0] += labels.numel()
        # A token at position p of its document attends to p + 1 tokens.
        rows, length = labels.shape
        self._sums[1] += rows * length * (length + 1) / 2 if positions is None else (positions + 1).sum()
        self._sums[2] += outputs["num_text_labels"].to(self._sums)
        self._sums[3] += outputs["num_image_labels"].to(self._sums)
        self._sums[4] += 0 if pictures is None else len(pictures)

    def collect(self, accelerator: Accelerator) -> float:
        """Return the floating-point operations of all processes since the last call, the first step included.

        Every process must call this method, because it communicates, unless no process has added a batch.
        """
        if self._sums is None:
            return 0.0
        left_out = torch.zeros_like(self._sums) if self._left_out is None else self._left_out
        everything, first = accelerator.reduce(torch.stack([self._sums, left_out]), reduction="sum").tolist()
        self._sums = self._left_out = None
        self._window = [was + new - out for was, new, out in zip(self._window, everything, first, strict=True)]
        return self.flops.total(*everything)

    def lap(self, num_processes: int) -> dict[str, float]:
        """Return what was measured since the last call, up to the last `collect`, and begin anew.

        Args:
            num_processes: Number of processes of the run, each with one device.

        Returns:
            `tokens_per_second` of all devices together; `tflops`, the floating-point operations that the model needs
            (see `count_flops`), in TFLOP/s of one device; and `mfu`, the share of `tflops` in the device's peak,
            between 0 and 1, if the peak is known. Empty if no step was measured.
        """
        self._run()
        window, seconds = self._window, self._seconds
        self._window, self._seconds = [0.0] * _AMOUNTS, 0.0
        if self._is_first_step or not window[0] or seconds <= 0:
            return {}
        tflops = self.flops.total(*window) / seconds / num_processes / 1e12
        values = {"tokens_per_second": window[0] / seconds, "tflops": tflops}
        return values if self.peak is None else {**values, "mfu": tflops / self.peak}

    def _run(self) -> None:
        """Count the time since the last event as time of training."""
        now = time.perf_counter()
        self._seconds, self._mark = self._seconds + now - self._mark, now

    def _stand_still(self) -> None:
        """Do not count the time since the last event."""
        self._mark = time.perf_counter()

    # Any: the further arguments of transformers' callbacks, here and below.
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Begin to measure, and say once if the peak of the card is unknown."""
        self._reset()
        if self._card is not None and self.peak is None and state.is_world_process_zero:
            logger.warning_once(
                f"The log has no `mfu`, because the peak of {self._card!r} is not known: set `peak_tflops` to its "
                "TFLOP/s of dense bfloat16 matrix multiplication."
            )

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Count the time of the step."""
        self._run()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave out what the callbacks before this one did, and the first step as a whole."""
        self._stand_still()
        if self._is_first_step:
            self._is_first_step, self._seconds = False, 0.0
            self._left_out = None if self._sums is None else self._sums.clone()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave out the time of the log."""
        self._stand_still()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave out the time of the evaluation."""
        self._stand_still()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave out the time of the save."""
        self._stand_still()


__all__ = ["Throughput"]
