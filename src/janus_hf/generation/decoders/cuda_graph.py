"""The class `CudaGraph`: the kernels that a function launches, recorded once and launched again by one call.

A replay runs the recorded kernels on the recorded addresses, and no Python code. The function must therefore read
everything that changes from tensors that stay at the same address, must not wait for the device, and must have no
shape that depends on data. `CapturedDecoder` uses only the methods of the Protocol `Graph`, so that tests can replace
`CudaGraph` by a class that needs no GPU.
"""

import threading
from collections.abc import Callable
from functools import cache
from typing import Protocol, Self, TypeVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


_Output = TypeVar("_Output")

# torch allows one capture at a time in a process.
_ONE_CAPTURE = threading.Lock()


class Graph(Protocol):
    """Interface of a recorded function: `rehearse` it, `capture` it once, then `replay` it any number of times."""

    def __init__(self, device: torch.device, pool_of: Self | None = None) -> None:
        """Make an empty graph for `device`, which shares the memory pool of the graph `pool_of` if one is given."""
        ...

    @staticmethod
    def why_impossible(device: torch.device) -> str | None:
        """Return why no graph can be captured on `device`, or None if it can."""
        ...

    def rehearse(self, function: Callable[[], object]) -> None:
        """Run the function once before it is captured, and raise a RuntimeError if it could not be captured."""
        ...

    def capture(self, function: Callable[[], _Output]) -> _Output:
        """Record the function and return its output, which has no values before the first replay."""
        ...

    def replay(self) -> None:
        """Run the recorded kernels again; they write to the output that `capture` returned."""
        ...


class CudaGraph:
    """Graph that is captured by `torch.cuda.CUDAGraph`.

    Args:
        device: CUDA device that the kernels run on.
        pool_of: Another graph of this device whose memory pool the new graph shares, or None for a pool of its own.
            Two such graphs must not run at the same time, and a replay of one may overwrite the output of the other.
            The argument is a graph and not a handle of its pool, because torch refuses a handle whose graphs are all
            deleted.
    """

    def __init__(self, device: torch.device, pool_of: "CudaGraph | None" = None) -> None:
        self._device = device
        self._graph: torch.cuda.CUDAGraph = torch.cuda.CUDAGraph()
        self._pool = None if pool_of is None else pool_of._graph.pool()

    @staticmethod
    def why_impossible(device: torch.device) -> str | None:
        """Return why no graph can be captured on `device`, or None if it is a CUDA device."""
        return None if device.type == "cuda" else f"the model is on {str(device)!r}, and only CUDA devices have graphs"

    def rehearse(self, function: Callable[[], object]) -> None:
        """Run the function once on a side stream, as torch requires before a capture.

        Libraries create their handles and choose their kernels during this run, because they must not do so during a
        capture.

        Raises:
            RuntimeError: If the function waits for the device or has a shape that depends on data. This is found here,
                because a capture that fails leaves torch's memory allocator unusable for the whole process
                (`captures_underway.empty() INTERNAL ASSERT FAILED`).
        """
        side, current = torch.cuda.Stream(self._device), torch.cuda.current_stream(self._device)
        side.wait_stream(current)
        try:
            with torch.cuda.stream(side), _RefuseWaiting():
                function()
        finally:
            current.wait_stream(side)

    def capture(self, function: Callable[[], _Output]) -> _Output:
        """Record the kernels that the function launches, without running them, and return the function's output.

        The output has no values before the first replay.
        """
        stream = _capture_stream(self._device)
        with (
            _ONE_CAPTURE,
            torch.cuda.device(self._device),
            # This restores the stream if the capture fails, which `torch.cuda.graph` does not.
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            # Other threads, which load data for example, may allocate memory meanwhile.
            torch.cuda.graph(self._graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"),
        ):
            return function()

    def replay(self) -> None:
        """Launch the recorded kernels on the current stream; they write to the output that `capture` returned."""
        self._graph.replay()


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of `device` on which all graphs are captured.

    torch keeps a workspace for matrix kernels per stream and never frees it, so a new stream for every capture would
    leak memory.
    """
    return torch.cuda.Stream(device)


class _RefuseWaiting(TorchDispatchMode):
    """Context in which operators raise a RuntimeError if a CUDA graph cannot record them.

    These are operators that wait for the device, copy between devices, or have an output whose shape depends on data.
    `torch.cuda.set_sync_debug_mode("error")` is public and finds them too, but it acts on all threads of the process.
    """

    def __torch_dispatch__(
        self,
        function: torch._ops.OpOverload,
        types: tuple[type, ...],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Run the operator, or raise a RuntimeError if a graph cannot record it."""
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        waits = torch.Tag.data_dependent_output in function.tags
        if torch.Tag.dynamic_output_shape in function.tags:
            # Indexing has this tag because of boolean masks; with integer indices its shape does not depend on data.
            waits |= not function.name().startswith("aten::index") or any(
                tensor.dtype in (torch.bool, torch.uint8) for tensor in inputs[1:]
            )
        if waits:
            raise RuntimeError(f"the operator {function.name()} waits for the device")
        output = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((inputs, output)) if isinstance(leaf, torch.Tensor)]
        # A scalar tensor on the CPU is passed to a kernel as a number, so it may be combined with tensors on the
        # device.
        if len({tensor.device for tensor in tensors if tensor.ndim or tensor.device.type != "cpu"}) > 1 or (
            "copy" in function.name() and len({tensor.device for tensor in tensors}) > 1
        ):
            raise RuntimeError(f"the operator {function.name()} copies between devices")
        return output


__all__ = ["CudaGraph", "Graph"]
