"""`JanusProPipeline`: draw the diffusers way, ask and chat besides.

The friendly tier over `generate_images` and `generate`: strings and pictures outside, ids inside. Components are the
model and its processor; a saved pipeline is one flat folder that `AutoModel` and `AutoProcessor` read as well.
"""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from accelerate.hooks import CpuOffload
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput

from ..checkpoints.cards import model_card
from ..generation.images import GUIDANCE_SCALE
from ..layouts import Layout
from ..modeling import JanusProForConditionalGeneration
from ..processing import JanusProProcessor
from .chat import ChatPipelineMixin
from .lora import LoraPipelineMixin


_UPLOAD_ARGUMENTS = ("private", "token", "commit_message", "create_pr")
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")


@dataclass
class JanusProPipelineOutput(BaseOutput):
    """Drawn pictures.

    Args:
        images: `output_type` decides: a list of PIL images, `(N, H, W, 3)` float32 in [0, 1] ("np"), `(N, 3, H, W)` in
            [0, 1] ("pt"), or `(N, P)` int64 codes ("latent").
        image_ids: `(N, P)` int64, the codes in every case.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    image_ids: torch.Tensor


class JanusProPipeline(ChatPipelineMixin, LoraPipelineMixin, DiffusionPipeline):
    """Janus-Pro as a pipeline: `pipe("a prompt").images[0]` draws, `pipe.ask(image, "a question")` answers.

    Args:
        model: The model with both heads.
        processor: Its processor.
    """

    model: JanusProForConditionalGeneration
    processor: JanusProProcessor
    model_cpu_offload_seq = "model"
    _callback_tensor_inputs = ("image_ids",)

    def __init__(self, model: JanusProForConditionalGeneration, processor: JanusProProcessor) -> None:
        super().__init__()
        self.register_modules(model=model, processor=processor)
        # Public names in model_index.json, not the modules the classes happen to live in.
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
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("image_ids",),
        speculative_window: int = 1,
        cache_implementation: Literal["static", "dynamic"] = "static",
    ) -> JanusProPipelineOutput | tuple[Any, torch.Tensor]:
        """Draw pictures.

        Args:
            prompt: What to draw; a list draws one picture (or `num_images_per_prompt`) for each.
            negative_prompt: What to be guided away from, one for all prompts or one each. Default: the unconditional
                prompt.
            height, width: Only the model's own size can be drawn.
            guidance_scale: 1 draws without guidance at half the cost; None is the model's own, which is 5 for the
                released ones.
            num_images_per_prompt: Pictures of one prompt follow each other in the result.
            do_sample, temperature, top_k, top_p: How codes are drawn; the default samples the full softmax, as the
                original does.
            generator: One for all pictures, or a list with one for each (`len(prompt) * num_images_per_prompt`): the
                same seed then draws the same picture in whatever batch.
            image_ids: `(N, p)` codes that the pictures begin with, one row per picture.
            batch_size: Draw so many pictures at a time; each needs its own attention cache (0.25 GB for the 1B in
                bfloat16, 0.6 GB for the 7B). The result does not depend on it.
            output_type: "pil", "np", "pt" or "latent" (codes).
            return_dict: False returns `(images, image_ids)`.
            callback_on_step_end: Called as `callback(pipe, step, step, {"image_ids": codes so far})` after every code
                of a batch. If it returns a dict with "image_ids", the last column replaces the codes just drawn.
            callback_on_step_end_tensor_inputs: What the callback gets; "image_ids" is what there is.
            speculative_window: Guess so many codes ahead and keep those that come true: the same pictures in fewer,
                larger steps (see `JanusProForConditionalGeneration.generate_images`). 1 guesses nothing.
            cache_implementation: "static" or "dynamic".

        Raises:
            ValueError, TypeError: If an argument is out of range or of the wrong kind.
            FloatingPointError: If the model's logits stop being finite.
        """
        prompts = _check_texts(prompt, "prompt")
        self._check_size(height, width)
        if num_images_per_prompt < 1 or batch_size < 1:
            raise ValueError(
                f"num_images_per_prompt and batch_size must be at least 1, got {num_images_per_prompt} and "
                f"{batch_size}."
            )
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type must be 'pil', 'np', 'pt' or 'latent', got {output_type!r}.")
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(
                f"callback_on_step_end_tensor_inputs may name {list(self._callback_tensor_inputs)}, got "
                f"{sorted(unknown)} besides."
            )
        negatives = None if negative_prompt is None else _check_texts(negative_prompt, "negative_prompt")
        if isinstance(negative_prompt, str):
            negatives = [negative_prompt] * len(prompts)
        if negatives is not None and len(negatives) != len(prompts):
            raise ValueError(
                f"Expected one negative prompt, or one per prompt ({len(prompts)}), got {len(negatives)}."
            )
        total = len(prompts) * num_images_per_prompt
        if isinstance(generator, (list, tuple)) and len(generator) != total:
            raise ValueError(
                f"Expected one generator per picture: {len(prompts)} prompts x {num_images_per_prompt} = {total}, got "
                f"{len(generator)}."
            )
        if image_ids is not None and (image_ids.ndim != 2 or len(image_ids) != total):
            raise ValueError(
                f"Expected image_ids with one row of codes per picture ({total}), got shape {tuple(image_ids.shape)}."
            )

        self._wake_model()
        rows = [i for i in range(len(prompts)) for _ in range(num_images_per_prompt)]
        starts = range(0, total, batch_size)
        codes, pictures = [], []
        num_codes = self.model.config.vq_config.num_image_tokens
        num_given = 0 if image_ids is None else image_ids.shape[1]
        with self.progress_bar(total=(num_codes - num_given) * len(starts)) as progress:
            for start in starts:
                part = slice(start, start + batch_size)
                inputs = self.processor.prepare_image_generation(
                    [prompts[i] for i in rows[part]], None if negatives is None else [negatives[i] for i in rows[part]]
                ).to(self._execution_device)
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
                    callback=self._step_callback(progress, callback_on_step_end, callback_on_step_end_tensor_inputs),
                )
                codes.append(part_ids)
                if output_type != "latent":
                    pictures.append(self.decode(part_ids, output_type))
        self.maybe_free_model_hooks()

        all_ids = torch.cat(codes)
        images = all_ids if output_type == "latent" else _join(pictures)
        return JanusProPipelineOutput(images=images, image_ids=all_ids) if return_dict else (images, all_ids)

    def enable_fast_decoding(
        self, batch_sizes: Sequence[int] = (1,), *, speculative_window: int = 1, mode: str | None = None
    ) -> bool:
        """Compile the step that draws; see `JanusProForConditionalGeneration.compile_generation`.

        Args:
            batch_sizes: Numbers of pictures at once to compile for now; others are compiled for when they come. Give
                the `batch_size` you will draw with.
            speculative_window: The one you will draw with.
            mode: Of `torch.compile`, instead of the package's choice.

        Returns:
            Whether drawing is compiled now; where there is no compiler it is not, and a warning says so.

        Raises:
            ValueError: If the model is spread over devices or offloaded.
        """
        return self.model.compile_generation(mode=mode, warm_up=batch_sizes, speculative_window=speculative_window)

    def disable_fast_decoding(self) -> None:
        """Undo `enable_fast_decoding`."""
        self.model.compile_generation(False)

    def decode(self, image_ids: torch.Tensor, output_type: Literal["pil", "np", "pt"] = "pil") -> Any:
        """Codes `(N, P)` -> pictures, in the forms of `__call__`'s `output_type` ("pil", "np" or "pt")."""
        self._wake_model()
        pixel_values = self.model.decode_image_ids(image_ids.to(self._execution_device))
        return self.processor.post_process_images(pixel_values, output_type=output_type)

    def encode(self, images: Any) -> torch.Tensor:
        """Pictures (PIL, paths, URLs or arrays; one or a list) -> codes `(N, P)` int64: short side resized, centre
        cropped.
        """
        self._wake_model()
        pixel_values = self.processor.image_processor(images, mode="generation", return_tensors="pt").pixel_values
        return self.model.encode_image_ids(pixel_values.to(self._execution_device))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *,
        model: JanusProForConditionalGeneration | None = None,
        processor: JanusProProcessor | None = None,
        torch_dtype: Any = None,
        **kwargs: Any,
    ) -> "JanusProPipeline":
        """Load from a repository or folder: an original release, a transformers conversion, or a saved pipeline.

        Args:
            pretrained_model_name_or_path: Repository id or folder.
            model, processor: Components to use instead of loading them.
            torch_dtype: Same as `dtype`, for habits from diffusers.
            kwargs: Hub arguments (`revision`, `token`, `cache_dir`, `subfolder`, ...) go to both components;
                everything else (`dtype`, `device_map`, `quantization_config`, `variant`, ...) to the model's
                `from_pretrained`.

        Raises:
            CheckpointError: If the weights are not exactly the model's.
            ValueError: If `model` is given together with arguments that load one.
        """
        if torch_dtype is not None:
            kwargs.setdefault("dtype", torch_dtype)
        hub_arguments = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
        if processor is None:
            processor = JanusProProcessor.from_pretrained(pretrained_model_name_or_path, **hub_arguments)
        if model is None:
            model = JanusProForConditionalGeneration.from_pretrained(pretrained_model_name_or_path, **kwargs)
        elif ignored := sorted(kwargs.keys() - hub_arguments.keys()):
            raise ValueError(f"{', '.join(ignored)} would load a model, but one is given: pass either, not both.")
        if model.config.image_token_id is None:
            model.config.image_token_id = processor.image_token_id
        return cls(model=model, processor=processor)

    def save_pretrained(
        self,
        save_directory: Any,
        *,
        layout: Layout | None = None,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        safe_serialization: bool = True,
        **kwargs: Any,
    ) -> None:
        """Write one flat folder for this pipeline, `AutoModel`, `AutoProcessor` and, by layout, the original code or
        transformers.

        Args:
            layout: See `JanusProPreTrainedModel.save_pretrained`.
            variant, max_shard_size: As in transformers.
            push_to_hub: Upload afterwards; `kwargs` as in `push_to_hub`, `repo_id` defaulting to the folder's name.
            safe_serialization: Weights are always written as safetensors; False is refused.

        Raises:
            ValueError: If adapters are loaded: the folder would hold only them.
            TypeError: If an argument is unknown, or is for the upload and there is none.
        """
        if unknown := set(kwargs) - ({"repo_id", *_UPLOAD_ARGUMENTS} if push_to_hub else set()):
            raise TypeError(
                f"save_pretrained does not know {sorted(unknown)}"
                + ("." if push_to_hub else "; repo_id and the like need push_to_hub=True.")
            )
        if not safe_serialization:
            raise ValueError("Weights are written as safetensors only; leave safe_serialization at True.")
        if self.get_list_adapters():
            raise ValueError(
                f"Adapters {self.get_list_adapters()} are loaded. To save the adapter use save_lora_weights; to save "
                "a model with them inside, fuse_lora() and unload_lora_weights() first; to save the base model, "
                "unload_lora_weights() first."
            )
        sharding = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        self.model.save_pretrained(save_directory, layout=layout, variant=variant, **sharding)
        with open(os.path.join(save_directory, "config.json"), encoding="utf-8") as file:
            written: Layout = "transformers" if json.load(file)["model_type"] == "janus" else "original"
        self.processor.save_pretrained(save_directory, layout=written)
        self.save_config(save_directory)
        model_card(self.model).save(os.path.join(save_directory, "README.md"))
        if push_to_hub:
            self._upload(save_directory, **{"repo_id": Path(save_directory).resolve().name, **kwargs})

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload the pipeline with a model card.

        Args:
            repo_id: `name` or `organisation/name`.
            kwargs: `private`, `token`, `commit_message`, `create_pr` for the Hub; the rest goes to `save_pretrained`.

        Returns:
            The commit's URL.
        """
        hub = {k: kwargs.pop(k) for k in _UPLOAD_ARGUMENTS if k in kwargs}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **kwargs)
            return self._upload(folder, repo_id=repo_id, **hub)

    def _upload(
        self,
        folder: Any,
        *,
        repo_id: str,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        model_card(self.model, repo_id).save(os.path.join(folder, "README.md"))
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message or "Upload JanusProPipeline",
            create_pr=create_pr,
        )
        return commit.commit_url

    @property
    def default_guidance_scale(self) -> float:
        """What `guidance_scale=None` draws with: the model's own, or the original's 5."""
        return float(getattr(self.model.generation_config, "image_guidance_scale", GUIDANCE_SCALE))

    def _wake_model(self) -> None:
        """Bring a CPU-offloaded model in: its hook fires on `forward` only, and drawing and decoding do not pass
        there.
        """
        hook = getattr(self.model, "_hf_hook", None)
        if isinstance(hook, CpuOffload):
            hook.pre_forward(self.model)

    def _step_callback(
        self, progress: Any, callback: Callable[..., Any] | None, names: Sequence[str]
    ) -> Callable[..., Any]:
        def on_code(step: int, codes: torch.Tensor) -> torch.Tensor | None:
            progress.update()
            if callback is None:
                return None
            answer = callback(self, step, step, {"image_ids": codes} if "image_ids" in names else {}) or {}
            return answer["image_ids"][:, -1] if "image_ids" in answer else None

        return on_code

    def _check_size(self, height: int | None, width: int | None) -> None:
        side = self.model.config.vq_config.image_size
        if height not in (None, side) or width not in (None, side):
            raise ValueError(
                f"This model draws {side}x{side} pictures only ({self.model.config.vq_config.num_image_tokens} codes, "
                f"the number it was trained on), got height={height}, width={width}. Leave both out and resize the "
                "result."
            )


def _check_texts(texts: Any, name: str) -> list[str]:
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name} must be a string or a list of strings, got {type(texts).__name__}.")
    if not texts:
        raise ValueError(f"There is nothing to draw: the list given as {name} is empty.")
    return list(texts)


def _join(parts: list[Any]) -> Any:
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return [picture for part in parts for picture in part]


__all__ = ["JanusProPipeline", "JanusProPipelineOutput"]
