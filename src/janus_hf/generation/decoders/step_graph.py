"""Functions that compile one step of the generation loop so that all of its memory can be freed.

PyTorch keeps what it compiles in tables of the process and never removes an entry, so a step that was compiled with
nothing but `torch.compile` keeps its model's weights until the process ends, twice if they are packed. The public
function that empties the tables, `torch.compiler.reset`, also throws away what the caller compiled for other models.
"""

import sys
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

from .interface import StepOutput
from .plain import decode_step


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def compile_step(mode: str | None) -> Callable[..., StepOutput]:
    """Return a copy of `decode_step` that is compiled at its first call, independently of all other copies.

    If inductor (PyTorch's compiler) packs weights, all calls must run inside `keeping_constants_out_of_tables`.

    Args:
        mode: The argument `mode` of `torch.compile`.
    """
    return compile_alone(decode_step, mode)


def compile_alone(function: Callable[Arguments, Result], mode: str | None = None) -> Callable[Arguments, Result]:
    """Return a copy of a function that is compiled at its first call, independently of all other copies.

    PyTorch's entry for the copy is removed when the returned function is garbage-collected.

    Args:
        function: A function of a module, without a closure.
        mode: The argument `mode` of `torch.compile`.
    """
    assert isinstance(function, types.FunctionType)
    # torch.compile stores graphs by code object, so each graph gets its own copy and is freed with it. Without copies
    # all models of a process share one list of graphs: the ninth raises FailOnRecompileLimitHit (tried with torch
    # 2.13). The argument `isolate_recompiles` would do instead, but torch 2.6 does not have it.
    code = function.__code__.replace()
    # torch.compile also stores a graph among the globals of its function, and leaves it there if compiling is
    # interrupted. Globals of its own are freed with the copy.
    copied = types.FunctionType(code, dict(function.__globals__), function.__name__)
    compiled: Callable[Arguments, Result] = torch.compile(copied, fullgraph=True, dynamic=False, mode=mode)
    # The entry of a code object refers back to it through C++, where Python's garbage collector sees no circle.
    # `reset_code` is private. The public way is `torch.compiler.reset`, which calls it for all code of the process.
    weakref.finalize(compiled, torch._dynamo.reset_code, code).atexit = False
    return compiled


@contextmanager
def keeping_constants_out_of_tables() -> Iterator[None]:
    """Remove the modules of constants that inductor (PyTorch's compiler) loads inside the context from its tables.

    Inductor writes each graph as a Python module. If it packs weights, they become attributes of this module, which
    inductor keeps in a list and in `sys.modules`. The graph itself needs neither.
    """
    # There is no public way to unload such a module: `torch.compiler.reset` leaves it in both tables.
    from torch._inductor.codecache import PyCodeCache

    known = len(PyCodeCache.modules)
    try:
        yield
    finally:
        for module in PyCodeCache.modules[known:]:
            if any(isinstance(value, torch.Tensor) for value in vars(module).values()):
                PyCodeCache.modules.remove(module)
                if sys.modules.get(module.__name__) is module:
                    del sys.modules[module.__name__]


__all__ = ["compile_alone", "compile_step", "keeping_constants_out_of_tables"]
