"""One batch of pictures being drawn: which codes are certain, which are guessed, and the steps that draw more.

Several codes may be drawn by one step of the language model: it is fed the last code that is certain and guesses of
those that follow, and draws a code after each. A draw is what drawing one by one would have given if all guesses
before it were right, since a code's noise depends on its place and not on when it is drawn; the others are the next
step's guesses. This is Jacobi iteration (https://arxiv.org/abs/2410.01699 drafts alike, and then accepts at random);
the pictures are those of the plain loop.

`B` pictures, `R` rows (`B`, or `2 B` with guidance: conditional rows first), `T` prompt length, `P` codes per picture,
`K` codebook entries, `n` codes fed at once.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, StaticCache

from .decoding import DrawnCodes, draw_from
from .sampling import Sampling, check_codes


StepCallback = Callable[[int, torch.Tensor], torch.Tensor | None]


class Drawing:
    """One batch of pictures being drawn: the codes so far, what follows them for now, and the rows' cache.

    `start`, then by turns `num_right` and `keep` (how many of the codes just drawn are right) and `step` (draw more).

    Attributes:
        codes: `(B, P + n)`: `known` codes that are final, then guesses.
        logits, scores: `(B, 1 or n, K)` of the codes just drawn.
    """

    logits: torch.Tensor
    scores: torch.Tensor

    def __init__(
        self,
        model: Any,
        ids_RT: torch.Tensor,
        mask_RT: torch.Tensor,
        given: torch.Tensor,
        cache_implementation: str,
        window: int,
        guidance_scale: torch.Tensor | None,
        sampling: Sampling,
        keys: torch.Tensor,
    ) -> None:
        config = model.config
        self.model, self.decoder = model.model, model._decoder
        self.decoder.prepare(self.model)
        self.ids, self.prompt_mask, self.length = ids_RT, mask_RT, ids_RT.shape[1]
        self.num_codes, self.grid = config.vq_config.num_image_tokens, config.vq_config.num_patches
        self.codebook = config.vq_config.num_embeddings
        self.window = window
        self.rest = (keys, guidance_scale, sampling)
        self.num_model_steps = 0

        # The last steps feed and draw codes past the picture's end, so that all are of one size.
        size, device = self.num_codes + window, ids_RT.device
        self.known = given.shape[1]
        self.codes = torch.zeros(len(given), size, dtype=torch.long, device=device)
        self.codes[:, : self.known] = given
        self.places = torch.arange(size + 1, device=device)
        total = self.length + size
        self.cache = self.decoder.make_cache(cache_implementation, config.text_config, len(ids_RT), total)
        self.mask = self.decoder.make_mask(mask_RT, self.cache, total)
        self.lengths = mask_RT.sum(dim=-1, keepdim=True)

    def start(self) -> None:
        """Run the prompts and the given codes, and draw the first code.

        Rows that are equal, as the unconditional ones of prompts of one length are, run once.
        """
        given = self.codes[:, : self.known]
        given = given.repeat(len(self.ids) // len(given), 1)
        unique, which = torch.unique(torch.cat([self.ids, self.prompt_mask, given], dim=1), dim=0, return_inverse=True)
        ids, mask, given = unique.split([self.length, self.length, self.known], dim=1)
        mask = torch.cat([mask, torch.ones_like(given)], dim=1)
        with self.decoder.running(self.model):
            embeds = self.model.embed_ids(ids)
            if self.known:
                embeds = torch.cat([embeds, self.model.embed_image_ids(given)], dim=1)
            outputs = self.model.language_model(
                inputs_embeds=embeds,
                attention_mask=None if bool(mask.all()) else mask,
                position_ids=_positions(mask),
                past_key_values=DynamicCache(config=self.model.language_model.config),
                use_cache=True,
            )
            for number, layer in enumerate(outputs.past_key_values.layers):
                rows = which.to(layer.keys.device)
                self.cache.update(layer.keys[rows], layer.values[rows], number)
            hidden = outputs.last_hidden_state[:, -1:]
            self._draw(draw_from(self.model, hidden[which.to(hidden.device)], self._next(1), *self.rest))

    def step(self) -> None:
        """Feed the last code and what is guessed to follow, and draw as many."""
        before = self.known - 1
        mask = self.mask
        # A compiled step's mask has its cache's length, at every step: causality hides what is not written.
        if mask is not None and not isinstance(self.cache, StaticCache):
            mask = mask[:, : self.length + before + self.window]
        self._draw(
            self.decoder.step(
                self.model,
                self.cache,
                self.codes[:, before : before + self.window],
                mask,
                self.lengths,
                self._next(self.window),
                *self.rest,
            )
        )

    def _next(self, count: int) -> torch.Tensor:
        return self.places[self.known : self.known + count]

    def _draw(self, drawn: DrawnCodes) -> None:
        self.drawn, self.logits, self.scores = drawn
        self.num_model_steps += 1

    def num_right(self) -> int:
        """How many of the codes just drawn are final, in all pictures: one more than guesses that came true."""
        count = self.drawn.shape[1]
        if count == 1:
            return 1  # without waiting for the device
        guessed = self.codes[:, self.known : self.known + count - 1]
        came_true = (guessed == self.drawn[:, :-1]).cumprod(dim=1).sum(dim=1)
        return min(int(came_true.min()) + 1, self.num_codes - self.known)

    def show(self, count: int, callback: StepCallback) -> int:
        """Let the callback see, and replace, the next codes; returns how many are final then."""
        for number in range(count):
            place = self.known + number
            self.codes[:, place] = self.drawn[:, number]
            if (replaced := callback(place, self.codes[:, : place + 1])) is not None:
                self.drawn[:, number] = _check_replacement(replaced, len(self.codes), self.codebook)
                return number + 1
        return count

    def keep(self, count: int) -> None:
        """Make the next `count` codes final; the others just drawn become guesses."""
        drawn = self.known + self.drawn.shape[1]
        self.codes[:, self.known : drawn] = self.drawn[:, : self.codes.shape[1] - self.known]
        self.known += count
        if self.window == 1:
            return
        for place in range(drawn, min(self.known + self.window - 1, self.codes.shape[1])):
            above = place - self.grid
            self.codes[:, place] = self.codes[:, above if above >= 0 else drawn - 1]
        _forget_last(self.cache, self.drawn.shape[1] - count)


def _positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(dim=-1) - 1).clamp(min=0)


def _forget_last(cache: Cache, count: int) -> None:
    if count == 0:
        return
    if isinstance(cache, StaticCache):
        for layer in cache.layers:
            layer.cumulative_length.sub_(count)  # what lies beyond is hidden by causality, then overwritten
    else:
        cache.crop(-count)


def _check_replacement(codes: torch.Tensor, batch_size: int, codebook: int) -> torch.Tensor:
    if tuple(codes.shape) != (batch_size,):
        raise ValueError(f"The callback may return codes of shape ({batch_size},), got {tuple(codes.shape)}.")
    check_codes(codes, codebook)
    return codes


__all__ = ["Drawing", "StepCallback"]
