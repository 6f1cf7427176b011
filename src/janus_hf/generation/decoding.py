"""The step that draws: codes in, the next codes out. As it is, or compiled.

`B` pictures, `R` rows (`B`, or `2 B` with guidance: conditional rows first), `T` prompt length, `P` codes per picture,
`n` codes fed at once, `K` codebook entries, `L` positions of the cache.
"""

import io
import time
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, StaticCache
from transformers.utils import logging

from .attention import attend_singly
from .cache import PreallocatedCache
from .packed_linear import copy_sharing_weights, pack_linears, packing_pays
from .sampling import Sampling, guide


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

    def prepare(self, model: Any) -> Any:
        """Called before a drawing; returns the model to draw with."""
        return model

    def step(self, model: Any, cache: Cache, codes: torch.Tensor, *args: Any) -> DrawnCodes:
        """See `decode_step`."""
        return decode_step(model, cache, codes, *args)


class CompiledDecoder(Decoder):
    """Runs `decode_step` as one compiled graph for each size, and keeps the caches that the graphs are made for.

    On CUDA a graph is replayed instead of launching its kernels one by one. On a CPU the weights are packed for the
    matrix kernels: a second copy of the language model, made anew when the weights change. Who packs depends: where
    the processor multiplies bfloat16, and for quantised weights, the compiler does; else `packed_linear`.
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
        self._weights: Any = None
        self._model: Any = None
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
            with self._settings():
                return self._graphs[size](model, cache, codes, *args)
        start = time.perf_counter()
        logger.warning(
            f"Compiling the drawing step for {len(codes)} picture(s) at once; this happens once for each number of "
            "pictures and kind of settings, and takes minutes for a full-size model."
        )
        graph = self._compile()
        with self._settings(), _quiet_autotuning():
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
    def _settings(self) -> Iterator[None]:
        """Of the compiler. Not `options` of torch.compile: those are read after it is decided whether weights become
        constants.
        """
        if not self._options:
            yield
            return
        from torch._inductor import config

        with config.patch(self._options):
            yield

    def prepare(self, model: Any) -> Any:
        """The model, or on a CPU a copy of it with packed weights.

        What was compiled is dropped if the model has moved, or if packed weights are no longer the model's.
        """
        weights = [_fingerprint(weight, self._packs_weights) for weight in model.parameters()]
        if self._weights is not None and weights != self._weights:
            logger.warning("The model has changed since its drawing step was compiled: compiling it anew.")
            self._forget()
        self.device, self._weights = weights[0][0], weights
        if not self._packs_weights:
            return model
        if self._model is None:
            self._model = self._pack(model)
        return self._model

    def _pack(self, model: Any) -> Any:
        packed = copy_sharing_weights(model)
        if next(model.language_model.parameters()).dtype != torch.float32:
            attend_singly(packed.language_model)
        parts = (packed.language_model, packed.generation_aligner, packed.generation_head)
        if packing_pays(self.device) and all([pack_linears(part) for part in parts]):
            return packed
        # One kind of matrix kernel leaves nothing to be timed, layer by layer. For int4 it is PyTorch's own: not all
        # processors have another.
        int4 = any(type(weight).__name__ == "Int4OpaqueTensor" for weight in model.parameters())
        kernels = "ATEN" if int4 else "CPP"
        self._options = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": kernels}
        return packed


def _fingerprint(weight: torch.Tensor, with_values: bool) -> tuple[Any, ...]:
    """What changes when a weight moves or, with its values, is written to.

    PEFT merges adapters past the version counter; some rows tell.
    """
    place = (weight.device, weight.dtype)
    if not with_values:
        return place
    version = 0 if weight.is_inference() else weight._version
    names = weight.__tensor_flatten__()[0] if hasattr(weight, "__tensor_flatten__") else []  # of quantised weights
    parts = [getattr(weight, name) for name in names] or [weight.detach()]
    rows = [part[:: max(1, len(part) // 16)].double().sum().item() for part in parts if part.ndim]
    return (*place, id(weight), version, *rows)


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
