"""Pictures drawn and questions answered while training."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from ..answering import answer
from ..image_grid import image_grid
from ..processing import load_picture


class SampleCallback(TrainerCallback):
    """Draws prompts and answers questions every so many steps.

    Writes `samples/step-N.png` (a grid, one picture per prompt, read row by row) and `samples/step-N.json` (prompts,
    questions, answers) into the output folder, and hands both to TensorBoard, W&B and trackio where the run reports to
    them. The same seeds are used every time, so that pictures of different steps can be compared. Random states,
    training mode and caches are left as they were: a run with samples equals one without.

    Args:
        processor: The `JanusProProcessor`.
        prompts: What to draw.
        questions: `{"question": text, "image": path or picture}`; without an image a question about nothing.
        every: Steps between samples; the last step is always sampled.
        guidance_scale: Of the pictures; None is the model's own.
        max_new_tokens: Longest answer.
        seed: Of the first picture; the next ones count up.

    Raises:
        ValueError: If there is nothing to sample, `every` is below 1, or a picture cannot be read.
    """

    def __init__(
        self,
        processor: Any,
        *,
        prompts: Sequence[str] = (),
        questions: Sequence[dict[str, Any]] = (),
        every: int = 500,
        guidance_scale: float | None = None,
        max_new_tokens: int = 64,
        seed: int = 0,
    ) -> None:
        if every < 1 or not (prompts or questions):
            raise ValueError(f"Nothing to sample: {len(prompts)} prompts, {len(questions)} questions, every {every}.")
        self.processor, self.prompts, self.every = processor, list(prompts), every
        self.guidance_scale, self.max_new_tokens, self.seed = guidance_scale, max_new_tokens, seed
        self.questions = [
            {**question, "picture": load_picture(question["image"]) if "image" in question else None}
            for question in questions
        ]
        self.loggers: Sequence[TrainerCallback] = ()  # the trainer's callbacks, set by `JanusProSFTTrainer`

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Every process takes part, because a sharded model needs all; the main one writes."""
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        precision = torch.autocast(next(model.parameters()).device.type, torch.bfloat16, enabled=bool(args.bf16))
        with _undisturbed(model), precision:  # as in training: what is trained is float32 among bfloat16 weights
            pictures = self._draw(model)
            answers = [self._answer(model, question) for question in self.questions]
        if state.is_world_process_zero:
            self._write(Path(args.output_dir) / "samples", state.global_step, pictures, answers)
            self._show(args, state.global_step, pictures, answers)

    @torch.no_grad()
    def _draw(self, model: Any) -> list[Image.Image]:
        base = _plain(model)
        pictures: list[Image.Image] = []
        for i, prompt in enumerate(self.prompts):  # one by one: memory is the training's
            codes = base.generate_images(
                **self.processor.prepare_image_generation([prompt]).to(base.device),
                pad_token_id=self.processor.pad_token_id,
                guidance_scale=self.guidance_scale,
                generator=torch.Generator().manual_seed(self.seed + i),
                cache_implementation="dynamic",
            )
            pictures += self.processor.post_process_images(base.decode_image_ids(codes), output_type="pil")
        return pictures

    def _answer(self, model: Any, question: dict[str, Any]) -> str:
        base = _plain(model)
        content: list[dict[str, Any]] = [{"type": "text", "text": question["question"]}]
        if question["picture"] is not None:
            content.insert(0, {"type": "image", "image": question["picture"]})
        messages = [{"role": "user", "content": content}]
        return answer(base, self.processor, [messages], max_new_tokens=self.max_new_tokens)[0]

    def _write(self, folder: Path, step: int, pictures: list[Image.Image], answers: list[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if pictures:
            image_grid(pictures, background="black").save(folder / f"step-{step}.png")
        asked = [
            {"question": question["question"], "image": str(question.get("image", "")), "answer": answer}
            for question, answer in zip(self.questions, answers, strict=True)
        ]
        text = json.dumps({"step": step, "prompts": self.prompts, "answers": asked}, indent=2, ensure_ascii=False)
        (folder / f"step-{step}.json").write_text(text + "\n", encoding="utf-8")

    def _show(self, args: Any, step: int, pictures: list[Image.Image], answers: list[str]) -> None:
        text = "\n\n".join(
            f"**{question['question']}** {answer}" for question, answer in zip(self.questions, answers, strict=True)
        )
        for callback in self.loggers:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                for i, picture in enumerate(pictures):
                    callback.tb_writer.add_image(f"samples/{i}", np.asarray(picture), step, dataformats="HWC")
                if text:
                    callback.tb_writer.add_text("samples/answers", text, step)
        for name in {"wandb", "trackio"} & set(args.report_to):
            _log_pictures(name, self.prompts, pictures, text, step)


def _log_pictures(name: str, prompts: Sequence[str], pictures: Sequence[Image.Image], text: str, step: int) -> None:
    """W&B and trackio agree in the names of what is needed here."""
    library = __import__(name)
    shown = [library.Image(picture, caption=prompt) for prompt, picture in zip(prompts, pictures, strict=True)]
    entries = {f"samples/{i}": picture for i, picture in enumerate(shown)}
    if name == "wandb":
        library.log({**entries, "samples/answers": text, "train/global_step": step})
    else:
        library.log({**entries, "samples/answers": text}, step=step)


@contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Eval mode inside; the mode of every module and all random states as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    sharded = hasattr(model, "unshard")  # FSDP2: drawing calls parts of the model, whose own parameters must be there
    with torch.random.fork_rng(devices):
        model.eval()
        if sharded:
            model.unshard()
        try:
            yield
        finally:
            if sharded:
                model.reshard()
            for module, mode in modes.items():
                module.training = mode


def _plain(model: Any) -> Any:
    """The Janus-Pro inside PEFT's wrapper, whose `generate` knows text only; adapters stay in place."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


__all__ = ["SampleCallback"]
