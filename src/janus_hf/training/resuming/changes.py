"""`ChangesCallback`, which applies the new settings of a resumed run that transformers takes from the checkpoint."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState

from .resume_fields import GROUP_KEYS, SCHEDULE
from .run_record import depends_on_steps


if TYPE_CHECKING:
    from ..trainers.sft_config import JanusProSFTConfig


class ChangesCallback(TrainerCallback):
    """Apply the new settings of a resumed run to the trainer's state, its optimizer and its schedule.

    transformers restores the intervals of logging, evaluation and saving, the hyper-parameters of the optimizer's
    groups and the base learning rates of the schedule from the checkpoint, whatever the new run asks for.

    Attributes:
        resumed_steps: Number of steps of the run that wrote the checkpoint; None if the run is not resumed.
        fresh_groups: The optimizer's groups, without their parameters, before the checkpoint was loaded.
    """

    def __init__(self) -> None:
        self.resumed_steps: int | None = None
        self.fresh_groups: list[dict[str, Any]] = []  # Any: hyper-parameters of any optimizer

    def remember(self, optimizer: Optimizer) -> None:
        """Keep the hyper-parameters with which an optimizer was made, for `on_train_begin`."""
        self.fresh_groups = [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ]

    # Any: the further arguments of transformers' callbacks, and the optimizer and the schedule in their wrappers.
    def on_train_begin(
        self,
        args: "JanusProSFTConfig",
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        """Apply the new settings, after the checkpoint was loaded and before the first step.

        Raises:
            ValueError: If the schedule depends on the number of steps, which differs from the checkpoint's without
                being in `resume_changes`, the optimizer that the caller passed differs from the checkpoint's in a
                setting that is not in `resume_changes`, or a setting in `resume_changes` cannot be applied to it.
        """
        if self.resumed_steps is None:
            return
        state.compute_steps(args, state.max_steps)
        changes = args.resume_changes
        if self.resumed_steps != state.max_steps and depends_on_steps(args) and "max_steps" not in changes:
            kind = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
            raise ValueError(
                f"`max_steps` must be that of the checkpoint, {self.resumed_steps}, got {state.max_steps}, because "
                f"the schedule (lr_scheduler_type={kind!r}, warmup_steps={args.warmup_steps}) depends on it: restore "
                f"it, or train on with the schedule of {state.max_steps} steps by training.resume_changes="
                f"[{', '.join([*changes, 'max_steps'])}]. To end earlier, set stop_step."
            )
        if optimizer is None:
            return
        self._apply_to_groups(optimizer, changes)
        self._apply_to_schedule(optimizer, lr_scheduler, changes)

    def _apply_to_groups(self, optimizer: Optimizer, changes: Sequence[str]) -> None:
        """Set the hyper-parameters of the optimizer's groups that `resume_changes` names to those of this run."""
        if len(self.fresh_groups) != len(optimizer.param_groups):
            if set(changes) & {*GROUP_KEYS, *SCHEDULE}:
                raise ValueError(
                    f"`resume_changes` must leave out {sorted(set(changes) & {*GROUP_KEYS, *SCHEDULE})}, got an "
                    f"optimizer whose groups were not made by this trainer ({type(optimizer).__name__}): change them "
                    "where the optimizer is configured."
                )
            return
        for name, key in GROUP_KEYS.items():
            for group, fresh in zip(optimizer.param_groups, self.fresh_groups, strict=True):
                if _same(group.get(key), fresh.get(key)):
                    continue
                if key not in {GROUP_KEYS[change] for change in changes if change in GROUP_KEYS}:
                    raise ValueError(
                        f"The optimizer's {key} must be that of the checkpoint, {group.get(key)}, got "
                        f"{fresh.get(key)}: restore it, or train on with the new value by "
                        f"training.resume_changes=[{', '.join([*changes, name])}]."
                    )
                group[key] = fresh[key]

    # Any: the schedule, in the wrapper of accelerate or DeepSpeed if there is one.
    def _apply_to_schedule(self, optimizer: Optimizer, scheduler: Any, changes: Sequence[str]) -> None:
        """Continue with the learning rates of this run's schedule, if `resume_changes` names one of its settings."""
        scheduler = getattr(scheduler, "scheduler", scheduler)
        rates = [group.get("initial_lr", group["lr"]) for group in self.fresh_groups]
        base = getattr(scheduler, "base_lrs", rates)
        if not set(changes) & SCHEDULE:
            if len(base) == len(rates) and base != rates:
                raise ValueError(
                    f"The optimizer's learning rate must be that of the checkpoint, {base[0]}, got {rates[0]}: "
                    "restore it, or train on with the new value by "
                    f"training.resume_changes=[{', '.join([*changes, 'learning_rate'])}]."
                )
            return
        if not isinstance(scheduler, LambdaLR):
            raise ValueError(
                f"`resume_changes` must leave out {', '.join(sorted(set(changes) & SCHEDULE))} with the schedule "
                f"{type(scheduler).__name__}, which keeps a state of its own, got {list(changes)}: remove it."
            )
        factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]
        now = [rate * factor for rate, factor in zip(rates, factors, strict=True)]
        scheduler.load_state_dict({**scheduler.state_dict(), "base_lrs": rates, "_last_lr": now})
        for group, rate, current in zip(optimizer.param_groups, rates, now, strict=True):
            group["initial_lr"], group["lr"] = rate, current


def _same(was: Any, now: Any) -> bool:  # Any: a hyper-parameter of any optimizer
    """Return whether two hyper-parameters are equal; a checkpoint may hold a list for a tuple."""
    plain = [list(value) if isinstance(value, (list, tuple)) else value for value in (was, now)]
    return bool(plain[0] == plain[1])


__all__ = ["ChangesCallback"]
