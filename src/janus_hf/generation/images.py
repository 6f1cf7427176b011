"""Drawing: prompt ids in, image codes out. No tokenizer, no pictures, no text.

A picture is `P` codes sampled one after another by the language model under classifier-free guidance: with a scale
other than 1 every prompt runs twice, once as it is and once as its unconditional twin, whose text is replaced by
padding tokens that ARE attended to (deepseek-ai/Janus generation_inference.py). Twins have the prompt's length, so
their rows share one cache.

`B` pictures, `R` rows (`B`, or `2 B` with guidance: conditional rows first), `T` prompt length, `P` codes per picture,
`K` codebook entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers.utils import ModelOutput, logging

from .decoding import CompiledDecoder, Decoder, why_not_compilable
from .drawing import Drawing, StepCallback
from .sampling import Generators, Sampling, check_codes, draw_keys, guide, gumbel_noise


logger = logging.get_logger(__name__)

GUIDANCE_SCALE = 5.0  # deepseek-ai/Janus generation_inference.py: cfg_weight


@dataclass
class ImageGenerationOutput(ModelOutput):
    """What `generate_images(return_dict_in_generate=True)` returns; `steps` are the codes that were not given."""

    image_ids: torch.Tensor | None = None  # (B, P) int64
    logits: torch.Tensor | None = None  # (B, steps, K) float32, after guidance
    scores: torch.Tensor | None = None  # (B, steps, K) float32, after guidance, temperature, top-k and top-p
    num_model_steps: int | None = None  # runs of the language model, the prompt's among them


class ImageGenerationMixin:
    """Adds `generate_images` to a model with `model.language_model`, `.generation_head` and `.embed_image_ids`."""

    config: Any
    model: Any
    generation_config: Any
    device: torch.device
    _decoder: Decoder = Decoder()

    def compile_generation(
        self,
        enabled: bool = True,
        *,
        mode: str | None = None,
        warm_up: Sequence[int] = (),
        speculative_window: int = 1,
    ) -> bool:
        """Compile the step of `generate_images` into one graph, or go back.

        Compiling happens at the first drawing of each size (pictures at once, guidance or not, context rounded up to
        64) and takes a minute or more for a full-size model. On CUDA the graph is replayed as a CUDA graph. On a CPU
        the language model's weights are packed for its matrix kernels; that keeps a second copy of them. In
        float32 the codes are those of the plain step. While it draws, a compiled model is not to be used by
        another thread.

        Args:
            enabled: False goes back and frees graphs, caches and packed weights.
            mode: Of `torch.compile`, instead of the choice described.
            warm_up: Numbers of pictures to compile for right away, with guidance.
            speculative_window: What `generate_images` will be called with, for the warm-up.

        Returns:
            Whether the step is compiled now. False, after a warning, where `torch.compile` does not work (no C++
            compiler, no Triton): drawing then goes on as before.

        Raises:
            ValueError: If the model is spread over devices or offloaded: graphs need it in one place.
        """
        if not enabled:
            self._decoder = Decoder()
            return False
        devices = {parameter.device for parameter in self.model.parameters()}
        if len(devices) > 1 or torch.device("meta") in devices or hasattr(self, "_hf_hook"):
            raise ValueError(
                "Only a model on one device can be compiled; this one is offloaded, or on "
                f"{sorted(map(str, devices))}. Load it without device_map and without offloading."
            )
        if "flash" in str(self.config.text_config._attn_implementation):
            raise ValueError(
                "Flash-attention knows no static cache, which a compiled step needs: load the model with "
                "attn_implementation='sdpa'."
            )
        if reason := why_not_compilable(self.device):
            logger.warning(f"torch.compile does not work here, so drawing is not compiled: {reason}")
            return False
        self._decoder = CompiledDecoder(self.device, mode)
        for batch_size in warm_up:
            self._warm_up(batch_size, speculative_window)
        return True

    @torch.inference_mode(False)
    @torch.no_grad()
    def _warm_up(self, batch_size: int, window: int) -> None:
        ids = torch.zeros(2 * batch_size, 2, dtype=torch.long, device=self.device)
        scale, keys = torch.tensor(GUIDANCE_SCALE, device=self.device), ids[:batch_size]
        sampling = Sampling.make(True, 1.0, None, None, self.device)
        drawing = Drawing(
            self, ids, torch.ones_like(ids), ids[:batch_size, :0], "static", window, scale, sampling, keys
        )
        drawing.start()
        for _ in range(3):  # CUDA graphs are recorded at the second run
            drawing.keep(1)
            drawing.step()

    @torch.inference_mode(False)  # tensors that are kept for the next drawing must not be inference tensors
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
        speculative_window: int = 1,
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
            speculative_window: Feed so many codes at once, all but the first guessed: the same pictures (in float32;
                in other dtypes up to rounding) in fewer, larger steps. Pays where a step of several rows costs about
                as much as one of one: few pictures on a GPU, models so small that the overhead counts. Several
                pictures advance together, by as much as the least lucky one. 1 guesses nothing.
            cache_implementation: "static" allocates `T + P` positions at once, "dynamic" grows.
            pad_token_id: What the unconditional twin is made of; by default that of `generation_config`.
            callback: Called for every code in turn with the step and the codes so far `(B, step + 1)`; may return
                `(B,)` codes to use instead of those just drawn.
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
        if speculative_window < 1:
            raise ValueError(f"speculative_window must be at least 1, got {speculative_window}. 1 guesses nothing.")
        device = input_ids.device
        sampling = Sampling.make(do_sample, temperature, top_k, top_p, device)

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
        if first == num_codes:
            return ImageGenerationOutput(image_ids=given, num_model_steps=0) if return_dict_in_generate else given

        keys = draw_keys(batch_size, generator, device)
        scale = torch.tensor(float(guidance_scale), device=device) if guided else None
        drawing = Drawing(
            self, ids_RT, mask_RT, given, cache_implementation, speculative_window, scale, sampling, keys
        )
        all_logits = torch.empty(batch_size, num_codes, codebook, device=device) if output_logits else None
        all_scores = torch.empty(batch_size, num_codes, codebook, device=device) if output_scores else None
        finite = torch.ones((), dtype=torch.bool, device=device)
        drawing.start()
        while True:
            done = drawing.known
            count = drawing.num_right()
            finite &= drawing.logits[:, :count].isfinite().all()
            end_of_row = (done + count) // config.vq_config.num_patches > done // config.vq_config.num_patches
            if end_of_row and not finite:  # looking at `finite` waits for the device
                raise FloatingPointError(
                    f"The model's image logits are not finite (seen by code {done + count - 1} of {num_codes}), so "
                    "there is nothing to draw from. Load the model in bfloat16 or float32 (float16 overflows), and "
                    "check the weights."
                )
            if callback is not None:
                count = drawing.show(count, callback)
            if all_logits is not None:
                all_logits[:, done : done + count] = drawing.logits[:, :count]
            if all_scores is not None:
                all_scores[:, done : done + count] = drawing.scores[:, :count]
            drawing.keep(count)
            if drawing.known == num_codes:
                break
            drawing.step()

        codes = drawing.codes[:, :num_codes]
        if not return_dict_in_generate:
            return codes
        return ImageGenerationOutput(
            image_ids=codes,
            logits=None if all_logits is None else all_logits[:, first:],
            scores=None if all_scores is None else all_scores[:, first:],
            num_model_steps=drawing.num_model_steps,
        )

    def _pad_token_id(self, given: int | None) -> int:
        pad_token_id = self.generation_config.pad_token_id if given is None else given
        if pad_token_id is None:
            raise ValueError(
                "The unconditional prompt is made of padding tokens and the model does not know their id: pass "
                "pad_token_id=processor.pad_token_id, or set it in model.generation_config."
            )
        return int(pad_token_id)


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


@torch.no_grad()
def draw_reference(
    model: Any, input_ids: torch.Tensor, *, guidance_scale: float = 5.0, keys: torch.Tensor | None = None
) -> torch.Tensor:
    """The drawing loop as plainly as it can be said: no cache, no padding, everything recomputed. For tests.

    Args:
        input_ids: `(B, T)` prompts of equal length.
        keys: `(B, 2)` keys to sample with (`draw_keys`), or None for the most likely codes.
    """
    rows, _ = _with_unconditional_twins(input_ids, torch.ones_like(input_ids), model.generation_config.pad_token_id)
    codes = input_ids.new_empty(len(input_ids), 0)
    for step in range(model.config.vq_config.num_image_tokens):
        embeds = torch.cat([model.model.embed_ids(rows), model.model.embed_image_ids(codes.repeat(2, 1))], dim=1)
        hidden = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, -1]
        conditional, unconditional = model.model.generation_head(hidden).float().chunk(2)
        scores = guide(conditional, unconditional, guidance_scale)
        if keys is not None:
            scores = scores + gumbel_noise(keys, torch.tensor([step]), scores.shape[-1])[:, 0]
        codes = torch.cat([codes, scores.argmax(dim=-1, keepdim=True)], dim=1)
    return codes


__all__ = ["ImageGenerationMixin", "ImageGenerationOutput", "draw_reference"]
