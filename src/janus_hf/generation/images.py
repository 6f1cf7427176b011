"""The mixin that gives a model `generate_images` and `compile_generation`, and the output class of `generate_images`.

`generate_images` takes the token ids of prompts and returns image tokens; it uses no tokenizer and computes no pixels.
An image is `P` tokens, which the language model samples one after another under classifier-free guidance: with a scale
other than 1 every prompt runs twice, as it is and as an unconditional prompt without its text (`prompt_rows.py`).

In shapes, `B` is the number of images, `R` the number of rows (sequences that the language model runs: `B`, or `2 B`
with guidance, conditional rows first), `T` the prompt length, `P` the number of tokens per image, and `K` the number
of codebook entries.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Unpack, overload

import torch
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils import ModelOutput, logging

from ..arguments import check_flag, check_values
from ..protocols import BareModel
from ..summaries import ShortRepr
from ..tokenizer import check_text_ids
from .context import context_length
from .decoders import CapturedDecoder, Decoder, choose_decoder, default_decoder, why_not_compilable
from .drawing import Drawing, StepCallback, run_first_steps
from .generation_arguments import (
    CAPTURED,
    IMAGE_VALUES,
    MAX_GRAPHS,
    Generators,
    SamplingArguments,
    check_compiling,
    check_integer_tensor,
)
from .kernels.attention_kernels import repeatable_attention
from .prompt_rows import check_prefix, make_rows
from .sampling import Draw, Sampling, draw_keys


logger = logging.get_logger(__name__)

GUIDANCE_SCALE = 5.0  # deepseek-ai/Janus generation_inference.py: cfg_weight


class PromptArguments(SamplingArguments, total=False):
    """Keyword arguments of `generate_images` that do not decide the type of its result; see there."""

    negative_input_ids: torch.Tensor | None
    negative_attention_mask: torch.Tensor | None
    pad_token_id: int | None
    callback: StepCallback | None
    output_logits: bool
    output_scores: bool


@dataclass(repr=False)
class ImageGenerationOutput(ShortRepr, ModelOutput):
    """Output of `generate_images` with `return_dict_in_generate=True`, for `B` images of `P` tokens each.

    `steps` is the number of generated tokens per image: `P` minus the number of tokens that the caller gave. `K` is
    the number of codebook entries.

    Args:
        image_ids: `(B, P)` int64 image tokens.
        logits: `(B, steps, K)` float32 logits after guidance; None unless requested by `output_logits`.
        scores: `(B, steps, K)` float32 logits after guidance, temperature, top-k and top-p; None unless requested by
            `output_scores`.
        num_model_steps: Number of runs of the language model, including the prompt's.
    """

    image_ids: torch.Tensor
    logits: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    num_model_steps: int | None = None


class ImageGenerationMixin:
    """Mixin that adds the methods `generate_images` and `compile_generation` to a model.

    The model's attribute `model` must be a `BareModel`, which is the model without its text head.
    """

    config: PreTrainedConfig
    model: BareModel
    generation_config: GenerationConfig
    device: torch.device

    @cached_property
    def _decoder(self) -> Decoder:
        """Decoder that runs the steps of this model; `compile_generation` replaces it."""
        return default_decoder(self.device)

    def compile_generation(
        self,
        enabled: bool = True,
        *,
        mode: str | None = None,
        warm_up: Sequence[int] = (),
        speculative_window: int = 1,
        max_graphs: int | None = None,
    ) -> bool:
        """Compile one step of `generate_images` (language model and sampling) into one graph, or undo the compilation.

        By default the step is compiled during the first generation of each size (number of images, guidance or not,
        context length rounded up to a multiple of 64), which takes a minute or more for a full-size model. On CUDA the
        graph is replayed as a CUDA graph. On a CPU the language model's weights are packed (copied in the order in
        which the matrix kernels read them), which takes the memory of a second copy. In float32 the tokens are the
        same as without compilation. No other thread may use a compiled model while it generates.

        `mode="graph"` needs no compiler: the kernels of the plain step are captured in a CUDA graph at the first step
        of a size, and compared with the plain step at the second. Where that is impossible (`CapturedDecoder`), steps
        are plain, and a warning says why once. Threads that generate with the same model take turns. A change of the
        model is seen by the next batch. Hooks on layers and Python code in them do not run in a replay.

        Args:
            enabled: False undoes the compilation and frees graphs, caches and packed weights. They are also freed when
                the model is deleted.
            mode: The argument `mode` of `torch.compile`, or "graph"; None uses CUDA graphs or packed weights as
                described.
            warm_up: Numbers of images per batch for which to compile right away, with guidance. If this fails or is
                interrupted, the model is not compiled.
            speculative_window: The `speculative_window` of later calls of `generate_images`; used only for the
                warm-up.
            max_graphs: Number of sizes for which `mode="graph"` keeps graph and cache; the size that was not used for
                the longest time is dropped first. None is 4. Other modes keep all graphs and take no number.

        Returns:
            Whether the step is compiled or captured now. If `torch.compile` does not work (no C++ compiler, no
            Triton), a warning is logged, the result is False, and generation works as before. If a step cannot be
            captured as the model is now, the result is False too, but a later batch is captured if it can be.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If an argument is out of range; or, unless `mode` is "graph", if the model is spread over
                several devices or offloaded, or uses flash-attention.
        """
        if not check_flag(enabled, "enabled"):
            self._stop_compiling()
            return False
        check_compiling(mode, warm_up, speculative_window, max_graphs)
        if mode == CAPTURED:
            captured = CapturedDecoder(max_graphs or MAX_GRAPHS)
            self._use(captured, warm_up if captured.can_capture(self.model, self) else (), speculative_window)
            return captured.can_capture(self.model, self)
        devices = {parameter.device for parameter in self.model.parameters()}
        # accelerate's attribute `_hf_hook`: its public `has_offloaded_params` does not see the pipeline's CPU offload.
        if len(devices) > 1 or torch.device("meta") in devices or hasattr(self, "_hf_hook"):
            raise ValueError(
                "The model must be on one device to be compiled, got a model that is offloaded, or on "
                f"{sorted(map(str, devices))}: load it without device_map and without offloading."
            )
        # `_attn_implementation`: transformers has a public setter for it, but no public getter.
        if "flash" in str(self.config.text_config._attn_implementation):
            raise ValueError(
                "`attn_implementation` must work with a static cache to be compiled, got flash-attention: load the "
                "model with attn_implementation='sdpa'."
            )
        if reason := why_not_compilable(self.device):
            logger.warning(f"torch.compile does not work here, so generation is not compiled: {reason}")
            return False
        self._use(choose_decoder(self.device, compiled=True, mode=mode), warm_up, speculative_window)
        return True

    def _use(self, decoder: Decoder, warm_up: Sequence[int], window: int) -> None:
        """Generate with this decoder from now on, after the first steps of batches of these numbers of images."""
        self._stop_compiling()  # before new weights are packed, so that there are never two packed copies
        self._decoder = decoder
        try:
            for batch_size in warm_up:
                with decoder.turn(self), repeatable_attention():
                    run_first_steps(self.model, decoder, batch_size, window, GUIDANCE_SCALE)
        except BaseException:  # an interrupt too must leave nothing half-compiled
            self._stop_compiling()
            raise

    def _stop_compiling(self) -> None:
        """Generate with the plain step from now on, and free graphs, caches and packed weights."""
        self._decoder = choose_decoder(self.device, compiled=False)
        # Graphs are part of reference cycles, which would otherwise stay until Python next searches for cycles.
        gc.collect()
        torch.cuda.empty_cache()  # returns the memory of captured graphs to the device

    @overload
    def generate_images(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        return_dict_in_generate: Literal[False] = False,
        **kwargs: Unpack[PromptArguments],
    ) -> torch.Tensor: ...

    @overload
    def generate_images(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        return_dict_in_generate: Literal[True],
        **kwargs: Unpack[PromptArguments],
    ) -> ImageGenerationOutput: ...

    @overload
    def generate_images(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        return_dict_in_generate: bool,
        **kwargs: Unpack[PromptArguments],
    ) -> torch.Tensor | ImageGenerationOutput: ...

    # Compiled decoders keep tensors for later calls, and those must not be inference tensors.
    @torch.inference_mode(False)
    @torch.no_grad()
    @repeatable_attention()
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
        """Generate the image tokens of one image per prompt.

        In the following `B` is the number of prompts, `T` the prompt length, `P` the number of tokens per image and
        `K` the number of codebook entries. With guidance every prompt also runs as an unconditional prompt, in which
        padding tokens replace its text.

        Args:
            input_ids: `(B, T)` token ids of the prompts, left-padded, each from `<begin_of_sentence>` to
                `<begin_of_image>` (`processor.prepare_image_generation`).
            attention_mask: `(B, T)`, 0 on the left padding; None if there is no padding.
            negative_input_ids: `(B, T')` token ids of prompts to be guided away from, which replace the unconditional
                prompts. They need a `guidance_scale` other than 1.
            negative_attention_mask: `(B, T')`, 0 on the left padding; None if there is no padding.
            guidance_scale: How far to move from the unconditional logits towards the conditional ones and beyond, 0 or
                more. 1 uses the prompt alone and costs half as much. None uses
                `generation_config.image_guidance_scale` if it exists, else 5, as in the original code.
                (`generation_config.guidance_scale` is about text.)
            do_sample: True samples tokens; False takes the most likely token at every step.
            temperature: Positive number by which logits are divided.
            top_k: Number of most likely tokens to sample among. None samples among all, as the original code does.
            top_p: Sample among the most likely tokens that together have this probability. None samples among all.
            generator: A list with one `torch.Generator` per image (the same seed gives the same image in any batch),
                or one generator for all images; None uses the global generator of the prompts' device.
            image_ids: `(B, p)` image tokens to continue from, `p <= P`; they are the first `p` tokens of every result.
            speculative_window: Number of tokens per image that one run of the language model is fed; all but the first
                are guesses. The images are the same (in float32; in other dtypes up to rounding), in fewer, larger
                steps. This saves time where a step of several tokens costs about as much as a step of one: few images
                on a GPU, or a model so small that the overhead counts. The images of a batch advance together, by the
                smallest number of correct guesses among them. 1 guesses nothing.
            cache_implementation: "static" allocates the key-value cache for `T + P` positions at once; "dynamic" lets
                it grow.
            pad_token_id: Id of the padding token, of which unconditional prompts are made; None uses that of
                `generation_config`.
            callback: Function that is called once for each position, with the position and the tokens so far,
                `(B, position + 1)`. It may return `(B,)` tokens to use instead of those just sampled.
            output_logits: Whether to collect the logits of all steps (see `ImageGenerationOutput`).
            output_scores: Whether to collect the scores of all steps (see `ImageGenerationOutput`). Both need
                `return_dict_in_generate=True`.
            return_dict_in_generate: Whether to return an `ImageGenerationOutput` instead of the tokens.

        Returns:
            `(B, P)` int64 tokens in `[0, K)`; `decode_image_ids` turns them into pixels.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If an argument is out of range, shapes disagree, or prompt and image exceed the model's
                context.
            FloatingPointError: If the model's logits are not finite.
        """
        check_integer_tensor(input_ids, "input_ids", "(B, T)")
        vq, device, batch_size = self.config.vq_config, input_ids.device, len(input_ids)
        num_tokens, codebook_size = vq.num_image_tokens, vq.num_embeddings
        scale = self._choose_guidance_scale(guidance_scale)
        wanted = {"output_logits": output_logits, "output_scores": output_scores}
        said = check_values(
            {
                **wanted,
                "return_dict_in_generate": return_dict_in_generate,
                "callback": callback,
                "speculative_window": speculative_window,
                "cache_implementation": cache_implementation,
            },
            IMAGE_VALUES,
        )
        wants_output: bool = said["return_dict_in_generate"]
        if not wants_output and any(wanted.values()):
            raise ValueError(
                "`return_dict_in_generate` must be True with `output_logits` and `output_scores`, got False: set it, "
                "or leave the two out."
            )
        sampling = Sampling.make(do_sample, temperature, top_k, top_p, device)
        ids_RT, mask_RT = make_rows(
            input_ids,
            attention_mask,
            negative_input_ids,
            negative_attention_mask,
            guided=scale != 1,
            pad_token_id=self.generation_config.pad_token_id if pad_token_id is None else pad_token_id,
        )
        self._check_context(ids_RT.shape[1])
        check_text_ids(ids_RT, self.config.text_config.vocab_size)
        given = check_prefix(image_ids, batch_size, num_tokens, codebook_size, device)
        collected = {
            name.removeprefix("output_"): torch.empty(batch_size, num_tokens, codebook_size, device=device)
            for name in wanted
            if said[name]
        }
        if given.shape[1] == num_tokens:
            none = {name: values[:, num_tokens:] for name, values in collected.items()}
            return ImageGenerationOutput(image_ids=given, num_model_steps=0, **none) if wants_output else given

        decoder = self._decoder
        with decoder.turn(self):
            # Keys are made after the checks above, so that a refused call does not advance the caller's generators.
            # The scale is a tensor, because a compiled step would be specialised on a number.
            drawing = Drawing(
                model=self.model,
                decoder=decoder,
                ids_RT=ids_RT,
                mask_RT=mask_RT,
                given=given,
                draw=Draw(
                    keys=draw_keys(batch_size, generator, device),
                    guidance_scale=torch.tensor(float(scale), device=device) if scale != 1 else None,
                    sampling=sampling,
                ),
                cache_implementation=cache_implementation,
                window=said["speculative_window"],
            )
            drawing.start()
            while True:
                count = drawing.num_accepted()
                drawing.check_logits(count)
                # A token that the callback replaces is the last one to accept.
                if callback is not None:
                    count = drawing.run_callback(count, callback)
                accepted = slice(drawing.num_final, drawing.num_final + count)
                for name, values in collected.items():
                    values[:, accepted] = getattr(drawing, name)[:, :count]
                drawing.accept(count)
                if drawing.num_final == num_tokens:
                    break
                drawing.step()

        tokens = drawing.tokens[:, :num_tokens]
        if not wants_output:
            return tokens
        return ImageGenerationOutput(
            image_ids=tokens,
            num_model_steps=drawing.num_model_steps,
            **{name: values[:, given.shape[1] :] for name, values in collected.items()},
        )

    def _choose_guidance_scale(self, guidance_scale: float | None) -> float:
        """Return `guidance_scale`, or the default from `generation_config` (or else 5) if it is None.

        Raise a TypeError if the scale is no number. Raise a ValueError if it is negative or not finite.
        """
        if guidance_scale is None:
            guidance_scale = getattr(self.generation_config, "image_guidance_scale", GUIDANCE_SCALE)
        scale: float = check_values({"guidance_scale": guidance_scale}, IMAGE_VALUES)["guidance_scale"]
        return scale

    def _check_context(self, length: int) -> None:
        """Raise a ValueError unless a prompt of `length` tokens and an image fit into the model's context."""
        num_tokens, limit = self.config.vq_config.num_image_tokens, context_length(self.config.text_config)
        if length + num_tokens > limit:
            raise ValueError(
                f"The prompt must have at most {limit - num_tokens} tokens, got {length} tokens: an image takes "
                f"{num_tokens} more, and the model's context holds {limit}. Shorten the prompt."
            )


__all__ = ["ImageGenerationMixin", "ImageGenerationOutput"]
