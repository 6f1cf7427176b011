"""What a run is told to cost before it begins, and after ten steps: documents, visits, tokens and hours."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState

from ..resuming.stopping import last_step


if TYPE_CHECKING:
    from ..trainers.sft_config import JanusProSFTConfig


def forecast(
    args: "JanusProSFTConfig",
    lengths: Mapping[str, np.ndarray],
    ratios: Mapping[str, float],
    *,
    packs: int | None = None,
    documents: Mapping[str, int] | None = None,
) -> list[str]:
    """Return lines that say how many documents and tokens a run trains on, and how often each document is visited.

    Args:
        args: The configuration of the run.
        lengths: Source name -> the number of tokens of every row, `(rows,)` integers.
        ratios: Source name -> its share in the documents, in any unit.
        packs: Number of packs of the run's plan; None without a plan.
        documents: Source name -> its number of documents in the whole plan. None estimates them, as in a run that has
            no plan, or a very long one. A run with `stop_step` ends before its plan, so its documents are estimated.
    """
    planned = args.max_steps if args.max_steps > 0 else -(-(packs or 0) // args.packs_per_step)
    steps = last_step(args, planned)
    used = steps * args.packs_per_step
    if packs is not None:
        used = min(used, packs)
    means = {name: float(np.mean(rows)) for name, rows in lengths.items()}
    about = ""
    if documents is None or steps < planned:
        about = "about "
        # Packs are nearly full, so the ratios and the mean lengths decide how many documents fill them.
        assert args.max_length is not None  # checked by the configuration
        shares = {name: ratios[name] / sum(ratios.values()) for name in lengths}
        total = used * args.max_length / sum(shares[name] * means[name] for name in lengths)
        documents = {name: round(total * share) for name, share in shares.items()}
    tokens = sum(documents[name] * means[name] for name in lengths)
    lines = [
        f"{steps:,} steps of {args.packs_per_step:,} packs: {about}{sum(documents.values()):,} documents, "
        f"{about}{_short(tokens)} tokens"
    ]
    for name, rows in lengths.items():
        lines.append(
            f"  {name}: {len(rows):,} rows, {about}{documents[name]:,} documents, each row visited "
            f"{about}{documents[name] / len(rows):,.1f} times"
        )
    return lines


class HoursCallback(TrainerCallback):
    """Say after ten steps how long the rest of the run will take.

    Args:
        report: Function that is called with the message, on the main process only.
    """

    def __init__(self, report: Callable[[str], object]) -> None:
        self.report = report
        self._first = 0
        self._start = 0.0

    # Any: the further arguments of transformers' callbacks.
    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note the step at which this call of `train` begins."""
        self._first = state.global_step

    # Any: the further arguments of transformers' callbacks.
    def on_step_end(
        self, args: "JanusProSFTConfig", state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the steps 2 to 10, because the first one also starts and compiles things, and report the rest."""
        done = state.global_step - self._first
        if done == 1:
            self._start = time.perf_counter()
        left = last_step(args, state.max_steps) - state.global_step
        if done == 10 and left > 0 and state.is_world_process_zero:
            seconds = (time.perf_counter() - self._start) / 9
            self.report(f"{seconds:,.3g} s per step: {_time(seconds * left)} for the {left:,} steps left")


def _short(number: float) -> str:
    """Return a large number with three digits and a unit: 131 million."""
    for size, unit in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{round(number):,}"


def _time(seconds: float) -> str:
    """Return a duration in hours, or in minutes if it is below an hour."""
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:,.1f} minutes"


__all__ = ["HoursCallback", "forecast"]
