"""The class `CapturedDecoder`, which runs a step of the generation loop as a captured CUDA graph, without a compiler.

A step of one image launches hundreds of kernels (more than a thousand with the layers of transformers), and launching
one takes the CPU longer than running it takes the GPU. A graph launches them all with one call.

In shapes, `B` is the number of images, `R` the number of rows (sequences that the language model runs: `B`, or `2 B`
with guidance, conditional rows first), `T` the prompt length, and `n` the number of tokens fed at once.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from weakref import WeakValueDictionary

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, StaticCache
from transformers.utils import logging

from ...protocols import BareModel
from ..generation_arguments import MAX_GRAPHS
from .captured_step import CacheState, CapturedStep, agree, size_of, visible_positions, with_copied_tensors
from .cuda_graph import CudaGraph, Graph
from .fused_layers import fuse
from .graph_dependencies import fingerprint, kernel_settings, step_modules
from .interface import StepInput, StepModel, StepOutput
from .obstacles import why_not_capturable
from .plain import PlainDecoder, decode_step, few_kernels_pay, lengthen


logger = logging.get_logger(__name__)

# The lengths of caches are rounded up to a multiple of this number of positions, so that most prompts share one graph.
_LENGTH_MULTIPLE = 64

_DISAGREED = "a captured step has disagreed with the plain step on the same input"
_OUT_OF_MEMORY = "the memory of the device did not suffice for a graph (fewer images at once need less)"


class CapturedDecoder:
    """Decoder that captures `decode_step` in one CUDA graph per size, and keeps the caches that the graphs use.

    At the first step of a size the kernels are captured, and the step itself runs as a plain step. The second step of
    the size is replayed from the graph and also runs as a plain step: if the two disagree, all later steps are plain.
    If capturing is impossible, steps are plain, and a warning is logged once for each reason.

    Only one thread at a time generates with this decoder (`turn`). Graphs stay valid if weights are changed in place.
    `prepare` drops them if layers, adapters, settings or the addresses of weights have changed.

    Args:
        max_graphs: Number of graphs to keep, at least 1. The graph that was not used for the longest time is dropped
            first. Every graph keeps the cache of its batch, and all graphs share the memory of their other tensors.
        run_step: Function that a step runs, with the arguments of `decode_step`.
        graph_class: Class of the graphs.
    """

    def __init__(
        self,
        max_graphs: int = MAX_GRAPHS,
        *,
        run_step: Callable[..., StepOutput] = decode_step,
        graph_class: type[Graph] = CudaGraph,
    ) -> None:
        self.max_graphs, self._run_step, self._graph_class = max_graphs, run_step, graph_class
        self._plain = PlainDecoder()
        self._turn, self._owners = threading.RLock(), list[object]()
        self._device: torch.device | None = None  # device of the batch that was prepared last
        self._end_of_turn: torch.cuda.Event | None = None
        self._logged: set[str] = set()
        self._fingerprint: Hashable = None
        self._obstacle: str | None = None  # why the batch that was prepared last is not captured
        self._graphs: OrderedDict[Hashable, CapturedStep] = OrderedDict()
        # Graphs and batches hold the caches; a cache that none of them holds is freed.
        self._caches: WeakValueDictionary[tuple[int, int], StaticCache] = WeakValueDictionary()
        self._too_large: set[tuple[int, int]] = set()  # sizes of caches for whose graphs memory did not suffice
        self._uncapturable: str | None = None  # why capturing the present model failed
        self._step_model: StepModel | None = None  # layers that launch few kernels, if the model allows them
        self._has_disagreed = False  # whether a replay has disagreed with a plain step

    def __reduce__(self) -> tuple[Callable[..., "CapturedDecoder"], tuple[object, ...]]:
        """Return how to copy or pickle the decoder: as a new one with the same arguments and no graphs.

        Graphs belong to one model's weights and cannot be copied.
        """
        return _make_decoder, (self.max_graphs, self._run_step, self._graph_class)

    @contextmanager
    def turn(self, owner: object) -> Iterator[None]:
        """Wait until no other thread generates with this decoder, and make other threads wait inside the context.

        A callback may generate images with the model that is generating. This inner batch runs plain steps, because
        the outer batch uses the graphs and their caches.

        Args:
            owner: The whole model, whose hooks show whether it is offloaded.
        """
        with self._turn:
            self._owners.append(owner)
            try:
                yield
            finally:
                self._owners.pop()
                # The kernels of this batch may still run when the next thread launches its own on another stream.
                if self._device is not None and self._device.type == "cuda":
                    self._end_of_turn = torch.cuda.current_stream(self._device).record_event()

    def prepare(self, model: BareModel) -> None:
        """Decide whether the steps of the next batch are captured, and drop graphs that no longer fit the model."""
        if len(self._owners) > 1:
            self._obstacle = "a callback generates with the model that is generating"
            return self.warn_once(self._obstacle)
        self._device = next(model.language_model.parameters()).device
        if self._end_of_turn is not None:
            torch.cuda.current_stream(self._device).wait_event(self._end_of_turn)
        self._obstacle = self._why_plain(model, self._owners[0] if self._owners else None)
        if self._obstacle is not None:
            self._forget()
            return self.warn_once(self._obstacle)
        present = fingerprint(step_modules(model))
        if present != self._fingerprint:
            self._forget()
            self._fingerprint = present
        # Joined matrices are updated in place, so graphs stay valid, unless the layers were made anew.
        fused = fuse(model, self._step_model) if few_kernels_pay(self._device) else model
        if fused is not (self._step_model or model):
            self._graphs.clear()
        self._step_model = None if fused is model else fused
        self._obstacle = self._uncapturable
        return None

    def _why_plain(self, model: BareModel, owner: object) -> str | None:
        """Return why steps of this model would be plain, or None if no reason is known before capturing is tried.

        Args:
            model: The model without its text head.
            owner: The whole model, or None if it is not known.
        """
        if self._has_disagreed:
            return _DISAGREED
        modules = list(step_modules(model))
        device = next(modules[0].parameters()).device
        return self._graph_class.why_impossible(device) or why_not_capturable(
            modules, model.language_model.config, owner
        )

    def can_capture(self, model: BareModel, owner: object) -> bool:
        """Return whether steps of this model would be captured now; if not, log the reason, each reason once.

        Args:
            model: The model without its text head.
            owner: The whole model.
        """
        # Generation records no gradients.
        with torch.no_grad():
            reason = self._uncapturable or self._why_plain(model, owner)
        if reason is not None:
            self.warn_once(reason)
        return reason is None

    def warn_once(self, reason: str) -> None:
        """Log a warning with the reason for plain steps, unless this reason was logged before."""
        if reason not in self._logged:
            self._logged.add(reason)
            logger.warning(f"Generation runs plain steps instead of captured ones: {reason}.")

    def _forget(self) -> None:
        """Drop all graphs and caches, and everything that was derived from the model."""
        self._graphs.clear()
        self._caches.clear()
        self._too_large.clear()
        self._fingerprint, self._uncapturable, self._step_model = None, None, None

    def running(self, model: BareModel) -> AbstractContextManager[None]:
        """Return a context manager that does nothing, because this decoder replaces no layers."""
        return nullcontext()

    def make_cache(self, implementation: str, text_config: PreTrainedConfig, rows: int, length: int) -> Cache:
        """Return an empty cache for `rows` sequences of at least `length` positions.

        For captured steps it is a static cache. If graphs of this size already use one, that cache is emptied and
        returned. For plain steps, and if `implementation` is "dynamic", it is a cache of the plain decoder.

        Raises:
            ValueError: If `implementation` is neither "static" nor "dynamic".
        """
        if implementation == "dynamic" and self._obstacle is None:
            self.warn_once("cache_implementation='dynamic' was chosen, and a graph needs a static cache")
        rounded = -(-length // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
        if self._obstacle is not None or implementation != "static" or (rows, rounded) in self._too_large:
            return self._plain.make_cache(implementation, text_config, rows, length)
        cache = self._caches.get((rows, rounded))
        if cache is None:
            cache = StaticCache(config=text_config, max_cache_len=rounded)
            self._caches[rows, rounded] = cache
        cache.reset()
        return cache

    def make_mask(self, mask_RT: torch.Tensor, cache: Cache, length: int) -> torch.Tensor | None:
        """Return the prompts' attention mask `(R, T)` extended by ones to the length of the cache.

        For captured steps a mask is returned even if no prompt is padded, so that all prompts share one graph. For
        plain steps it is the mask of the plain decoder. `R` is the number of rows (sequences), `T` the prompt length.
        """
        if not isinstance(cache, StaticCache):
            return self._plain.make_mask(mask_RT, cache, length)
        return lengthen(mask_RT, cache.get_max_length())

    def step(self, model: BareModel, cache: Cache, step: StepInput) -> StepOutput:
        """Replay the graph for the size of this step; if there is none, capture one and run the step as a plain step.

        The size consists of the shapes and dtypes of all inputs, the length of the cache, the sampling settings that
        are not tensors, and the global settings of torch that choose kernels. The next step overwrites the output.
        """
        if not isinstance(cache, StaticCache):
            return self._plain.step(model, cache, step)
        size = (cache.get_max_length(), size_of(step), kernel_settings())
        captured = self._graphs.get(size)
        # A graph may have been dropped and captured again while this batch was running. It then uses another cache.
        if captured is not None and captured.cache is cache:
            self._graphs.move_to_end(size)
            return captured.replay(step) if captured.checked else self._check(captured, model, cache, step)
        if not (self._has_disagreed or self._uncapturable or _rows_and_length(cache) in self._too_large):
            self._capture(size, model, cache, step)
        return self._run(model, cache, step)

    def _run(self, model: BareModel, cache: StaticCache, step: StepInput) -> StepOutput:
        """Run a plain step on a static cache and return its output."""
        mask = visible_positions(step, cache)
        with self.running(model):
            return self._run_step(
                self._step_model or model, cache, step.tokens, mask, step.lengths, step.positions, step.draw
            )

    def _capture(self, size: Hashable, model: BareModel, cache: StaticCache, step: StepInput) -> None:
        """Capture a step without advancing the cache; if that fails, log why, so that later steps are plain."""
        self._graphs.pop(size, None)
        while len(self._graphs) >= self.max_graphs:
            self._graphs.popitem(last=False)
        failure = None
        try:
            self._graphs[size] = self._new_step(model, cache, step)
        except torch.cuda.OutOfMemoryError:
            self._too_large.add(_rows_and_length(cache))
            failure = _OUT_OF_MEMORY
        except Exception as error:  # layers, drivers and allocators raise errors of any type
            message = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
            self._uncapturable = failure = f"the step cannot be captured ({message})"
        # Not inside `except`, where the error's traceback still holds the tensors of the capture.
        if failure is not None:
            self._free_graphs()
            self.warn_once(failure)

    def _new_step(self, model: BareModel, cache: StaticCache, step: StepInput) -> CapturedStep:
        """Capture a step with this cache and return it; the length of the cache is the same afterwards."""
        before = CacheState(cache)
        inputs = with_copied_tensors(step)
        pool_of = next((captured.graph for captured in self._graphs.values()), None)
        graph = self._graph_class(step.tokens.device, pool_of)
        try:
            graph.rehearse(lambda: self._run(model, cache, inputs))
            before.restore()
            output = graph.capture(lambda: self._run(model, cache, inputs))
        finally:
            before.restore()
        return CapturedStep(graph, cache, inputs, output)

    def _check(self, captured: CapturedStep, model: BareModel, cache: StaticCache, step: StepInput) -> StepOutput:
        """Run a plain step and a graph's first replay on the same input, and return the output of the replay.

        If they disagree, drop all graphs, let all later steps be plain, and return the output of the plain step.
        """
        before = CacheState(cache)
        plain = self._run(model, cache, step)
        try:
            after = CacheState(cache, with_contents=True)
        except torch.cuda.OutOfMemoryError:
            self._free_graphs()
            self._too_large.add(_rows_and_length(cache))
            self.warn_once(_OUT_OF_MEMORY)
            return plain
        before.restore()
        replayed = captured.replay(step)
        if agree(plain, replayed, cache) and after.agrees_with(cache):
            captured.checked = True
            return replayed
        self._has_disagreed = True
        self._free_graphs()
        self.warn_once(_DISAGREED)
        after.restore()
        return plain

    def _free_graphs(self) -> None:
        """Drop all graphs and return their memory to the device."""
        self._graphs.clear()
        torch.cuda.empty_cache()

    def rewind(self, cache: Cache, count: int) -> None:
        """Remove the last `count` positions from the cache, in place.

        Only the length of a static cache is lowered; the next step overwrites the removed positions.
        """
        if not isinstance(cache, StaticCache):
            return self._plain.rewind(cache, count)
        for layer in cache.layers:
            layer.cumulative_length.sub_(count)
        return None


def _rows_and_length(cache: StaticCache) -> tuple[int, int]:
    """Return the number of rows (sequences) of a static cache and the number of its positions."""
    return cache.layers[0].keys.shape[0], cache.get_max_length()


def _make_decoder(max_graphs: int, run_step: Callable[..., StepOutput], graph_class: type[Graph]) -> CapturedDecoder:
    """Return a new decoder; copying and pickling call this function."""
    return CapturedDecoder(max_graphs, run_step=run_step, graph_class=graph_class)


__all__ = ["CapturedDecoder"]
