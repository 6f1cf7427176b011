"""`JanusProPipeline`: the model as a diffusers pipeline that also answers questions.

Strings and images outside, token ids inside: it calls the model's `generate_images` and `generate`. Its components are
the model and its processor. A saved pipeline is one flat folder that `AutoModel` and `AutoProcessor` read as well.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput

from ..files import hub_arguments
from ..generation.images import GUIDANCE_SCALE
from ..modeling import JanusProForConditionalGeneration
from ..processing import JanusProProcessor
from ..processing.pictures import ImageSource
from .call_arguments import CALLBACK_TENSORS, OutputType, check_call_arguments
from .chat import ChatPipelineMixin
from .lora import LoraPipelineMixin
from .offloading import bring_in
from .pipeline_files import PipelineFilesMixin


@dataclass
class JanusProPipelineOutput(BaseOutput):
    """Generated images.

    Args:
        images: `output_type` decides: a list of PIL images, `(N, H, W, 3)` float32 in [0, 1] ("np"), `(N, 3, H, W)` in
            [0, 1] ("pt"), or `(N, P)` int64 image tokens ("latent").
        image_ids: `(N, P)` int64, the image tokens in every case.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    image_ids: torch.Tensor


class JanusProPipeline(ChatPipelineMixin, LoraPipelineMixin, PipelineFilesMixin, DiffusionPipeline):
    """Janus-Pro as a pipeline: `pipe("a prompt").images[0]` is an image, `pipe.ask(image, "a question")` an answer.

    Args:
        model: The model with both heads.
        processor: The model's processor.
    """

    model: JanusProForConditionalGeneration
    processor: JanusProProcessor
    model_cpu_offload_seq = "model"
    _callback_tensor_inputs = CALLBACK_TENSORS  # diffusers' pipelines list here what a callback may receive

    def __init__(self, model: JanusProForConditionalGeneration, processor: JanusProProcessor) -> None:
        super().__init__()
        self.register_modules(model=model, processor=processor)
        # model_index.json names the public classes, so that it stays valid when their modules are renamed.
        self.register_to_config(
            model=("janus_hf", type(model).__name__), processor=("janus_hf", type(processor).__name__)
        )

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
        generator: torch.Generator | list[torch.Generator] | None = None,
        image_ids: torch.Tensor | None = None,
        batch_size: int = 8,
        output_type: OutputType = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("image_ids",),
        speculative_window: int = 1,
        cache_implementation: Literal["static", "dynamic"] = "static",
    ) -> JanusProPipelineOutput | tuple[Any, torch.Tensor]:
        """Generate images from prompts.

        Args:
            prompt: Description of the image; a list makes one image (or `num_images_per_prompt`) for each.
            negative_prompt: Description of what the images must not show: one string for all prompts or one for each.
                Guidance then leads away from it, instead of from the unconditional prompt.
            height, width: Only the model's own image size is possible.
            guidance_scale: 1 generates without guidance at half the cost; None is the model's own, which is 5 for the
                released ones.
            num_images_per_prompt: Images of one prompt follow each other in the result.
            do_sample, temperature, top_k, top_p: How image tokens are sampled; the default samples the full softmax,
                as the original does.
            generator: One for all images, or a list with one for each (`len(prompt) * num_images_per_prompt`): the
                same seed then generates the same image whatever else is in the batch.
            image_ids: `(N, p)` int64 image tokens that the images begin with, one row per image.
            batch_size: Number of images generated at a time; each needs its own attention cache (0.25 GB for the 1B in
                bfloat16, 0.6 GB for the 7B). The result does not depend on it.
            output_type: "pil", "np", "pt" or "latent" (image tokens); see `JanusProPipelineOutput`.
            return_dict: False returns `(images, image_ids)`.
            callback_on_step_end: Called as `callback(pipe, step, step, {"image_ids": tokens so far})` after every
                image token of a batch. If it returns a dict with "image_ids", the last column replaces the newest
                tokens.
            callback_on_step_end_tensor_inputs: Names of the tensors that the callback receives: "image_ids" or none.
            speculative_window: Guess this number of image tokens ahead and accept the correct guesses: the same images
                in fewer, larger steps (see `JanusProForConditionalGeneration.generate_images`). 1 guesses nothing.
            cache_implementation: "static" or "dynamic".

        Raises:
            ValueError, TypeError: If an argument is out of range or of the wrong kind.
            FloatingPointError: If the model's logits stop being finite.
        """
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
            callback_tensors=callback_on_step_end_tensor_inputs,
        )
        device = bring_in(self)
        starts = range(0, len(prompts), batch_size)
        num_tokens = self.model.config.vq_config.num_image_tokens
        num_given = 0 if image_ids is None else image_ids.shape[1]
        tokens, images = [], []
        with self.progress_bar(total=(num_tokens - num_given) * len(starts)) as progress:
            for start in starts:
                part = slice(start, start + batch_size)
                inputs = self.processor.prepare_image_generation(
                    prompts[part], None if negatives is None else negatives[part]
                ).to(device)
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
                    callback=self._step_callback(
                        progress.update, callback_on_step_end, callback_on_step_end_tensor_inputs
                    ),
                )
                tokens.append(part_ids)
                # Decoded batch by batch, so that the memory of the codec does not grow with the number of images.
                if output_type != "latent":
                    images.append(self.decode(part_ids, output_type))
        self.maybe_free_model_hooks()

        all_ids = torch.cat(tokens)
        joined = all_ids if output_type == "latent" else _join(images)
        return JanusProPipelineOutput(images=joined, image_ids=all_ids) if return_dict else (joined, all_ids)

    def enable_fast_decoding(
        self, batch_sizes: Sequence[int] = (1,), *, speculative_window: int = 1, mode: str | None = None
    ) -> bool:
        """Compile the step that generates an image token; see `JanusProForConditionalGeneration.compile_generation`.

        Args:
            batch_sizes: Numbers of images at once to compile for now; the step is compiled for other numbers when they
                first occur. Give the `batch_size` that you will generate with.
            speculative_window: The one that you will generate with.
            mode: Mode of `torch.compile`, instead of the package's choice.

        Returns:
            Whether the step is compiled now. Without a working compiler it is not, and a warning says so.

        Raises:
            ValueError: If the model is spread over devices or offloaded.
        """
        return self.model.compile_generation(mode=mode, warm_up=batch_sizes, speculative_window=speculative_window)

    def disable_fast_decoding(self) -> None:
        """Undo `enable_fast_decoding`."""
        self.model.compile_generation(False)

    def decode(
        self, image_ids: torch.Tensor, output_type: Literal["pil", "np", "pt"] = "pil"
    ) -> list[PIL.Image.Image] | np.ndarray | torch.Tensor:
        """Decode image tokens `(N, P)` to images, in the forms of `JanusProPipelineOutput.images`."""
        device = bring_in(self)
        pixel_values = self.model.decode_image_ids(image_ids.to(device))
        return self.processor.post_process_images(pixel_values, output_type=output_type)

    def encode(self, images: ImageSource | Sequence[ImageSource]) -> torch.Tensor:
        """Encode images as image tokens `(N, P)` int64.

        Args:
            images: PIL images, paths, URLs or arrays; one or a list. The short side is resized to the model's image
                size and the centre is cropped.
        """
        device = bring_in(self)
        pixel_values = self.processor.image_processor(images, mode="generation", return_tensors="pt").pixel_values
        return self.model.encode_image_ids(pixel_values.to(device))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        model: JanusProForConditionalGeneration | None = None,
        processor: JanusProProcessor | None = None,
        torch_dtype: torch.dtype | str | None = None,
        **kwargs: Any,
    ) -> "JanusProPipeline":
        """Load from a repository or folder: an original release, a transformers conversion, or a saved pipeline.

        Args:
            pretrained_model_name_or_path: Repository id or folder.
            model, processor: Components to use instead of loading them.
            torch_dtype: Another name of `dtype`, as diffusers calls it.
            kwargs: Hub arguments (`revision`, `token`, `cache_dir`, `subfolder`, ...) go to both components;
                everything else (`dtype`, `device_map`, `quantization_config`, `variant`, ...) to the model's
                `from_pretrained`.

        Raises:
            CheckpointError: If the weights are not exactly the model's.
            ValueError: If `model` is given together with arguments that load one.
        """
        if torch_dtype is not None:
            kwargs.setdefault("dtype", torch_dtype)
        hub_kwargs = hub_arguments(kwargs)
        if processor is None:
            processor = JanusProProcessor.from_pretrained(pretrained_model_name_or_path, **hub_kwargs)
        if model is None:
            model = JanusProForConditionalGeneration.from_pretrained(pretrained_model_name_or_path, **kwargs)
        elif ignored := sorted(kwargs.keys() - hub_kwargs.keys()):
            raise ValueError(
                f"`model` must be left out where other arguments load one, got both it and {', '.join(ignored)}: pass "
                "either."
            )
        # Original checkpoints name the placeholder in their tokenizer only.
        if model.config.image_token_id is None:
            model.config.image_token_id = processor.image_token_id
        return cls(model=model, processor=processor)

    @property
    def default_guidance_scale(self) -> float:
        """The guidance scale that `guidance_scale=None` stands for: the model's own, or the original's 5."""
        return float(getattr(self.model.generation_config, "image_guidance_scale", GUIDANCE_SCALE))

    def _step_callback(
        self, report_progress: Callable[[], object], callback: Callable[..., Any] | None, names: Sequence[str]
    ) -> Callable[[int, torch.Tensor], torch.Tensor | None]:
        """Return the callback for `generate_images` that reports progress and runs the caller's callback.

        It is called with the number of the step and the image tokens so far `(B, step + 1)`, and returns the `(B,)`
        tokens that replace the newest ones, or None.
        """

        def on_step(step: int, image_ids: torch.Tensor) -> torch.Tensor | None:
            report_progress()
            if callback is None:
                return None
            changed = callback(self, step, step, {"image_ids": image_ids} if "image_ids" in names else {}) or {}
            return changed["image_ids"][:, -1] if "image_ids" in changed else None

        return on_step


def _join(parts: list[Any]) -> Any:
    """Return the batches of one output type, lists of images, arrays or tensors, as one."""
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return [image for part in parts for image in part]


__all__ = ["JanusProPipeline", "JanusProPipelineOutput"]
