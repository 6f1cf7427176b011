"""`together`, which lets all processes of a run fail with the reason of the first one that failed."""

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather
from transformers.integrations import is_deepspeed_zero3_enabled


Result = TypeVar("Result")


def together(action: Callable[[], Result], *, loads_weights: bool = False) -> Result:
    """Call a function on every process, and raise on all of them if it raises on one.

    Without this, a process that fails leaves the others waiting for it, or failing for a reason that follows from its
    own, and the launcher shows the messages of all.

    The function may call `together` itself, and may create the process group. It must not communicate otherwise,
    because a process that failed no longer takes part.

    Args:
        action: The function.
        loads_weights: Whether the function loads weights or reads them, for which processes communicate under
            DeepSpeed's ZeRO-3. There, a process that fails outside an inner call leaves at once, and the launcher
            stops the others.

    Returns:
        The result of the function on this process.

    Raises:
        Exception: What the function raises on this process, if no process of a lower rank raises something else.
        ChildProcessError: If another process raises. The message states the reason of the lowest rank that raises.
    """
    error: Exception | None = None
    try:
        result = action()
    except Exception as raised:
        error = raised
    alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1
    # An error that was raised by a call inside the function is known to all processes already.
    leaves = loads_weights and is_deepspeed_zero3_enabled()
    if alone or leaves or getattr(error, "is_known_to_all", False):
        if error is not None:
            raise error
        return result
    # The message is one line, because the launcher prints it among those of other processes.
    own = None if error is None else " ".join(str(error).split()) or type(error).__name__
    state = PartialState()
    failed = gather(torch.tensor([error is not None], device=state.device)).nonzero().flatten().tolist()
    if not failed:
        return result
    (reason,) = broadcast_object_list([own], from_process=failed[0])
    if own != reason:
        error = ChildProcessError(f"Process {failed[0]} of {state.num_processes} stopped: {reason}")
    assert error is not None  # this process has that reason
    error.is_known_to_all = True  # type: ignore[attr-defined]
    raise error


__all__ = ["together"]
