"""Drawing: prompt ids in, image codes out. No tokenizer, no pictures, no text.

A picture is `P` codes sampled one after another by the language model under classifier-free guidance: with a scale
other than 1 every prompt runs twice, once as it is and once as its unconditional twin, whose text is replaced by
padding tokens that ARE attended to (deepseek-ai/Janus generation_inference.py). Twins have the prompt's length, so
their rows share one cache.

`B` pictures, `R` rows (`B`, or `2 B` with guidance: conditional rows first), `T` prompt length, `P` codes per picture,
`K` codebook entries.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers.cache_utils import Cache, DynamicCache, StaticCache
from transformers.utils import ModelOutput

from .sampling import Generators, check_codes, draw_uniforms, guide, make_warpers, sample


GUIDANCE_SCALE = 5.0  # deepseek-ai/Janus generation_inference.py: cfg_weight

StepCallback = Callable[[int, torch.Tensor], torch.Tensor | None]


@dataclass
class ImageGenerationOutput(ModelOutput):
    """What `generate_images(return_dict_in_generate=True)` returns; the steps of a given prefix are not included."""

    image_ids: torch.Tensor | None = None  # (B, P) int64
    logits: torch.Tensor | None = None  # (B, steps, K) float32, after guidance
    scores: torch.Tensor | None = None  # (B, steps, K) float32, after guidance, temperature, top-k and top-p


class ImageGenerationMixin:
    """Adds `generate_images` to a model with `model.language_model`, `.generation_head` and `.embed_image_ids`."""

    config: Any
    model: Any
    generation_config: Any

    @torch.no_grad()
    def generate_images(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        negative_input_ids: torch.Tensor | None = None,
        negative_attention_mask: torch.Tensor | None = None,
        guidance_scale: float | None = None,
        do_sample: bool = True,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: Generators = None,
        image_ids: torch.Tensor | None = None,
        cache_implementation: Literal["static", "dynamic"] = "static",
        pad_token_id: int | None = None,
        callback: StepCallback | None = None,
        output_logits: bool = False,
        output_scores: bool = False,
        return_dict_in_generate: bool = False,
    ) -> torch.Tensor | ImageGenerationOutput:
        """Draw one picture per prompt, as codes.

        Args:
            input_ids: `(B, T)` prompts, left-padded, each from `<begin_of_sentence>` to `<begin_of_image>`
                (`processor.prepare_image_generation`).
            attention_mask: `(B, T)`, 0 on the left padding; None when there is none.
            negative_input_ids: `(B, T')` prompts to be guided away from, in place of the unconditional twins; with
                `negative_attention_mask` `(B, T')`. They need a `guidance_scale` other than 1.
            guidance_scale: How far to move from the unconditional logits. 1 draws from the prompt alone and costs
                half; values of 0 and up. None is the model's own: `generation_config.image_guidance_scale` if it has
                one, else the original's 5. (`generation_config.guidance_scale` is about text.)
            do_sample: False takes the most likely code at every step.
            temperature: Positive; divides the logits.
            top_k: Draw among so many codes only. None (as the original): among all.
            top_p: Draw among the likeliest codes that hold this much probability. None: all.
            generator: One `torch.Generator` per picture (same seed, same picture, whatever it is batched with), or one
                for all.
            image_ids: `(B, p)` codes to continue from, `p <= P`; they are the first `p` of every result.
            cache_implementation: "static" allocates `T + P` positions at once, "dynamic" grows.
            pad_token_id: What the unconditional twin is made of; by default that of `generation_config`.
            callback: Called after every code with the step and the codes so far `(B, step + 1)`; may return `(B,)`
                codes to use instead of those just drawn.
            output_logits, output_scores: Collect them over all steps (see `ImageGenerationOutput`).
            return_dict_in_generate: Return an `ImageGenerationOutput` instead of the codes.

        Returns:
            `(B, P)` int64 codes in `[0, K)`: decode them with `decode_image_ids`.

        Raises:
            ValueError: If an argument is out of range, shapes disagree, or prompt and picture exceed the context.
            FloatingPointError: If the model's logits stop being finite; nothing is drawn from them.
        """
        config = self.config
        num_codes, codebook = config.vq_config.num_image_tokens, config.vq_config.num_embeddings
        if guidance_scale is None:
            guidance_scale = getattr(self.generation_config, "image_guidance_scale", GUIDANCE_SCALE)
        if not guidance_scale >= 0:
            raise ValueError(
                f"guidance_scale must be 0 or more, got {guidance_scale}. 1 draws without guidance, 5 is the "
                "original's."
            )
        guided = guidance_scale != 1
        if negative_input_ids is not None and not guided:
            raise ValueError(
                "A negative prompt acts through guidance: set guidance_scale above 1, or leave the negative prompt "
                "out."
            )
        warpers = make_warpers(temperature, top_k, top_p)

        ids_RT, mask_RT = _check_prompts(input_ids, attention_mask, "input_ids")
        if guided and negative_input_ids is None:
            ids_RT, mask_RT = _with_unconditional_twins(ids_RT, mask_RT, self._pad_token_id(pad_token_id))
        elif negative_input_ids is not None:
            ids_RT, mask_RT = _with_negative_prompts(
                ids_RT, mask_RT, *_check_prompts(negative_input_ids, negative_attention_mask, "negative_input_ids")
            )
        batch_size, length = len(input_ids), ids_RT.shape[1]
        if length + num_codes > (limit := config.text_config.max_position_embeddings):
            raise ValueError(
                f"The prompt has {length} tokens and a picture takes {num_codes} more, but the model's context holds "
                f"{limit}. Shorten the prompt to {limit - num_codes} tokens."
            )
        given = _check_prefix(image_ids, batch_size, num_codes, codebook, ids_RT.device)
        first = given.shape[1]

        device = ids_RT.device
        uniforms = draw_uniforms(batch_size, num_codes, generator, device) if do_sample else None
        codes = torch.zeros(batch_size, num_codes, dtype=torch.long, device=device)
        codes[:, :first] = given
        if first == num_codes:
            return ImageGenerationOutput(image_ids=codes) if return_dict_in_generate else codes

        cache = _make_cache(cache_implementation, config.text_config, length + num_codes)
        rows = _Rows(self, mask_RT, num_codes, cache)
        embeds = self.model.embed_ids(ids_RT)
        if first:
            embeds = torch.cat([embeds, rows.repeat(self.model.embed_image_ids(given))], dim=1)
        hidden_RD = rows.step(embeds)

        all_logits, all_scores = [], []
        finite = torch.ones((), dtype=torch.bool, device=device)
        for step in range(first, num_codes):
            logits = self.model.generation_head(hidden_RD).float()
            if guided:
                conditional, unconditional = logits.chunk(2)
                logits = guide(conditional, unconditional, guidance_scale)
            scores = warpers(codes, logits)
            codes[:, step] = scores.argmax(dim=-1) if uniforms is None else sample(scores, uniforms[:, step])

            finite &= logits.isfinite().all()
            end_of_row = (step + 1) % config.vq_config.num_patches == 0  # looking at `finite` waits for the device
            if end_of_row and not finite:
                raise FloatingPointError(
                    f"The model's image logits are not finite (seen by code {step} of {num_codes}), so there is "
                    "nothing to draw from. Load the model in bfloat16 or float32 (float16 overflows), and check the "
                    "weights."
                )
            if output_logits:
                all_logits.append(logits)
            if output_scores:
                all_scores.append(scores)
            if callback is not None and (replaced := callback(step, codes[:, : step + 1])) is not None:
                codes[:, step] = _check_replacement(replaced, batch_size, codebook)
            if step + 1 < num_codes:
                hidden_RD = rows.step(rows.repeat(self.model.embed_image_ids(codes[:, step : step + 1])))

        if not return_dict_in_generate:
            return codes
        return ImageGenerationOutput(
            image_ids=codes,
            logits=torch.stack(all_logits, dim=1) if output_logits else None,
            scores=torch.stack(all_scores, dim=1) if output_scores else None,
        )

    def _pad_token_id(self, given: int | None) -> int:
        pad_token_id = self.generation_config.pad_token_id if given is None else given
        if pad_token_id is None:
            raise ValueError(
                "The unconditional prompt is made of padding tokens and the model does not know their id: pass "
                "pad_token_id=processor.pad_token_id, or set it in model.generation_config."
            )
        return int(pad_token_id)


class _Rows:
    """The rows that run through the language model together: their mask, positions and cache."""

    def __init__(self, model: Any, mask_RT: torch.Tensor, num_codes: int, cache: Cache) -> None:
        self.language_model = model.model.language_model
        self.cache = cache
        self.seen = 0
        # Without padding no mask is needed, and attention kernels may take their causal path.
        self.mask = (
            None if bool(mask_RT.all()) else torch.cat([mask_RT, mask_RT.new_ones(len(mask_RT), num_codes)], dim=1)
        )
        lengths = mask_RT.sum(dim=-1, keepdim=True)
        after = lengths + torch.arange(num_codes, device=mask_RT.device)
        self.positions = torch.cat([(mask_RT.cumsum(dim=-1) - 1).clamp(min=0), after], dim=1)
        self.count = len(mask_RT)

    def repeat(self, embeds: torch.Tensor) -> torch.Tensor:
        """`(B, n, D)` -> `(R, n, D)`: conditional and unconditional rows continue with the same codes."""
        return embeds if len(embeds) == self.count else torch.cat([embeds, embeds])

    def step(self, embeds: torch.Tensor) -> torch.Tensor:
        """Feed `(R, n, D)` embeddings; returns the last hidden states `(R, D)`."""
        before, self.seen = self.seen, self.seen + embeds.shape[1]
        # A static cache attends over its whole length: its mask is constant and causality hides what is not yet
        # written.
        length = None if isinstance(self.cache, StaticCache) else self.seen
        outputs = self.language_model(
            inputs_embeds=embeds,
            attention_mask=None if self.mask is None else self.mask[:, :length],
            position_ids=self.positions[:, before : self.seen],
            past_key_values=self.cache,
            use_cache=True,
        )
        return outputs.last_hidden_state[:, -1]


def _make_cache(implementation: str, text_config: Any, length: int) -> Cache:
    if implementation == "static":
        return StaticCache(config=text_config, max_cache_len=length)
    if implementation == "dynamic":
        return DynamicCache(config=text_config)
    raise ValueError(f"cache_implementation must be 'static' or 'dynamic', got {implementation!r}.")


def _check_prompts(ids: torch.Tensor, mask: torch.Tensor | None, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    if ids.ndim != 2 or 0 in ids.shape:
        raise ValueError(f"Expected {name} of shape (B, T) with at least one prompt, got {tuple(ids.shape)}.")
    mask = torch.ones_like(ids) if mask is None else mask.to(ids)
    if mask.shape != ids.shape:
        raise ValueError(
            f"The attention mask of {name} must have its shape {tuple(ids.shape)}, got {tuple(mask.shape)}."
        )
    if not bool(mask[:, -1].all()) or bool((mask.diff(dim=-1) < 0).any()):
        raise ValueError(
            f"{name} must be padded on the left only: a picture continues at the last position of every row."
        )
    return ids, mask


def _with_unconditional_twins(
    ids: torch.Tensor, mask: torch.Tensor, pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(B, T)` -> `(2B, T)`: each twin keeps the first and the last real id and has (attended) padding tokens
    between.
    """
    keep = torch.zeros_like(ids, dtype=torch.bool)
    keep[torch.arange(len(ids), device=ids.device), mask.argmax(dim=-1)] = True
    keep[:, -1] = True
    twins = torch.where(keep, ids, pad_token_id)
    return torch.cat([ids, twins]), torch.cat([mask, mask])


