"""`JanusProPipeline`: a diffusers pipeline that generates images from prompts and answers questions about images.

Its components are the Janus-Pro model and the model's processor. The pipeline takes and returns strings and images. It
calls the model's `generate_images` and `generate`, which take and return token ids. A saved pipeline is one flat
folder, which transformers' `AutoModel` and `AutoProcessor` can load as well.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, Unpack, overload

import numpy as np
import PIL.Image
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ..arguments import check_flag
from ..generation.batch_sizes import BatchSize, largest_batch, run_in_batches
from ..generation.generation_arguments import Generators
from ..generation.images import GUIDANCE_SCALE
from ..modeling import JanusProForConditionalGeneration
from ..processing import JanusProProcessor
from ..processing.pictures import ImageBatch
from .call_arguments import (
    CALLBACK_TENSORS,
    CallArguments,
    OutputType,
    StepEndCallback,
    callback_tensors,
    check_call_arguments,
    check_components,
)
from .chat import ChatPipelineMixin
from .diffusers_names import CALL_ARGUMENTS, DiffusersNamesMixin, refuse_arguments
from .image_tokens import ImageTokensMixin
from .lora import LoraPipelineMixin
from .offloading import move_to_device
from .pipeline_files import PipelineFilesMixin
from .pipeline_output import JanusProPipelineOutput, join_images
from .progress import InterruptionError, ProgressBarMixin, step_callback


class JanusProPipeline(
    ChatPipelineMixin,
    ImageTokensMixin,
    DiffusersNamesMixin,
    LoraPipelineMixin,
    PipelineFilesMixin,
    ProgressBarMixin,
    DiffusionPipeline,
):
    """A pipeline that generates images and answers questions about images with a Janus-Pro model.

    `pipe("a prompt").images[0]` is a generated image, and `pipe.ask(image, "a question")` returns an answer.
    `JanusProPipeline.from_pretrained` loads it. Once this class has been imported, diffusers' own
    `DiffusionPipeline.from_pretrained` loads a saved pipeline too.

    Args:
        model: The Janus-Pro model, which generates text tokens and image tokens.
        processor: The processor that belongs to the model.

    Raises:
        TypeError: If one of the two is of another kind.
    """

    model: JanusProForConditionalGeneration
    processor: JanusProProcessor
    model_cpu_offload_seq = "model"
    _callback_tensor_inputs = CALLBACK_TENSORS  # diffusers' pipelines list here what a callback may receive

    def __init__(self, model: JanusProForConditionalGeneration, processor: JanusProProcessor) -> None:
        check_components(model, processor)
        super().__init__()
        self.register_modules(model=model, processor=processor)

    @overload
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        *,
        output_type: Literal["pil"] = "pil",
        return_dict: Literal[True] = True,
        **kwargs: Unpack[CallArguments],
    ) -> JanusProPipelineOutput[list[PIL.Image.Image]]: ...

    @overload
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        *,
        output_type: Literal["pil"] = "pil",
        return_dict: Literal[False],
        **kwargs: Unpack[CallArguments],
    ) -> tuple[list[PIL.Image.Image], torch.Tensor]: ...

    @overload
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        *,
        output_type: Literal["np"],
        return_dict: Literal[True] = True,
        **kwargs: Unpack[CallArguments],
    ) -> JanusProPipelineOutput[np.ndarray]: ...

    @overload
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        *,
        output_type: Literal["np"],
        return_dict: Literal[False],
        **kwargs: Unpack[CallArguments],
    ) -> tuple[np.ndarray, torch.Tensor]: ...

    @overload
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        *,
        output_type: Literal["pt", "latent"],
        return_dict: Literal[True] = True,
        **kwargs: Unpack[CallArguments],
    ) -> JanusProPipelineOutput[torch.Tensor]: ...

    @overload
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        *,
        output_type: Literal["pt", "latent"],
        return_dict: Literal[False],
        **kwargs: Unpack[CallArguments],
    ) -> tuple[torch.Tensor, torch.Tensor]: ...

    @overload
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        *,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        **kwargs: Unpack[CallArguments],
    ) -> JanusProPipelineOutput[Any] | tuple[ImageBatch, torch.Tensor]: ...

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str | list[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        do_sample: bool = True,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: Generators = None,
        image_ids: torch.Tensor | None = None,
        batch_size: BatchSize = 8,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepEndCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("image_ids",),
        speculative_window: int = 1,
        cache_implementation: Literal["static", "dynamic"] = "static",
        parse_special_tokens: bool | None = None,
        **unknown: Any,
    ) -> JanusProPipelineOutput[Any] | tuple[ImageBatch, torch.Tensor]:
        """Generate images from prompts.

        Args:
            prompt: Description of the image. For a list, one image (or `num_images_per_prompt`) is generated for each
                of its prompts.
            negative_prompt: Description of what the images must not show: one string for all prompts, or a list with
                one for each. Guidance then leads away from this description, instead of from the unconditional prompt
                (the prompt with its text replaced by padding tokens).
            height, width: Size of the images in pixels; None, or the only size that the model generates.
            guidance_scale: Scale of classifier-free guidance. 1 generates without guidance at half the cost. None uses
                the scale of the model's generation config, or 5 if it has none, like the released models.
            num_images_per_prompt: Number of images per prompt; images of the same prompt follow each other.
            do_sample, temperature, top_k, top_p: How image tokens are sampled (see
                `JanusProForConditionalGeneration.generate_images`). The default samples from the full softmax, as
                deepseek-ai/Janus does.
            generator: One random generator for all images, or a list with one per image
                (`len(prompt) * num_images_per_prompt`). With a list, the same seed generates the same image in every
                batch.
            image_ids: `(N, p)` int64: the first `p` image tokens of every image, from which generation continues.
            batch_size: Number of images generated at a time. Each needs its own attention cache (0.25 GB for
                Janus-Pro-1B in bfloat16, 0.6 GB for Janus-Pro-7B). The images do not depend on this number. "auto"
                takes as many as the free memory holds, up to 128, and half as many after running out of memory.
            output_type: "pil", "np", "pt" or "latent" (image tokens); see `JanusProPipelineOutput`.
            return_dict: Whether to return a `JanusProPipelineOutput`; False returns the tuple `(images, image_ids)`.
            callback_on_step_end: Function that is called as `callback(pipe, step, step, {"image_ids": ids})` after
                every image token of a batch of `B` images, where `ids` `(B, step + 1)` are the tokens so far. If it
                returns a dict with the key "image_ids", the last column of that tensor replaces the newest tokens. If
                it sets `pipe._interrupt = True`, generation ends: the images are those of this and the earlier
                batches, and in this batch every token after `step` is a copy of the last one. To continue, pass
                `result.image_ids[:, :step + 1]` as `image_ids`.
            callback_on_step_end_tensor_inputs: Names of the tensors that the callback receives: "image_ids", or an
                empty sequence. A callback of diffusers' class `PipelineCallback` states its own.
            speculative_window: Number of image tokens that the model processes in one step. All but the first are
                guesses, of which the correct ones are accepted. The images are the same, in fewer, larger steps (see
                `JanusProForConditionalGeneration.generate_images`). 1 guesses nothing.
            cache_implementation: "static" allocates the whole attention cache at once; "dynamic" lets it grow.
            parse_special_tokens: Whether special tokens that stand in a prompt become special tokens; None uses the
                processor's setting.
            unknown: Arguments of other pipelines, each refused by name (`pipelines.diffusers_names`).

        Returns:
            The images and their image tokens.

        Raises:
            ValueError, TypeError: If an argument is out of range or of the wrong type.
            FloatingPointError: If the model's logits or the codec's pixels are not finite.
        """
        refuse_arguments(unknown, CALL_ARGUMENTS, "__call__")
        check_flag(return_dict, "return_dict")
        names = callback_tensors(callback_on_step_end, callback_on_step_end_tensor_inputs)
        prompts, negatives = check_call_arguments(
            self.model.config.vq_config,
            prompt,
            negative_prompt,
            height=height,
            width=width,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            image_ids=image_ids,
            batch_size=batch_size,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=names,
        )
        self._interrupt = False
        device = move_to_device(self)
        codec, num_tokens = self.model.model.vqmodel, self.model.config.vq_config.num_image_tokens
        num_steps = num_tokens - (0 if image_ids is None else image_ids.shape[1])
        with self.progress_bar(total=num_steps * len(prompts)) as progress:

            def generate(part: slice) -> tuple[torch.Tensor, Any]:
                # If a larger batch ran out of memory, the bar returns to where that batch began.
                progress.update(num_steps * part.start - progress.n)
                inputs = self.processor.prepare_image_generation(
                    prompts[part],
                    None if negatives is None else negatives[part],
                    parse_special_tokens=parse_special_tokens,
                ).to(device)
                try:
                    part_ids = self.model.generate_images(
                        **inputs,
                        pad_token_id=self.processor.pad_token_id,
                        guidance_scale=guidance_scale,
                        do_sample=do_sample,
                        temperature=temperature,
                        top_k=top_k,
                        top_p=top_p,
                        generator=generator[part] if isinstance(generator, (list, tuple)) else generator,
                        image_ids=None if image_ids is None else image_ids[part],
                        speculative_window=speculative_window,
                        cache_implementation=cache_implementation,
                        callback=step_callback(self, progress.update, callback_on_step_end, names),
                    )
                except InterruptionError as interrupt:
                    part_ids = interrupt.filled(num_tokens)
                # Decoded batch by batch, so that the memory of the codec does not grow with the number of images.
                return part_ids, None if output_type == "latent" else self.decode(part_ids, output_type)

            choose = partial(
                largest_batch, self.model.config, self.model.dtype, codec.dtype, device, guided=guidance_scale != 1
            )
            parts = []
            at_once = partial(run_in_batches, choose=choose, generator=generator, device=device)
            for part in at_once(len(prompts), batch_size, generate):
                parts.append(part)
                if self._interrupt:
                    break
            tokens, images = zip(*parts, strict=True)
        self.maybe_free_model_hooks()
        all_ids = torch.cat(tokens)
        joined = all_ids if output_type == "latent" else join_images(images)
        return JanusProPipelineOutput(images=joined, image_ids=all_ids) if return_dict else (joined, all_ids)

    def enable_fast_decoding(
        self,
        batch_sizes: Sequence[int] = (1,),
        *,
        speculative_window: int = 1,
        mode: str | None = None,
        max_graphs: int | None = None,
    ) -> bool:
        """Compile the step that generates one image token with `torch.compile`, or capture it in a CUDA graph.

        See `JanusProForConditionalGeneration.compile_generation`. `ask` and `chat` use captured steps and packed
        layers too; compiled steps are for images only.

        Args:
            batch_sizes: Values of `batch_size` with which images will be generated. The step is compiled or captured
                for them now, and for any other number of images when it first occurs.
            speculative_window: Value of `speculative_window` with which images will be generated.
            mode: "graph" captures the step in a CUDA graph, without a compiler. Other values are `mode` of
                `torch.compile`; None uses this package's choice.
            max_graphs: Number of graphs, one per size of a batch, that `mode="graph"` keeps with their caches; None is
                4.

        Returns:
            Whether the step is compiled or captured from now on. If it is not, a warning says why.

        Raises:
            TypeError, ValueError: If the model or an argument does not allow it.
        """
        return self.model.compile_generation(
            mode=mode, warm_up=batch_sizes, speculative_window=speculative_window, max_graphs=max_graphs
        )

    def disable_fast_decoding(self) -> None:
        """Undo `enable_fast_decoding`: generate with the plain step again, and free graphs and packed weights."""
        self.model.compile_generation(False)

    @property
    def default_guidance_scale(self) -> float:
        """Guidance scale that a `guidance_scale` of None means: that of the model's generation config, otherwise 5."""
        return float(getattr(self.model.generation_config, "image_guidance_scale", GUIDANCE_SCALE))


__all__ = ["JanusProPipeline", "JanusProPipelineOutput"]
