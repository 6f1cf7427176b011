"""The class `CompiledDecoder`, which runs a step of the generation loop as a compiled graph.

The step runs as a CUDA graph on a GPU and with packed weights (copies in the order in which matrix kernels read them)
on a CPU. In shapes, `B` is the number of images, `R` the number of rows (sequences that the language model runs: `B`,
or `2 B` with guidance, conditional rows first), `T` the prompt length, and `n` the number of tokens fed at once.
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, StaticCache
from transformers.utils import logging

from ...protocols import BareModel
from ..kernels.few_rows import FewRowLayers
from ..kernels.x86 import ModelKernels, kernels_for
from ..sampling import Draw
from .interface import StepInput, StepOutput
from .plain import lengthen
from .step_by_layers import StepByLayers, has_layers_alike
from .step_graph import compile_step, keeping_constants_out_of_tables


logger = logging.get_logger(__name__)

# The lengths of caches of compiled steps are rounded up to a multiple of this number of positions, so that most
# prompts share one graph.
_LENGTHS = 64

# Key of a compiled graph: number of images, tokens per image and step, length of the cache, and the settings that
# change the graph.
_Size = tuple[int | bool | None, ...]


class CompiledDecoder:
    """Decoder that runs `decode_step` as one compiled graph per size, and keeps the caches that the graphs use.

    On CUDA a graph is replayed as a CUDA graph instead of launching its kernels one by one. On a CPU the weights of
    the language model, the generation aligner and the image head are packed (copied in the order in which matrix
    kernels read them), which takes the memory of a second copy. On the processors for which the kernels in
    `kernels/x86/` are made, these kernels pack the layers that they can compute. All other layers are packed by
    inductor (PyTorch's compiler), which makes weights constants of its graph. If there are none, the layers of the
    language model share one graph (`StepByLayers`).

    On CUDA the layers that torchao has quantised to 8 bits run with the kernel in `kernels/few_rows/`, without tuning.

    Args:
        device: Device of the model's weights; `prepare` updates it if the model has moved to another device.
        mode: The argument `mode` of `torch.compile`; None uses CUDA graphs or packed weights as described.
    """

    def __init__(self, device: torch.device, mode: str | None = None) -> None:
        self.device, self.mode = device, mode
        self._forget()

    def __reduce__(self) -> tuple[type["CompiledDecoder"], tuple[torch.device, str | None]]:
        """Return how to copy or pickle the decoder: from device and mode, without graphs.

        Graphs belong to one model's weights and cannot be copied.
        """
        return CompiledDecoder, (self.device, self.mode)

    def _forget(self) -> None:
        """Drop all compiled graphs, caches and packed weights."""
        self._graphs: dict[_Size, Callable[..., StepOutput]] = {}
        self._caches: dict[tuple[int, int], StaticCache] = {}
        self._identity: list[tuple[torch.device, torch.dtype, int]] | None = None
        self._checksums: list[tuple[float, ...]] = []
        self._kernels: ModelKernels | None = None
        self._few_rows: FewRowLayers | None = None
        self._compiler_options: dict[str, bool | int | str] = {}

    @property
    def _packs_weights(self) -> bool:
        """Whether the step uses packed copies of the weights: on a CPU, unless a `mode` of `torch.compile` was chosen.

        Packed means copied in the order in which matrix kernels read them.
        """
        return self.device.type == "cpu" and self.mode is None

    @property
    def packs_by_compiler(self) -> bool:
        """Whether inductor (PyTorch's compiler) packs weights as constants of its graph.

        It does so if the kernels in `kernels/x86/` could not pack all layers.
        """
        return bool(self._compiler_options)

    @property
    def has_packed_layers(self) -> bool:
        """Whether `running` replaces layers by packed ones, which also make steps fast that are not compiled."""
        return self._kernels is not None

    def turn(self, owner: object) -> AbstractContextManager[None]:
        """Return a context manager that does nothing; callers make sure that only one thread generates at a time."""
        return nullcontext()

    def prepare(self, model: BareModel) -> None:
        """Bring compiled graphs and packed weights (copies for matrix kernels) up to date with the model.

        Drop graphs, caches and packed weights if the model has other layers or weights than before, or has moved to
        another device or dtype. Pack the weights again if they were changed in place.
        """
        weights = list(model.parameters())
        self.device = weights[0].device
        # Packed weights are copies, which become stale when a weight is replaced or written to. Without packing,
        # weights are inputs of the graph, and torch.compile itself notices when one is replaced.
        identity = [(weight.device, weight.dtype, id(weight) if self._packs_weights else 0) for weight in weights]
        checksums = [_checksum(weight) for weight in weights] if self._packs_weights else []
        written_to = checksums != self._checksums
        if self._identity is not None:
            stale_constants = self.packs_by_compiler and written_to
            replaced = (self._kernels, self._few_rows)
            stale_layers = any(layers is not None and not layers.is_current() for layers in replaced)
            if stale_constants or stale_layers or identity != self._identity:
                logger.warning("The model has changed since its generation step was compiled: compiling it anew.")
                self._forget()
                gc.collect()  # graphs are part of reference cycles, and may hold a copy of the weights
        if self._identity is None and self._packs_weights:
            self._pack(model)
        elif self._kernels is not None and written_to:
            self._kernels.pack_again()
        if self._few_rows is None:
            self._few_rows = FewRowLayers(model)
        # These are set last, so that interrupted packing is repeated next time.
        self._identity, self._checksums = identity, checksums

    def _pack(self, model: BareModel) -> None:
        """Pack the weights of linear layers: copy them in the order in which matrix kernels read them.

        The kernels in `kernels/x86/` pack the layers that they can compute; the compiler packs the others.
        """
        self._kernels = kernels_for(model, self.device)
        if self._kernels is not None and self._kernels.complete:
            return
        # Inductor times every kind of matrix kernel for every layer, unless there is only one kind to choose from. For
        # int4 that is PyTorch's own kind (ATEN), because not all processors have a generated kind (CPP).
        int4 = any(type(weight).__name__ == "Int4OpaqueTensor" for weight in model.parameters())
        kernels = "ATEN" if int4 else "CPP"
        self._compiler_options = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": kernels}

    @contextmanager
    def running(self, model: BareModel) -> Iterator[None]:
        """Use packed layers and the compiler's options inside the context; remove both at its end or on error."""
        with ExitStack() as stack:
            for layers in (self._kernels, self._few_rows):
                if layers is not None:
                    stack.enter_context(layers.in_place())
            if self._compiler_options:
                stack.enter_context(_inductor_options(self._compiler_options))
                stack.enter_context(keeping_constants_out_of_tables())
            yield

    def make_cache(self, implementation: str, text_config: PreTrainedConfig, rows: int, length: int) -> Cache:
        """Return an empty static cache for `rows` sequences of at least `length` positions.

        A cache that was made before for the same size is emptied and returned again, because the compiled graphs use
        its memory.

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
        """Return the prompts' attention mask `(R, T)` extended by ones to the length of the cache.

        A mask is returned even if no prompt is padded, so that all prompts share one graph. `R` is the number of rows
        (sequences), `T` the prompt length.
        """
        return lengthen(mask_RT, cache.get_max_length())

    def step(self, model: BareModel, cache: Cache, step: StepInput) -> StepOutput:
        """Run the graph that is compiled for the size of this step, and compile it first if there is none.

        The size is the number of images and tokens, the cache's length, and which sampling settings are used. The next
        step overwrites the output.
        """
        torch.compiler.cudagraph_mark_step_begin()
        assert isinstance(step.draw, Draw)  # answers are not compiled (`AnswerCache`)
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
            "number of images and kind of settings, and may take a minute or more for a full-size model."
        )
        graph = self._make_graph(model)
        # Inductor writes a table to stderr for every matrix that it times kernels for; 0 turns the tables off.
        quiet = _inductor_options({"autotune_num_choices_displayed": 0})
        with self.running(model), quiet:
            output = graph(model, cache, *inputs)
        logger.warning(f"Compiled in {time.perf_counter() - start:.0f} s.")
        self._graphs[size] = graph
        return output

    def _make_graph(self, model: BareModel) -> Callable[..., StepOutput]:
        """Return a step, which is compiled when it is called."""
        if not self._packs_weights:
            return compile_step(self.mode or "reduce-overhead")
        # Weights that inductor packs are constants of a graph, which layers cannot share.
        if self.packs_by_compiler or not has_layers_alike(model.language_model):
            return compile_step(None)
        return StepByLayers()

    def rewind(self, cache: Cache, count: int) -> None:
        """Remove the last `count` positions from the cache, in place.

        Only the cache's length is lowered; the next step overwrites the removed positions.
        """
        for layer in cache.layers:
            layer.cumulative_length.sub_(count)


def why_not_compilable(device: torch.device) -> str | None:
    """Try to compile a small function on `device`, and return None if that works, else the reason as one line."""

    def probe(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) + 1

    try:
        torch.compile(probe, fullgraph=True)(torch.zeros(8, device=device))
    except Exception as error:  # compilers, drivers and file systems raise errors of any type
        return str(error).strip().split("\n")[0] or type(error).__name__
    return None


def _checksum(weight: nn.Parameter) -> tuple[float, ...]:
    """Return a cheap checksum that detects changes of a weight in place.

    It consists of the weight's version counter and the sums of about sixteen of its rows.

    The counter alone is not enough, because PEFT merges adapters through `.data`, which does not count.
    """
    # `_version` has no public equivalent. Inference tensors have no counter at all.
    version = 0 if weight.is_inference() else weight._version
    # A quantised weight is a subclass of tensors that wraps others, and `__tensor_flatten__` names them.
    names = weight.__tensor_flatten__()[0] if hasattr(weight, "__tensor_flatten__") else []
    parts = [getattr(weight, name) for name in names] or [weight.detach()]
    return (version, *(part[:: max(1, len(part) // 16)].double().sum().item() for part in parts if part.ndim))


def _inductor_options(options: dict[str, bool | int | str]) -> AbstractContextManager[None]:
    """Return a context manager inside which inductor (PyTorch's compiler) has these options."""
    # The argument `options` of torch.compile is the public way, but it is read after inductor has decided whether
    # weights become constants ("freezing").
    from torch._inductor import config

    return config.patch(options)


__all__ = ["CompiledDecoder", "why_not_compilable"]