def _with_negative_prompts(
    ids: torch.Tensor, mask: torch.Tensor, negative_ids: torch.Tensor, negative_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts and negative prompts `(B, T)`, `(B, T')` -> `(2B, max(T, T'))`, left-padded to a common length."""
    if len(negative_ids) != len(ids):
        raise ValueError(f"Expected one negative prompt per prompt, {len(ids)} in all, got {len(negative_ids)}.")
    length = max(ids.shape[1], negative_ids.shape[1])

    def pad(tensor: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(tensor, (length - tensor.shape[1], 0))

    return torch.cat([pad(ids), pad(negative_ids.to(ids))]), torch.cat([pad(mask), pad(negative_mask.to(mask))])


def _check_prefix(
    image_ids: torch.Tensor | None, batch_size: int, num_codes: int, codebook: int, device: torch.device
) -> torch.Tensor:
    if image_ids is None:
        return torch.empty(batch_size, 0, dtype=torch.long, device=device)
    if image_ids.ndim != 2 or len(image_ids) != batch_size or image_ids.shape[1] > num_codes:
        raise ValueError(
            f"Expected image_ids of shape ({batch_size}, p) with p <= {num_codes} codes to continue from, got "
            f"{tuple(image_ids.shape)}."
        )
    check_codes(image_ids, codebook)
    return image_ids.to(device=device, dtype=torch.long)


def _check_replacement(codes: torch.Tensor, batch_size: int, codebook: int) -> torch.Tensor:
    if tuple(codes.shape) != (batch_size,):
        raise ValueError(f"The callback may return codes of shape ({batch_size},), got {tuple(codes.shape)}.")
    check_codes(codes, codebook)
    return codes


@torch.no_grad()
def draw_reference(
    model: Any, input_ids: torch.Tensor, *, guidance_scale: float = 5.0, uniforms: torch.Tensor | None = None
) -> torch.Tensor:
    """The drawing loop as plainly as it can be said: no cache, no padding, everything recomputed. For tests.

    Args:
        input_ids: `(B, T)` prompts of equal length.
        uniforms: `(B, P)` numbers to sample with (`draw_uniforms`), or None for the most likely codes.
    """
    rows, _ = _with_unconditional_twins(input_ids, torch.ones_like(input_ids), model.generation_config.pad_token_id)
    codes = input_ids.new_empty(len(input_ids), 0)
    for step in range(model.config.vq_config.num_image_tokens):
        embeds = torch.cat([model.model.embed_ids(rows), model.model.embed_image_ids(codes.repeat(2, 1))], dim=1)
        hidden = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, -1]
        conditional, unconditional = model.model.generation_head(hidden).float().chunk(2)
        logits = guide(conditional, unconditional, guidance_scale)
        drawn = logits.argmax(dim=-1) if uniforms is None else sample(logits, uniforms[:, step])
        codes = torch.cat([codes, drawn.unsqueeze(-1)], dim=1)
    return codes


__all__ = ["ImageGenerationMixin", "ImageGenerationOutput", "draw_reference"]
