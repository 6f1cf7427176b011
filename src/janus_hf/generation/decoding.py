"""The step that draws: codes in, the next codes out. As it is, or compiled.

`B` pictures, `R` rows (`B`, or `2 B` with guidance: conditional rows first), `T` prompt length, `P` codes per picture,
`n` codes fed at once, `K` codebook entries, `L` positions of the cache.
"""

import io
import time
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, redirect_stderr
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, StaticCache
from transformers.utils import logging

from .cache import PreallocatedCache
from .sampling import Sampling, guide
from .x86.cpu_kernels import kernels_can_be_built, kernels_fit, multiplies_bfloat16
from .x86.few_query_attention import attending_with_few_queries
from .x86.packed_linear import PackedLinears


logger = logging.get_logger(__name__)

_LENGTHS = 64  # caches of compiled steps are multiples of this long, so that most prompts share one

DrawnCodes = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def draw_from(
    model: Any,
    hidden_RnD: torch.Tensor,
    places: torch.Tensor,
    keys: torch.Tensor,
    guidance_scale: torch.Tensor | None,
    sampling: Sampling,
) -> DrawnCodes:
    """Hidden states -> image head -> guidance -> codes.

    Args:
        hidden_RnD: Last hidden states `(R, n, D)`.
        places: `(n,)` numbers of the codes to be drawn.
        keys: `(B, 2)` keys of the pictures' noise.
        guidance_scale: 0-dimensional; None if there are no unconditional rows.

    Returns:
        Codes `(B, n)` int64, logits after guidance `(B, n, K)` float32, and the scores that were sampled from.
    """
    logits = model.generation_head(hidden_RnD).float()
    if guidance_scale is not None:
        conditional, unconditional = logits.chunk(2)
        logits = guide(conditional, unconditional, guidance_scale)
    scores = sampling.scores(logits)
    return sampling.draw(scores, keys, places), logits, scores


def decode_step(
    model: Any,
    cache: Cache,
    codes: torch.Tensor,
    mask: torch.Tensor | None,
    lengths: torch.Tensor,
    places: torch.Tensor,
    keys: torch.Tensor,
    guidance_scale: torch.Tensor | None,
    sampling: Sampling,
) -> DrawnCodes:
    """Code embedding -> language model -> image head -> guidance -> codes: what is run for every code of a picture.

    No host synchronisation and no shapes that depend on data.

    Args:
        codes: `(B, n)`; conditional and unconditional rows continue with the same.
        mask: `(R, L)`, or None without padding.
        lengths: `(R, 1)`, of the prompts without padding.
        Others: see `draw_from`.
    """
    # Guesses past the picture's end get a position inside the context: some kinds of RoPE look at the largest.
    positions = (lengths + places - 1).clamp(max=model.config.text_config.max_position_embeddings - 1)
    embeds = model.embed_image_ids(codes)
    if guidance_scale is not None:
        embeds = torch.cat([embeds, embeds])
    outputs = model.language_model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    )
    return draw_from(model, outputs.last_hidden_state, places, keys, guidance_scale, sampling)


class Decoder:
    """Runs `decode_step` as it is, with a new cache for every drawing."""

    def make_cache(self, implementation: str, text_config: Any, rows: int, length: int) -> Cache:
        """An empty cache for `rows` rows of up to `length` positions."""
        if implementation == "static":
            return PreallocatedCache(text_config, length)
        if implementation == "dynamic":
            return DynamicCache(config=text_config)
        raise ValueError(f"cache_implementation must be 'static' or 'dynamic', got {implementation!r}.")

    def make_mask(self, mask_RT: torch.Tensor, cache: Cache, length: int) -> torch.Tensor | None:
        """The prompts' mask `(R, T)` for `length` positions; None without padding, so that attention kernels may take
        their causal path.
        """
        return None if bool(mask_RT.all()) else _lengthen(mask_RT, length)

    def prepare(self, model: Any) -> None:
        """Called before a drawing."""

    def running(self, model: Any) -> AbstractContextManager[Any]:
        """In which the model runs."""
        return nullcontext()

    def step(self, model: Any, cache: Cache, codes: torch.Tensor, *args: Any) -> DrawnCodes:
        """See `decode_step`."""
        return decode_step(model, cache, codes, *args)


