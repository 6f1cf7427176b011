"""`SampleCallback`, with which a model generates images and answers questions at regular intervals of its training."""

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

from ..answering import answer
from ..image_grid import image_grid
from ..modeling import JanusProForConditionalGeneration
from ..processing import JanusProProcessor, load_picture
from .stages import base_model


if TYPE_CHECKING:
    from peft import PeftModel


class SampleCallback(TrainerCallback):
    """Generate images for prompts and answer questions at regular intervals of training.

    The callback writes `samples/step-N.png` (a grid with one image per prompt, row by row) and `samples/step-N.json`
    (prompts, questions, answers) into the output folder, and sends both to TensorBoard, W&B and trackio if the run
    reports to them. The same seeds are used every time, so that images of different steps can be compared. Random
    states, training mode and caches are the same afterwards as before, so a run trains in the same way with samples as
    without.

    Args:
        processor: The model's processor.
        prompts: Prompts of the images to generate.
        questions: Questions to answer, each a dict `{"question": text, "image": path or image}`; `image` is optional.
        every: Number of training steps between samples. Samples are also made after the last step.
        guidance_scale: Scale of the classifier-free guidance of the images; None uses the model's default.
        max_new_tokens: Upper bound on the number of tokens of an answer.
        seed: Seed of the first image; the seed of each further image is one higher.

    Raises:
        ValueError: If there is neither a prompt nor a question, `every` is below 1, or an image cannot be read.
    """

    def __init__(
        self,
        processor: JanusProProcessor,
        *,
        prompts: Sequence[str] = (),
        questions: Sequence[dict[str, Any]] = (),
        every: int = 500,
        guidance_scale: float | None = None,
        max_new_tokens: int = 64,
        seed: int = 0,
    ) -> None:
        if every < 1 or not (prompts or questions):
            raise ValueError(
                f"`every` must be at least 1 and `prompts` or `questions` must not be empty, got every={every}, "
                f"{len(prompts)} prompts and {len(questions)} questions: pass a prompt or a question, or leave the "
                "callback out."
            )
        self.processor, self.prompts, self.every = processor, list(prompts), every
        self.guidance_scale, self.max_new_tokens, self.seed = guidance_scale, max_new_tokens, seed
        self.questions = [dict(question) for question in questions]
        # Images are read now, so that an unreadable file stops the run before its first step.
        self._question_images = [load_picture(q["image"]) if "image" in q else None for q in self.questions]
        # All callbacks of the trainer, among them those that write logs; set by the trainer.
        self.loggers: Sequence[TrainerCallback] = ()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: "JanusProForConditionalGeneration | PeftModel | None" = None,
        **kwargs: Any,
    ) -> None:
        """Make samples after every `every`-th training step and after the last one, and write and log them.

        All processes run the model, because it may be sharded over them. Only the main process writes and logs.
        """
        last = min(getattr(args, "stop_step", None) or state.max_steps, state.max_steps)
        if state.global_step % self.every and state.global_step != last:
            return
        assert model is not None  # transformers passes it to every callback
        images, answers = self.sample(model, autocast=bool(args.bf16))
        if state.is_world_process_zero:
            self._write(Path(args.output_dir) / "samples", state.global_step, images, answers)
            self.log_samples(args, state.global_step, images, answers)

    def sample(
        self, model: "JanusProForConditionalGeneration | PeftModel", *, autocast: bool = False
    ) -> tuple[list[Image.Image], list[str]]:
        """Generate the images of all prompts and answer all questions, without changing the model or random states.

        Args:
            model: The model, with or without PEFT's adapters, sharded by FSDP2 or not.
            autocast: Whether to compute under bfloat16 autocast, as training with `bf16=True` does. In such a run the
                trained weights may be float32 and the frozen weights bfloat16, and only autocast can combine them.

        Returns:
            A list of one RGB image per prompt, and a list of one answer per question.
        """
        device_type = next(model.parameters()).device.type
        with sampling_mode(model), torch.autocast(device_type, torch.bfloat16, enabled=autocast):
            images = [self._generate_image(base_model(model), index) for index in range(len(self.prompts))]
            answers = [self._answer(base_model(model), index) for index in range(len(self.questions))]
        return images, answers

    # Prompts and questions are not batched, because the training uses most of the GPU's memory.
    @torch.no_grad()
    def _generate_image(self, model: JanusProForConditionalGeneration, index: int) -> Image.Image:
        """Generate the RGB image of the prompt at position `index` in `self.prompts`."""
        image_ids = model.generate_images(
            **self.processor.prepare_image_generation([self.prompts[index]]).to(model.device),
            pad_token_id=self.processor.pad_token_id,
            guidance_scale=self.guidance_scale,
            # Every prompt has a random generator of its own, so that its image does not depend on the other prompts.
            generator=torch.Generator().manual_seed(self.seed + index),
            cache_implementation="dynamic",
        )
        (image,) = self.processor.post_process_images(model.decode_image_ids(image_ids), output_type="pil")
        return image

    def _answer(self, model: JanusProForConditionalGeneration, index: int) -> str:
        """Return the model's answer, decoded greedily, to the question at position `index` in `self.questions`."""
        content: list[dict[str, Any]] = [{"type": "text", "text": self.questions[index]["question"]}]
        if (image := self._question_images[index]) is not None:
            content.insert(0, {"type": "image", "image": image})
        messages = [{"role": "user", "content": content}]
        return answer(model, self.processor, [messages], max_new_tokens=self.max_new_tokens)[0]

    def _write(self, folder: Path, step: int, images: list[Image.Image], answers: list[str]) -> None:
        """Write the samples of one training step as `step-N.png` (grid of the images) and `step-N.json` (texts).

        Args:
            folder: Folder of the samples; created if it is missing.
            step: Number `N` of the step.
            images: One image per prompt; without images only the JSON file is written.
            answers: One answer per question.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if images:
            image_grid(images, background="black").save(folder / f"step-{step}.png")
        entries = [
            {"question": question["question"], "image": str(question.get("image", "")), "answer": text}
            for question, text in zip(self.questions, answers, strict=True)
        ]
        text = json.dumps({"step": step, "prompts": self.prompts, "answers": entries}, indent=2, ensure_ascii=False)
        (folder / f"step-{step}.json").write_text(text + "\n", encoding="utf-8")

    def log_samples(
        self, args: TrainingArguments, step: int, images: Sequence[Image.Image], answers: Sequence[str]
    ) -> None:
        """Send the samples of one training step to TensorBoard, W&B and trackio, if the run reports to them.

        Args:
            args: The run's arguments, whose `report_to` names the logging libraries.
            step: Number of the optimizer step after which the samples were made.
            images: One image per prompt.
            answers: One answer per question.
        """
        text = "\n\n".join(
            f"**{question['question']}** {answer}" for question, answer in zip(self.questions, answers, strict=True)
        )
        for callback in self.loggers:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                for i, image in enumerate(images):
                    callback.tb_writer.add_image(f"samples/{i}", np.asarray(image), step, dataformats="HWC")
                if text:
                    callback.tb_writer.add_text("samples/answers", text, step)
        for name in {"wandb", "trackio"} & set(args.report_to):
            _log_images(name, self.prompts, images, text, step)


def _log_images(name: str, prompts: Sequence[str], images: Sequence[Image.Image], text: str, step: int) -> None:
    """Log the sampled images and answers of one training step to W&B or trackio.

    Args:
        name: Name of the library, "wandb" or "trackio". Both have `Image` and `log` with the arguments used here.
        prompts: Captions of the images, one per image.
        images: The images.
        text: Questions and answers in Markdown.
        step: Number of the optimizer step after which the samples were made.
    """
    library = __import__(name)  # imported by its name, because both libraries are optional
    captioned = [library.Image(image, caption=prompt) for prompt, image in zip(prompts, images, strict=True)]
    entries = {f"samples/{i}": image for i, image in enumerate(captioned)}
    # transformers makes the metric `train/global_step` the x-axis of W&B's charts.
    if name == "wandb":
        library.log({**entries, "samples/answers": text, "train/global_step": step})
    else:
        library.log({**entries, "samples/answers": text}, step=step)


@contextmanager
def sampling_mode(model: torch.nn.Module) -> Iterator[None]:
    """Prepare a model that is being trained for calls of its parts, such as sampling, inside the `with` block.

    The block is one of `undisturbed`, in which the model is in eval mode, and weights that FSDP2 has sharded are
    gathered. Afterwards the weights are sharded again.
    """
    # FSDP2 gathers weights in the forward pass of the root module, but sampling calls parts of the model directly.
    unshard, reshard = getattr(model, "unshard", None), getattr(model, "reshard", None)
    with undisturbed(model):
        model.eval()
        if unshard is not None:
            unshard()
        try:
            yield
        finally:
            if reshard is not None:
                reshard()


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Restore the training mode of every module and all random states at the end of the `with` block."""
    # The mode of every module is kept, because frozen parts of the model are in eval mode while the others train.
    modes = {module: module.training for module in model.modules()}
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            for module, mode in modes.items():
                module.training = mode


__all__ = ["SampleCallback", "sampling_mode", "undisturbed"]
