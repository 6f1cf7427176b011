"""The class `Drawing`: the state of one batch of images during generation, and the steps that sample its tokens.

A step (one run of the language model) may sample several tokens of an image. The model is fed the last final token and
guesses of the tokens that follow, and one token is sampled after each of them. A sampled token equals that of the
plain loop (one token per step) if all guesses before it were correct, because its noise depends on its position and
not on the step that samples it. Such tokens are accepted, that is, made final; the other sampled tokens become guesses
of the next step. This is Jacobi iteration, and the images are those of the plain loop
(https://arxiv.org/abs/2410.01699 guesses in the same way, but then accepts at random).

In shapes, `B` is the number of images, `R` the number of rows (sequences that the language model runs: `B`, or `2 B`
with guidance, conditional rows first), `T` the prompt length, `P` the number of tokens per image, `K` the number of
codebook entries, and `n` the number of tokens fed at once (the window).
"""

import dataclasses
from collections.abc import Callable

import torch
from transformers.cache_utils import DynamicCache

from ..errors import not_finite
from ..protocols import BareModel
from .decoders import CompiledDecoder, Decoder, StepInput, StepOutput, draw_from, few_kernels_pay
from .sampling import Draw, NoiseAhead, Sampling, check_codes


# Function that receives a position and the tokens up to it `(B, position + 1)`, and may return `(B,)` tokens instead.
StepCallback = Callable[[int, torch.Tensor], torch.Tensor | None]


