"""A stand-in for CUDA graphs on a CPU: `EmulatedGraph` records operators, and replays them blind to Python.

A CUDA graph runs the recorded kernels again on the addresses that they had, and nothing else: no Python, no shape that
follows the data, no value that the host reads, and inputs only through the tensors that were there when it was
captured. `EmulatedGraph` does the same with PyTorch's operators. What it cannot show are faults of streams, memory
pools and kernels.
"""

from weakref import WeakSet

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorder(TorchDispatchMode):
    """Context that writes down the operators that run inside it."""

    def __init__(self):
        super().__init__()
        self.tape = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if torch.Tag.data_dependent_output in function.tags or function.name().startswith("aten::nonzero"):
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        output = function(*args, **(kwargs or {}))
        self.tape.append((function, args, kwargs or {}, output))
        return output

    def replay(self):
        """Run the operators again, into the storages that their results had."""
        for function, args, kwargs, output in self.tape:
            # An operator that writes to its arguments, or returns a view of them, has its result in place already.
            for old, new in zip(tree_leaves(output), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class EmulatedGraph:
    """A graph (`janus_hf.generation.decoders.cuda_graph.Graph`) of operators on CPU tensors.

    Attributes:
        captured, replays: Numbers of captures and replays of all graphs since `reset`.
    """

    captured = replays = 0
    _graphs: WeakSet["EmulatedGraph"] = WeakSet()

    @classmethod
    def reset(cls):
        """Count from zero, as if there were no graphs."""
        EmulatedGraph.captured = EmulatedGraph.replays = 0
        EmulatedGraph._graphs.clear()

    @classmethod
    def alive(cls):
        """The number of graphs that were made since `reset` and exist."""
        return len(EmulatedGraph._graphs)

    def __init__(self, device, pool_of=None):
        self.recorder = Recorder()
        assert pool_of is None or pool_of.recorder.tape, "memory is shared with a graph that was captured"
        EmulatedGraph._graphs.add(self)

    @staticmethod
    def why_impossible(device):
        return None

    def rehearse(self, function):
        function()

    def capture(self, function):
        with self.recorder:
            output = function()
        EmulatedGraph.captured += 1
        return output

    def replay(self):
        EmulatedGraph.replays += 1
        self.recorder.replay()


class IdleGraph(EmulatedGraph):
    """A graph whose replay does nothing."""

    def replay(self):
        EmulatedGraph.replays += 1


class WrongGraph(EmulatedGraph):
    """A graph that writes its keys and values over the first positions of the cache as well."""

    def replay(self):
        super().replay()
        for function, args, _, _ in self.recorder.tape:
            if function.name() == "aten::index_copy_":
                args[0][:, :, :3] = 7.0


class DriftingGraph(EmulatedGraph):
    """A graph whose logits are off by a factor, so slightly that the token is the same."""

    factor = 1.01

    def capture(self, function):
        self.output = super().capture(function)
        return self.output

    def replay(self):
        super().replay()
        self.output.logits.mul_(self.factor)


class UncapturableGraph(EmulatedGraph):
    """A graph that cannot be captured: every capture raises an error."""

    error: type[Exception] = RuntimeError

    def capture(self, function):
        super().capture(function)
        raise self.error("operation not permitted when stream is capturing\nmore lines")


class HungryGraph(UncapturableGraph):
    """A graph for which the memory does not suffice."""

    error = torch.cuda.OutOfMemoryError
