"""The class `AnswerCache`, a key-value cache with which `generate` answers in fast steps, and the mixin that makes it.

transformers' own `generate` runs the loop of an answer: it chooses tokens and decides when to stop. Everything in it
that takes time is one call of the model per token. A model that finds an `AnswerCache` among its arguments computes
this call as a step of the decoder that also generates images: with layers that launch few kernels, from a captured
graph, or with packed layers.

In shapes, `R` is the number of rows (answers), `T` the length of the prompts, and `V` the size of the text vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from ..decoders import (
    CapturedDecoder,
    CompiledDecoder,
    Decoder,
    PlainDecoder,
    StepInput,
    TextHead,
    few_kernels_pay,
    fingerprint,
    step_modules,
    why_not_capturable,
)
from ..images import ImageGenerationMixin
from ..kernels.attention_kernels import repeatable_attention


# Number of positions for which a cache has room beyond those that are written. Most answers are shorter.
_ROOM = 512


class AnswerMixin(ImageGenerationMixin):
    """Mixin that adds the method `answer_cache` to a model that generates images and has a text head."""

    lm_head: nn.Module

    @contextmanager
    def answer_cache(self, length: int) -> Iterator["AnswerCache"]:
        """Return a context manager with a cache for one call of `generate(past_key_values=...)`, which makes it fast.

        All token ids must be those of text and image placeholders; there must be no beams, and only one answer to each
        prompt. Threads that answer with a captured model take turns.

        Args:
            length: Largest number of positions, prompt and answer together.
        """
        with self._decoder.turn(self), repeatable_attention():
            yield AnswerCache(self, length)


class AnswerCache(DynamicCache):
    """Key-value cache of a batch of answers, which computes the text logits of single tokens by a decoder's steps.

    The prompts fill it as they fill transformers' growing cache, whose methods it has until the first step. The first
    step moves keys and values to a cache of the decoder. Where steps would save nothing, or are impossible (see
    `why_not_capturable`), it stays a growing cache.

    Args:
        owner: The whole model.
        length: Largest number of positions.
    """

    layers: list[CacheLayerMixin]

    def __init__(self, owner: AnswerMixin, length: int) -> None:
        super().__init__(config=owner.config.text_config)
        self._owner, self._most = owner, length
        self._is_growing: bool | None = None  # None until the first single token
        self._capacity = self._written = 0
        self._decoder: Decoder  # its `running` surrounds every step
        self._steps: Decoder  # its `step` computes it

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of written positions."""
        length: int = self._written or super().get_seq_length(layer_idx)
        return length

    # Compiled and captured decoders keep tensors for later calls, and those must not be inference tensors.
    @torch.inference_mode(False)
    @torch.no_grad()
    def next_logits(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Run a step over one token of each answer and return its text logits `(R, 1, V)`, or None if it is no step.

        If the result is None, the caller runs the model as with any other cache. The next step may overwrite it.

        Args:
            input_ids: `(R, n)` ids of text tokens; a step has one for each row.
            attention_mask: `(R, T)`, 0 on padding, for the positions in the cache and the new one; or None.
            position_ids: `(R, 1)` position of the token, without padding.
        """
        if self._is_growing or input_ids.shape[1] != 1 or position_ids is None or not self.get_seq_length():
            return None
        if self._is_growing is None:
            self._choose_decoder(input_ids.device)
            if self._is_growing:
                return None
        if self.get_seq_length() == self._capacity:
            self._move(attention_mask, input_ids)
        step = StepInput(input_ids, self._mask, position_ids, self._one, self._text_head)
        with self._decoder.running(self._owner.model):
            output = self._steps.step(self._owner.model, self._cache, step)
        self._written += 1
        return output.logits

    def _choose_decoder(self, device: torch.device) -> None:
        """Choose the decoder of the steps, or let the cache stay a growing one."""
        model, head, decoder = self._owner.model, self._owner.lm_head, self._owner._decoder
        embeddings = model.language_model.get_input_embeddings()
        around = [module for part in (embeddings, head) for module in part.modules()]
        modules = [*step_modules(model), *around]
        reason = why_not_capturable(modules, model.language_model.config, self._owner)
        if reason is not None and isinstance(decoder, CapturedDecoder):
            decoder.warn_once(reason)
        pays = few_kernels_pay(device)
        self._is_growing = reason is not None or (isinstance(decoder, PlainDecoder) and not pays)
        if self._is_growing:
            return
        self._decoder = self._steps = decoder
        if isinstance(decoder, CompiledDecoder):
            # Compiling a step of answers too would take as long as for images. They run in few kernels on a GPU, and
            # with the layers that were packed for images on a CPU.
            self._steps = PlainDecoder()
            self._decoder = self._steps if pays else decoder
        self._decoder.prepare(model)
        if isinstance(self._decoder, CompiledDecoder):
            self._is_growing = not self._decoder.has_packed_layers
        self._text_head = TextHead(embeddings, head, fingerprint(around))
        self._capacity = self.get_seq_length()

    def _move(self, attention_mask: torch.Tensor | None, input_ids: torch.Tensor) -> None:
        """Move keys and values to a larger cache of the decoder."""
        written = self.get_seq_length()
        length = max(written + 1, min(self._most, written + _ROOM))
        config, rows = self._owner.config.text_config, len(input_ids)
        cache = self._steps.make_cache("static", config, rows, length)
        # Decoders round the length up. A larger cache is then never the one that is full.
        self._capacity = cache.get_max_length()
        for number, layer in enumerate(self._cache.layers if self._written else self.layers):
            cache.update(layer.keys[:, :, :written], layer.values[:, :, :written], number)
        self._cache: Cache = cache
        self.layers = []  # frees the growing cache
        mask = input_ids.new_ones(rows, written) if attention_mask is None else attention_mask[:, :written]
        self._mask = self._steps.make_mask(mask, cache, self._capacity)
        self._one = torch.ones(1, dtype=torch.long, device=input_ids.device)
        self._written = written


def next_logits(
    cache: Cache | None,
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
) -> torch.Tensor | None:
    """Return the text logits `(R, 1, V)` that a step of an `AnswerCache` computes, or None if the call is no step.

    See `AnswerCache.next_logits`.
    """
    if input_ids is None or not isinstance(cache, AnswerCache):
        return None
    return cache.next_logits(input_ids, attention_mask, position_ids)


__all__ = ["AnswerCache", "AnswerMixin", "next_logits"]