class Drawing:
    """State of one batch of images during generation: final tokens, guesses of further tokens, and key-value cache.

    Call `start` once. Then repeat: `num_accepted` (return how many of the sampled tokens are correct), `accept` (make
    them final), `step` (sample further tokens).

    A row is a sequence that the language model runs. `B` images have `R` rows: `R = B`, or with guidance `R = 2 B`,
    conditional rows first.

    Args:
        model: The model without its text head.
        decoder: Decoder that runs the steps.
        ids_RT: Token ids of the prompts of all rows, `(R, T)` int64.
        mask_RT: Attention mask of these prompts, `(R, T)` int64, 0 on the left padding.
        given: `(B, p)` int64, the first `p` tokens of every image, which are not generated; `p` may be 0.
        draw: Random keys, guidance scale and sampling settings of the batch.
        cache_implementation: "static" or "dynamic", as in `generate_images`.
        window: Number `n` of tokens that a step feeds for each image; with 1 there are no guesses.

    Attributes:
        tokens: `(B, P + n)` int64, where `P` is the number of tokens per image: first `num_final` final tokens, then
            guesses.
        num_final: Number of final tokens, the same for all images of the batch.
        sampled: `(B, 1 or n)` int64 tokens that the last run of the language model sampled for the positions from
            `num_final` on: 1 per image after `start`, `n` after `step`.
        logits: `(B, 1 or n, K)` float32 logits of the sampled tokens over `K` codebook entries, after guidance.
        scores: `(B, 1 or n, K)` float32 scores of the sampled tokens, after guidance, temperature, top-k and top-p.
        num_model_steps: Number of runs of the language model so far, including the prompt's.

    Raises:
        ValueError: If the decoder does not support `cache_implementation`.
    """

    sampled: torch.Tensor
    logits: torch.Tensor
    scores: torch.Tensor

    def __init__(
        self,
        *,
        model: BareModel,
        decoder: Decoder,
        ids_RT: torch.Tensor,
        mask_RT: torch.Tensor,
        given: torch.Tensor,
        draw: Draw,
        cache_implementation: str,
        window: int,
    ) -> None:
        text, vq = model.config.text_config, model.config.vq_config
        self.model, self.decoder, self.draw, self.window = model, decoder, draw, window
        # `prepare` is called before `make_cache`, because a decoder may drop its caches if the model has changed.
        self.decoder.prepare(model)
        self.ids, self.prompt_mask, self.length = ids_RT, mask_RT, ids_RT.shape[1]
        self.num_tokens, self.columns, self.codebook_size = vq.num_image_tokens, vq.num_patches, vq.num_embeddings
        self.num_model_steps = 0

        # All steps have the same size, so the last step feeds and samples tokens past the end of the image.
        size, device = self.num_tokens + window, ids_RT.device
        self.num_final = given.shape[1]
        self.tokens = torch.zeros(len(given), size, dtype=torch.long, device=device)
        self.tokens[:, : self.num_final] = given
        self.positions = torch.arange(size + 1, device=device)
        total = self.length + size
        self.cache = decoder.make_cache(cache_implementation, text, len(ids_RT), total)
        self.mask = decoder.make_mask(mask_RT, self.cache, total)
        self.lengths = mask_RT.sum(dim=-1, keepdim=True)
        self.all_finite = torch.ones((), dtype=torch.bool, device=device)
        # A compiled step computes the noise in one kernel.
        ahead = draw.sampling.do_sample and few_kernels_pay(device) and not isinstance(decoder, CompiledDecoder)
        self._noise = NoiseAhead(draw.keys, self.codebook_size) if ahead else None

    def start(self) -> None:
        """Run the prompts and the given image tokens, and sample the next token of every image.

        Equal rows (sequences that the language model runs) are run only once.
        """
        given = self.tokens[:, : self.num_final]
        given = given.repeat(len(self.ids) // len(given), 1)
        # Prompts of the same length have the same unconditional row, and equal prompts give equal rows.
        unique, row_of = _distinct_rows(torch.cat([self.ids, self.prompt_mask, given], dim=1))
        ids, mask, given = unique.split([self.length, self.length, self.num_final], dim=1)
        mask = torch.cat([mask, torch.ones_like(given)], dim=1)
        with self.decoder.running(self.model):
            embeds = self.model.embed_ids(ids)
            if self.num_final:
                embeds = torch.cat([embeds, self.model.embed_image_ids(given)], dim=1)
            # The prompt runs in a cache of its own, whose rows are then copied to all rows of the batch.
            outputs = self.model.language_model(
                inputs_embeds=embeds,
                attention_mask=None if bool(mask.all()) else mask,
                position_ids=(mask.cumsum(dim=-1) - 1).clamp(min=0),
                past_key_values=DynamicCache(config=self.model.language_model.config),
                use_cache=True,
            )
            # If a model is spread over several devices, the cache of each layer is on that layer's device.
            for number, layer in enumerate(outputs.past_key_values.layers):
                rows = row_of.to(layer.keys.device)
                self.cache.update(layer.keys[rows], layer.values[rows], number)
            hidden = outputs.last_hidden_state[:, -1:]
            hidden = hidden[row_of.to(hidden.device)]
            self._store(draw_from(self.model, hidden, self._next_positions(1), self._next_draw(1)))

    def step(self) -> None:
        """Feed the last final token and the guesses after it, and sample one token after each of them.

        A guess is a token that is assumed to come next. The sampled tokens are stored in `sampled`.
        """
        fed = self.tokens[:, self.num_final - 1 : self.num_final - 1 + self.window]
        step = StepInput(fed, self.mask, self.lengths, self._next_positions(self.window), self._next_draw(self.window))
        self._store(self.decoder.step(self.model, self.cache, step))

    def _next_positions(self, count: int) -> torch.Tensor:
        """Return the positions in the image of the next `count` tokens to sample: `(count,)` int64."""
        return self.positions[self.num_final : self.num_final + count]

    def _next_draw(self, count: int) -> Draw:
        """Return the settings of the batch, with the noise of the next `count` tokens if it is computed ahead."""
        if self._noise is None:
            return self.draw
        return dataclasses.replace(self.draw, noise=self._noise.at(self.num_final, count))

    def _store(self, output: StepOutput) -> None:
        """Store the tokens, logits and scores that a run of the language model sampled, and count the run."""
        self.sampled, self.logits, self.scores = output
        self.num_model_steps += 1

    def num_accepted(self) -> int:
        """Return the number of sampled tokens that are correct and can be made final, the same for all images.

        Guesses are the tokens that the last step was fed as the assumed next ones. The result is the length of the
        longest prefix of correct guesses common to all images, plus one, but no more than an
        image still needs. With a window of 1 the method does not wait for the device.
        """
        count = self.sampled.shape[1]
        if count == 1:
            return 1
        # The first sampled token follows a final token and so is always accepted; the others need correct guesses.
        guesses = self.tokens[:, self.num_final : self.num_final + count - 1]
        num_correct = (guesses == self.sampled[:, :-1]).cumprod(dim=1).sum(dim=1)
        return min(int(num_correct.min()) + 1, self.num_tokens - self.num_final)

    def check_logits(self, count: int) -> None:
        """Check that the logits of the next `count` tokens are finite.

        Raises:
            FloatingPointError: If logits of this or an earlier step are not finite. The error is raised only when a
                row of the image's token grid is complete, because reading the result of the check waits for the
                device.
        """
        self.all_finite &= self.logits[:, :count].isfinite().all()
        end = self.num_final + count
        completes_row = end // self.columns > self.num_final // self.columns
        if completes_row and not self.all_finite:
            head = next(self.model.generation_head.parameters())
            raise not_finite(
                f"The model's image logits (up to image token {end - 1} of {self.num_tokens})",
                self._first_part_not_finite(),
                head.dtype,
                "load the model with dtype='bfloat16', or with dtype='float32' where the device has no bfloat16",
            )

    def _first_part_not_finite(self) -> str:
        """Return the name of the part of the model in which values that are not finite begin.

        The cache tells: keys and values of a layer are computed from the output of the layer before it.
        """
        for number, layer in enumerate(self.cache.layers):
            if not (layer.keys.isfinite().all() and layer.values.isfinite().all()):
                before = f"layer {number - 1}" if number else "the input embeddings"
                return f"the language model: {before}, or the keys and values of layer {number}"
        return "the last layer of the language model, or the image head"

    def run_callback(self, count: int, callback: StepCallback) -> int:
        """Pass the next `count` sampled tokens to the callback, one after the other, until it replaces a token.

        Args:
            count: Number of sampled tokens that can be accepted.
            callback: Function that receives a position and all tokens up to this position, `(B, position + 1)`. It
                returns None, or `(B,)` tokens to use at this position.

        Returns:
            The number of tokens to accept now. A replaced token is the last one to accept, because the tokens after it
            were sampled as successors of another token.

        Raises:
            ValueError: If the callback returns a tensor of another shape, or tokens outside the codebook.
        """
        for number in range(count):
            position = self.num_final + number
            self.tokens[:, position] = self.sampled[:, number]
            replacement = callback(position, self.tokens[:, : position + 1])
            if replacement is not None:
                self.sampled[:, number] = _check_replacement(replacement, len(self.tokens), self.codebook_size)
                return number + 1
        return count

    def accept(self, count: int) -> None:
        """Make the next `count` sampled tokens final, and set the guesses that the next step feeds after them.

        A guess is a token that is assumed to come next, so that one step can sample several tokens.
        """
        # The warm-up of a compiled decoder may go past the end of `tokens`; tokens that do not fit are dropped.
        end = self.num_final + self.sampled.shape[1]
        self.tokens[:, self.num_final : end] = self.sampled[:, : self.tokens.shape[1] - self.num_final]
        self.num_final += count
        if self.window == 1:
            return
        # Sampled tokens that were not accepted are already in place as guesses. Further guesses are copied from the
        # row above in the image, or from the last sampled token in the first row.
        for position in range(end, min(self.num_final + self.window - 1, self.tokens.shape[1])):
            above = position - self.columns
            self.tokens[:, position] = self.tokens[:, above if above >= 0 else end - 1]
        if count < self.sampled.shape[1]:
            self.decoder.rewind(self.cache, self.sampled.shape[1] - count)


def _distinct_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the distinct rows of an integer matrix `(R, N)` in ascending order, and each row's index in them."""
    # On the host, because torch before 2.10 has no kernel of `torch.unique(dim=0)` for Apple's GPUs.
    keys = [tuple(row) for row in rows.tolist()]
    index = {key: number for number, key in enumerate(sorted(set(keys)))}
    return rows.new_tensor(list(index)), rows.new_tensor([index[key] for key in keys])


def _check_replacement(tokens: torch.Tensor, batch_size: int, codebook_size: int) -> torch.Tensor:
    """Return the tokens that a callback returned, or raise a ValueError if their shape or a token is not valid.

    Args:
        tokens: Tokens to use at one position; they must be `(batch_size,)` and lie in `[0, codebook_size)`.
        batch_size: Number of images.
        codebook_size: Number of codebook entries.
    """
    if tuple(tokens.shape) != (batch_size,):
        raise ValueError(
            f"The callback must return None or tokens of shape ({batch_size},), got {tuple(tokens.shape)}: return one "
            "token per image."
        )
    check_codes(tokens, codebook_size)
    return tokens


@torch.inference_mode(False)
@torch.no_grad()
def run_first_steps(model: BareModel, decoder: Decoder, batch_size: int, window: int, guidance_scale: float) -> None:
    """Run the first steps of a batch of images with guidance, so that a decoder compiles or captures this size.

    Args:
        model: The model without its text head.
        decoder: The decoder.
        batch_size: Number of images.
        window: Number of tokens per image that a step feeds (`speculative_window`).
        guidance_scale: Any scale; its value does not matter.
    """
    device = next(model.parameters()).device
    ids = torch.zeros(2 * batch_size, 2, dtype=torch.long, device=device)
    drawing = Drawing(
        model=model,
        decoder=decoder,
        ids_RT=ids,
        mask_RT=torch.ones_like(ids),
        given=ids[:batch_size, :0],
        draw=Draw(
            keys=ids[:batch_size],
            guidance_scale=torch.tensor(guidance_scale, device=device),
            sampling=Sampling.make(True, 1.0, None, None, device),
        ),
        cache_implementation="static",
        window=window,
    )
    drawing.start()
    for _ in range(3):  # CUDA graphs are recorded at the second run
        drawing.accept(1)
        drawing.step()


__all__ = ["Drawing", "StepCallback", "run_first_steps"]