class CompiledDecoder(Decoder):
    """Runs `decode_step` as one compiled graph for each size, and keeps the caches that the graphs are made for.

    On CUDA a graph is replayed instead of launching its kernels one by one. On a CPU weights are packed for the matrix
    kernels, which is a second copy of the language model: by `packed_linear`, or, where the processor multiplies
    bfloat16 and of layers that it does not know, by the compiler, which makes them constants of its graph.
    """

    def __init__(self, device: torch.device, mode: str | None = None) -> None:
        self.device, self.mode = device, mode
        self._forget()

    def __reduce__(self) -> Any:
        return CompiledDecoder, (self.device, self.mode)  # a copy compiles for itself

    @property
    def _packs_weights(self) -> bool:
        return self.device.type == "cpu" and self.mode is None

    def _forget(self) -> None:
        self._graphs: dict[tuple[Any, ...], Callable[..., DrawnCodes]] = {}
        self._caches: dict[tuple[int, int], StaticCache] = {}
        self._identity: list[Any] | None = None
        self._values: list[Any] = []
        self._packed: PackedLinears | None = None
        self._options: dict[str, Any] = {}

    def make_cache(self, implementation: str, text_config: Any, rows: int, length: int) -> Cache:
        """The cache of the last drawing of this size, emptied."""
        if implementation != "static":
            raise ValueError(
                f"A compiled model needs cache_implementation='static', got {implementation!r}. Leave it out, or undo "
                "compiling."
            )
        length = -(-length // _LENGTHS) * _LENGTHS
        if (rows, length) not in self._caches:
            self._caches[rows, length] = StaticCache(config=text_config, max_cache_len=length)
        self._caches[rows, length].reset()
        return self._caches[rows, length]

    def make_mask(self, mask_RT: torch.Tensor, cache: Cache, length: int) -> torch.Tensor | None:
        """Always one, of the cache's length, so that padded and unpadded batches share a graph."""
        return _lengthen(mask_RT, cache.get_max_length())

    def step(self, model: Any, cache: Cache, codes: torch.Tensor, *args: Any) -> DrawnCodes:
        """See `decode_step`. The tensors returned are overwritten by the next step."""
        torch.compiler.cudagraph_mark_step_begin()
        guidance_scale, sampling = args[-2:]
        settings = (guidance_scale is None, sampling.do_sample, sampling.top_k, sampling.top_p is None)
        size = (*codes.shape, cache.get_max_length(), *settings)
        if size in self._graphs:
            with self.running(model):
                return self._graphs[size](model, cache, codes, *args)
        start = time.perf_counter()
        logger.warning(
            f"Compiling the drawing step for {len(codes)} picture(s) at once; this happens once for each number of "
            "pictures and kind of settings, and takes a minute or more for a full-size model."
        )
        graph = self._compile()
        with self.running(model), _quiet_autotuning():
            drawn = graph(model, cache, codes, *args)
        logger.warning(f"Compiled in {time.perf_counter() - start:.0f} s.")
        self._graphs[size] = graph
        return drawn

    def _compile(self) -> Callable[..., DrawnCodes]:
        # A function of its own: torch.compile keeps graphs by code object, so that they go when it goes, and are not
        # taken for those of other weights.
        code = decode_step.__code__.replace()
        function = types.FunctionType(code, decode_step.__globals__, decode_step.__name__)
        mode = None if self._packs_weights else self.mode or "reduce-overhead"
        return torch.compile(function, fullgraph=True, dynamic=False, mode=mode)

    @contextmanager
    def running(self, model: Any) -> Iterator[None]:
        """With packed layers, and the compiler set to what it should do about the others."""
        with ExitStack() as stack:
            if self._packed is not None:
                stack.enter_context(self._packed.in_place())
                stack.enter_context(attending_with_few_queries(model.language_model))
            if self._options:
                from torch._inductor import config

                # Not `options` of torch.compile: those are read after it is decided whether weights become constants.
                stack.enter_context(config.patch(self._options))
            yield

    def prepare(self, model: Any) -> None:
        """See that what was compiled and packed is still the model's: drop it if the model has other layers or weights
        or has moved, and pack weights again that have been written to.
        """
        weights = list(model.parameters())
        self.device = weights[0].device
        identity = [(weight.device, weight.dtype, id(weight) if self._packs_weights else 0) for weight in weights]
        values = [_sample(weight) for weight in weights] if self._packs_weights else []
        written_to = values != self._values
        if self._identity is not None:
            frozen = bool(self._options) and written_to
            if frozen or identity != self._identity or not (self._packed is None or self._packed.is_current()):
                logger.warning("The model has changed since its drawing step was compiled: compiling it anew.")
                self._forget()
        if self._identity is None and self._packs_weights:
            self._pack(model)
        elif self._packed is not None and written_to:
            self._packed.pack_again()
        self._identity, self._values = identity, values  # last: if packing is interrupted, it is done again

    def _pack(self, model: Any) -> None:
        parts = (model.language_model, model.generation_aligner, model.generation_head)
        if kernels_fit(self.device) and kernels_can_be_built():
            self._packed = PackedLinears([] if multiplies_bfloat16() else parts)
            if self._packed.complete:
                return
        # One kind of matrix kernel leaves nothing to be timed, layer by layer. For int4 it is PyTorch's own: not all
        # processors have another.
        int4 = any(type(weight).__name__ == "Int4OpaqueTensor" for weight in model.parameters())
        kernels = "ATEN" if int4 else "CPP"
        self._options = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": kernels}


def _sample(weight: torch.Tensor) -> tuple[Any, ...]:
    """What changes when a weight is written to. PEFT merges adapters past the version counter; some rows tell."""
    version = 0 if weight.is_inference() else weight._version
    names = weight.__tensor_flatten__()[0] if hasattr(weight, "__tensor_flatten__") else []  # of quantised weights
    parts = [getattr(weight, name) for name in names] or [weight.detach()]
    return (version, *(part[:: max(1, len(part) // 16)].double().sum().item() for part in parts if part.ndim))


def _lengthen(mask_RT: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(mask_RT, (0, length - mask_RT.shape[1]), value=1)


def why_not_compilable(device: torch.device) -> str | None:
    """What keeps `torch.compile` from working here, found by trying; None if nothing does."""

    def probe(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x) + 1

    try:
        torch.compile(probe, fullgraph=True)(torch.zeros(8, device=device))
    except Exception as error:  # whatever compilers, drivers and caches may raise
        return str(error).strip().split("\n")[0] or type(error).__name__
    return None


def _quiet_autotuning() -> AbstractContextManager[Any]:
    """Without the tables that inductor writes for every matrix it has timed kernels for; loggers still write."""
    return redirect_stderr(io.StringIO())


__all__ = ["CompiledDecoder", "Decoder", "decode_step", "draw_from", "why_not_compilable"]
