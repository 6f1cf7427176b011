"""The step of the generation loop as a compiled graph: a CUDA graph on a GPU, packed weights on a CPU.

`B` images, `R` rows (`B`, or `2 B` with guidance: conditional rows first), `T` prompt length, `n` tokens fed at once.
"""

import time
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, StaticCache
from transformers.utils import logging

from ...protocols import BareModel
from ..x86 import ModelKernels, kernels_for
from .interface import StepInput, StepOutput
from .plain import decode_step, lengthen


logger = logging.get_logger(__name__)

# Caches of compiled steps have a multiple of this number of positions, so that most prompts share one graph.
_LENGTHS = 64

# Number of tokens per image and step, cache length, and the settings that change the graph.
_Size = tuple[int | bool | None, ...]


class CompiledDecoder:
    """Runs `decode_step` as one compiled graph per size, and keeps the caches that the graphs are compiled for.

    On CUDA a graph is replayed as a CUDA graph instead of launching its kernels one by one. On a CPU the weights of
    the language model, the generation aligner and the image head are packed for the matrix kernels, which takes a
    second copy of them. The kernels of `x86/` pack the layers that they can compute, on processors that they are made
    for. All other layers are packed by inductor (PyTorch's compiler), which makes weights constants of its graph.

    Args:
        device: Device of the model's weights; `prepare` follows the model to another device.
        mode: `mode` of `torch.compile`, instead of the choice described.
    """

    def __init__(self, device: torch.device, mode: str | None = None) -> None:
        self.device, self.mode = device, mode
        self._forget()

    def __reduce__(self) -> tuple[type["CompiledDecoder"], tuple[torch.device, str | None]]:
        """Make copies and pickles without graphs: those belong to one model's weights and cannot be copied."""
        return CompiledDecoder, (self.device, self.mode)

    def _forget(self) -> None:
        """Drop all graphs, caches and packed weights."""
        self._graphs: dict[_Size, Callable[..., StepOutput]] = {}
        self._caches: dict[tuple[int, int], StaticCache] = {}
        self._identity: list[tuple[torch.device, torch.dtype, int]] | None = None
        self._checksums: list[tuple[float, ...]] = []
        self._kernels: ModelKernels | None = None
        self._compiler_options: dict[str, bool | int | str] = {}

    @property
    def _packs_weights(self) -> bool:
        """Whether the step uses packed copies of the weights."""
        return self.device.type == "cpu" and self.mode is None

    @property
    def packs_by_compiler(self) -> bool:
        """Whether the compiler packs weights as constants of its graph, because `x86/` could not pack all of them."""
        return bool(self._compiler_options)

    def prepare(self, model: BareModel) -> None:
        """Bring graphs and packed weights up to date with the model.

        Drop them if the model has other layers or weights than before, or has moved to another device or dtype. Pack
        weights again that were changed in place.
        """
        weights = list(model.parameters())
        self.device = weights[0].device
        # Packed weights are copies, which become stale when a weight is replaced or written to. Otherwise weights are
        # inputs of the graph, and torch.compile itself notices when one is replaced.
        identity = [(weight.device, weight.dtype, id(weight) if self._packs_weights else 0) for weight in weights]
        checksums = [_checksum(weight) for weight in weights] if self._packs_weights else []
        written_to = checksums != self._checksums
        if self._identity is not None:
            stale_constants = self.packs_by_compiler and written_to
            stale_layers = self._kernels is not None and not self._kernels.is_current()
            if stale_constants or stale_layers or identity != self._identity:
                logger.warning("The model has changed since its generation step was compiled: compiling it anew.")
                self._forget()
        if self._identity is None and self._packs_weights:
            self._pack(model)
        elif self._kernels is not None and written_to:
            self._kernels.pack_again()
        self._identity, self._checksums = identity, checksums  # last: interrupted packing is repeated next time

    def _pack(self, model: BareModel) -> None:
        """Pack the weights by `x86/` if its kernels cover all linear layers; else let the compiler pack them."""
        self._kernels = kernels_for(model, self.device)
        if self._kernels is not None and self._kernels.complete:
            return
        # Inductor times every kind of matrix kernel for every layer, unless there is only one kind to choose from. For
        # int4 that is PyTorch's own (ATEN), because not all processors have a generated one (CPP).
        int4 = any(type(weight).__name__ == "Int4OpaqueTensor" for weight in model.parameters())
        kernels = "ATEN" if int4 else "CPP"
        self._compiler_options = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": kernels}

    @contextmanager
    def running(self, model: BareModel) -> Iterator[None]:
        """Install the packed layers and the compiler's options; remove both at the end, also after an error."""
        with ExitStack() as stack:
            if self._kernels is not None:
                stack.enter_context(self._kernels.in_place())
            if self._compiler_options:
                stack.enter_context(_inductor_options(self._compiler_options))
            yield

    def make_cache(self, implementation: str, text_config: PreTrainedConfig, rows: int, length: int) -> Cache:
        """Return the cache that this size used before, emptied: graphs are compiled for its memory.

        Raises:
            ValueError: If `implementation` is not "static".
        """
        if implementation != "static":
            raise ValueError(
                f"`cache_implementation` must be 'static' for a compiled model, got {implementation!r}: leave it out, "
                "or undo compiling."
            )
        length = -(-length // _LENGTHS) * _LENGTHS
        if (rows, length) not in self._caches:
            self._caches[rows, length] = StaticCache(config=text_config, max_cache_len=length)
        self._caches[rows, length].reset()
        return self._caches[rows, length]

    def make_mask(self, mask_RT: torch.Tensor, cache: Cache, length: int) -> torch.Tensor:
        """Return a mask of the cache's length, also without padding, so that all prompts share one graph."""
        return lengthen(mask_RT, cache.get_max_length())

    def step(self, model: BareModel, cache: Cache, step: StepInput) -> StepOutput:
        """Run the graph of this size, and compile it first if there is none. The next step overwrites the output."""
        torch.compiler.cudagraph_mark_step_begin()
        sampling = step.draw.sampling
        settings = (step.draw.guidance_scale is None, sampling.do_sample, sampling.top_k, sampling.top_p is None)
        size = (*step.tokens.shape, cache.get_max_length(), *settings)
        inputs = (step.tokens, step.mask, step.lengths, step.positions, step.draw)
        graph = self._graphs.get(size)
        if graph is not None:
            with self.running(model):
                return graph(model, cache, *inputs)
        start = time.perf_counter()
        logger.warning(
            f"Compiling the generation step for {len(step.tokens)} image(s) at once. This happens once for each "
            "number of images and kind of settings, and takes a minute or more for a full-size model."
        )
        graph = self._compile()
        # Inductor writes a table to stderr for every matrix that it times kernels for; 0 turns the tables off.
        with self.running(model), _inductor_options({"autotune_num_choices_displayed": 0}):
            output = graph(model, cache, *inputs)
        logger.warning(f"Compiled in {time.perf_counter() - start:.0f} s.")
        self._graphs[size] = graph
        return output

    def _compile(self) -> Callable[..., StepOutput]:
        """Return `decode_step` to be compiled at its first call, apart from all other graphs of `decode_step`."""
        # torch.compile stores graphs by code object, so each graph gets a copy, and is freed with it. Without copies
        # all models of a process share one list: the ninth graph raises FailOnRecompileLimitHit (tried with torch
        # 2.13). The argument `isolate_recompiles` would do instead, but torch 2.6 does not have it.
        code = decode_step.__code__.replace()
        function = types.FunctionType(code, decode_step.__globals__, decode_step.__name__)
        mode = None if self._packs_weights else self.mode or "reduce-overhead"
        return torch.compile(function, fullgraph=True, dynamic=False, mode=mode)

    def rewind(self, cache: Cache, count: int) -> None:
        """Lower the cache's length by `count`, in place: the next step overwrites what lies beyond."""
        for layer in cache.layers:
            layer.cumulative_length.sub_(count)


def why_not_compilable(device: torch.device) -> str | None:
    """Compile a small function and return the reason if that fails, or None if `torch.compile` works on `device`."""

    def probe(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) + 1

    try:
        torch.compile(probe, fullgraph=True)(torch.zeros(8, device=device))
    except Exception as error:  # compilers, drivers and file systems raise errors of any type
        return str(error).strip().split("\n")[0] or type(error).__name__
    return None


def _checksum(weight: nn.Parameter) -> tuple[float, ...]:
    """Return a cheap checksum that detects changes in place: the version counter and sums of about sixteen rows.

    The counter alone is not enough, because PEFT merges adapters through `.data`, which does not count.
    """
    # `_version` has no public equivalent. Inference tensors have no counter at all.
    version = 0 if weight.is_inference() else weight._version
    # A quantised weight is a subclass of tensors that wraps others, and `__tensor_flatten__` names them.
    names = weight.__tensor_flatten__()[0] if hasattr(weight, "__tensor_flatten__") else []
    parts = [getattr(weight, name) for name in names] or [weight.detach()]
    return (version, *(part[:: max(1, len(part) // 16)].double().sum().item() for part in parts if part.ndim))


def _inductor_options(options: dict[str, bool | int | str]) -> AbstractContextManager[None]:
    """Return a context in which inductor has these options."""
    # The argument `options` of torch.compile is the public way, but it is read after inductor has decided whether
    # weights become constants ("freezing").
    from torch._inductor import config

    return config.patch(options)


__all__ = ["CompiledDecoder", "why_not_compilable"]
