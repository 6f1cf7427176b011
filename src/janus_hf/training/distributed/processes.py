"""`together`, which lets all processes of a run fail with the reason of the one that failed."""

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather


Result = TypeVar("Result")


def together(action: Callable[[], Result]) -> Result:
    """Call a function on every process, and raise on all of them if it raises on one.

    Without this, a process that fails leaves the others waiting for it, or failing for a reason that follows from its
    own, and the launcher shows the messages of all.

    Args:
        action: Function that does not communicate with the other processes.

    Returns:
        The result of the function on this process.

    Raises:
        Exception: What the function raises on this process.
        ChildProcessError: If it raises on other processes only. The message states the reason of the first of these.
    """
    state = PartialState()
    if state.num_processes == 1:
        return action()
    error = None
    try:
        result = action()
    except Exception as raised:
        error = raised
    ranks = gather(torch.tensor([error is not None], device=state.device)).nonzero().flatten().tolist()
    if ranks:
        # The message is one line, because the launcher prints it among those of other processes.
        reason = " ".join(str(error).split()) or type(error).__name__
        (reason,) = broadcast_object_list([reason], from_process=ranks[0])
        raise error or ChildProcessError(f"Process {ranks[0]} of {state.num_processes} stopped: {reason}")
    return result


__all__ = ["together"]
