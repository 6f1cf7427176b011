"""Class `JanusPro`, which runs Janus-Pro as a model of the evaluation harness lmms-eval:

    python -m lmms_eval --model janus_pro --model_args pretrained=deepseek-ai/Janus-Pro-7B,prompt_style=paper \\
        --tasks pope,mme,gqa --batch_size 8

The class implements the interface of "simple" models of lmms-eval 0.7.3 (lmms_eval/api/model.py).
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..answering import Conversation, answer
from ..evaluation.benchmarks import protocol
from ..processing.pictures import flatten_images
from . import DEFAULT_CHECKPOINT, load_pipeline
from .lmms_eval_requests import (
    DRAW_TASKS,
    PAPER_TASKS,
    Request,
    generation_settings,
    lmms_conversation,
    paper_prompt,
)
from .paper_style import answer_as_authors


if TYPE_CHECKING:
    from lmms_eval.api.instance import Instance
    from PIL.Image import Image

    from ..pipelines import JanusProPipeline

try:
    from lmms_eval.api.model import lmms
except ImportError as error:
    raise ImportError("This is a model for lmms-eval, which is missing: pip install 'lmms-eval>=0.7.3'.") from error


class JanusPro(lmms):
    """Run Janus-Pro as a model of lmms-eval: it answers questions, and generates images for tasks that judge images.

    Args:
        pretrained: Repository id on the Hub, or folder of the checkpoint.
        prompt_style: "lmms" uses the task's own prompt and generation settings, in the model's chat format. "paper"
            uses the prompts with which the authors of Janus-Pro evaluated it (`evaluation.benchmarks.protocol`), built
            from the rows of the task's data set, and their settings: greedy decoding, at most 2048 new tokens, no
            system prompt except for MM-Vet. "paper" is available only for the tasks in `PAPER_TASKS`.
        batch_size: Number of requests that are run at a time. Neither answers nor images depend on it.
        device: Device of the model. With several processes, each uses the device that accelerate assigns to it.
        dtype: "bfloat16", "float32", ..., or "auto" for the dtype of the checkpoint.
        revision: Branch, tag or commit of the repository.
        system_prompt: System prompt of the style "lmms"; None uses the model's default, "" uses no system prompt.
        draw_tasks: Prefixes, joined by "+", of the names of tasks whose prompts describe images to generate. The
            answer to such a prompt is the JSON `{"text": "", "images": [path, ...]}`.
        images_per_prompt: Number of images to generate for each such prompt.
        guidance_scale: Classifier-free guidance scale of these images; None uses the model's default.
        seed: Image k (from 0) of a prompt is generated with the seed `seed + k`.
        output_dir: Folder of the images. Image k of row `doc_id` is written to
            `{output_dir}/{task}/{doc_id:04d}_s{k}.png`.
        max_batch_size: Ignored. lmms-eval passes it for automatic batch sizes, which this model does not support.

    Raises:
        ValueError: If an argument is out of range.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = DEFAULT_CHECKPOINT,
        prompt_style: Literal["lmms", "paper"] = "lmms",
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str = "bfloat16",
        revision: str | None = None,
        system_prompt: str | None = None,
        draw_tasks: str = DRAW_TASKS,
        images_per_prompt: int = 1,
        guidance_scale: float | None = None,
        seed: int = 42,
        output_dir: str = "./logs/janus_pro",
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if prompt_style not in ("lmms", "paper"):
            raise ValueError(f"`prompt_style` must be 'lmms' or 'paper', got {prompt_style!r}: choose one of them.")
        if not str(batch_size).isdecimal() or int(batch_size) < 1 or int(images_per_prompt) < 1:
            raise ValueError(
                "`batch_size` and `images_per_prompt` must be whole numbers of at least 1, got "
                f"{batch_size!r} and {images_per_prompt!r}: name a number, there is no 'auto' here."
            )
        self.prompt_style, self.batch_size = prompt_style, int(batch_size)
        self.system_prompt = "default" if system_prompt is None else system_prompt
        self.draw_tasks = tuple(name.lower() for name in draw_tasks.split("+") if name)
        self.images_per_prompt, self.guidance_scale, self.seed = int(images_per_prompt), guidance_scale, int(seed)
        self.output_dir = Path(output_dir)

        self.accelerator = Accelerator()
        # lmms-eval's evaluator indexes with the rank over all machines, not with the rank on one machine.
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        is_alone = self._world_size == 1
        self.device = torch.device(device) if device is not None and is_alone else self.accelerator.device
        self.pipe: JanusProPipeline = load_pipeline(pretrained, dtype=dtype, device=self.device, revision=revision)

    def generate_until(self, requests: "Sequence[Instance]") -> list[str]:
        """Return one string per request, in their order: the answer, or the JSON that lists the generated images.

        In the prompt style "lmms", decoding is greedy unless a task asks for sampling, and an answer is cut before the
        first of the task's `until` strings. lmms-eval's default `until`, "\\n\\n", is ignored, because it would cut an
        answer after its first paragraph. The setting `image_aspect_ratio`, which is meant for other models, is ignored
        too. In both styles, the full stop of the answers "Yes." and "No." is removed.

        Raises:
            ValueError: If the prompt style "paper" has no prompt for a task, an image cannot be read, a prompt is
                longer than the model's context, or a task asks to edit an image, which Janus-Pro cannot do.
        """
        results = [""] * len(requests)
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Janus-Pro") as progress:
            for numbers in self._batches(requests):
                batch = [Request(*requests[number].args) for number in numbers]
                reply = self._generate_images if self._judges_images(batch[0].task) else self._answer
                for number, request, text in zip(numbers, batch, reply(batch), strict=True):
                    results[number] = text
                    self.cache_hook.add_partial("generate_until", (request.context, request.gen_kwargs), text)
                progress.update(len(batch))
        return results

    def generate_until_multi_round(self, requests: "Sequence[Instance]") -> list[list[str]]:
        """Return the answers of conversations in which the task reads every answer and asks the next question.

        Raises:
            ValueError: If the prompt style is "paper", which has prompts for single questions only.
        """
        if self.prompt_style == "paper":
            raise ValueError(
                "`prompt_style` must be 'lmms' for several rounds, got 'paper': the authors' prompts are for single "
                "questions, use prompt_style=lmms."
            )
        return [self._rounds(request) for request in tqdm(requests, disable=self.rank != 0, desc="Janus-Pro")]

    def loglikelihood(self, requests: "Sequence[Instance]") -> list[tuple[float, bool]]:
        """Raise NotImplementedError: lmms-eval's tasks disagree on whether this returns a loss or a likelihood."""
        raise NotImplementedError(
            "janus_pro answers in words and ranks no given answers. Use the variant of the task that generates, as "
            "seedbench instead of seedbench_ppl."
        )

    def clean(self) -> None:
        """Drop the pipeline, so that the memory of its model can be freed."""
        self.pipe = None  # type: ignore[assignment]  # lmms-eval calls no other method afterwards
        super().clean()

    def _batches(self, requests: "Sequence[Instance]") -> Iterator[list[int]]:
        """Yield batches of at most `batch_size` indices of requests that share their task and generation settings."""
        groups: dict[tuple[str, str], list[int]] = {}
        for number, instance in enumerate(requests):
            request = Request(*instance.args)
            settings = json.dumps(request.gen_kwargs, sort_keys=True, default=str)
            groups.setdefault((request.task, settings), []).append(number)
        for numbers in groups.values():
            for start in range(0, len(numbers), self.batch_size):
                yield numbers[start : start + self.batch_size]

    def _answer(self, batch: Sequence[Request]) -> list[str]:
        """Return the answers to requests of one task with equal generation settings, in the style `prompt_style`."""
        images = [self._images(request) for request in batch]
        if self.prompt_style == "lmms":
            conversations = [
                lmms_conversation(request.context, shown) for request, shown in zip(batch, images, strict=True)
            ]
            return self._reply(conversations, batch[0].gen_kwargs)
        image_token = self.pipe.processor.image_token
        conversations = [
            protocol.paper_conversation(paper_prompt(request.task, self._doc(request)), shown, image_token=image_token)
            for request, shown in zip(batch, images, strict=True)
        ]
        system_prompt = protocol.system_prompt(PAPER_TASKS[batch[0].task])
        texts = answer_as_authors(self.pipe, conversations, system_prompt=system_prompt)
        return [protocol.plain_yes_no(text) for text in texts]

    def _reply(self, conversations: Sequence[Conversation], gen_kwargs: Mapping[str, Any]) -> list[str]:
        """Return the answers to conversations in the prompt style "lmms", with a task's generation settings."""
        until, settings = generation_settings(gen_kwargs)
        texts = answer(
            self.pipe.model, self.pipe.processor, conversations, system_prompt=self.system_prompt, **settings
        )
        for stop in until:
            texts = [text.split(stop)[0] for text in texts]
        return [protocol.plain_yes_no(text) for text in texts]

    def _rounds(self, instance: "Instance") -> list[str]:
        """Run one conversation of several rounds and return its answers.

        After every answer, the task's function `doc_to_text` gives the next question or ends the conversation. It may
        also change the answers so far.
        """
        context, gen_kwargs, doc_to_visual, doc_to_text, doc_id, task, split = instance.args
        doc = self.task_dict[task][split][doc_id]
        outputs: list[str] = []
        visuals, info = doc_to_visual(doc), None
        for number in itertools.count(1):
            conversation = lmms_conversation(context, flatten_images(visuals))
            outputs = [*outputs, *self._reply([conversation], gen_kwargs)]
            visuals, context, is_over, outputs, info = doc_to_text(
                doc, previous_output=outputs, round_idx=number, previous_round_info=info
            )
            if is_over:
                break
        return list(outputs)

    def _judges_images(self, task: str) -> bool:
        """Return whether a task judges generated images, which is so if its name begins with one of `draw_tasks`."""
        return bool(self.draw_tasks) and task.lower().startswith(self.draw_tasks)

    def _generate_images(self, batch: Sequence[Request]) -> list[str]:
        """Generate and save the images of a batch of requests, and return the JSON with the paths of each request."""
        for request in batch:
            if self._images(request):
                raise ValueError(
                    f"`draw_tasks` must name tasks that describe images by text alone, got {request.task}, whose row "
                    f"{request.doc_id} shows an image. Janus-Pro cannot edit images: take the task out of draw_tasks."
                )
        # Each image has its own generator, and all prompts use the same seeds, so images do not depend on the batch.
        seeds = [self.seed + k for _ in batch for k in range(self.images_per_prompt)]
        images, _ = self.pipe(
            [request.context for request in batch],
            num_images_per_prompt=self.images_per_prompt,
            guidance_scale=self.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            batch_size=self.batch_size,
            return_dict=False,
        )
        generated = iter(images)
        return [self._save(request, list(itertools.islice(generated, self.images_per_prompt))) for request in batch]

    def _save(self, request: Request, images: "Sequence[Image]") -> str:
        """Save the images of a request as PNG files and return the JSON that lists their paths."""
        folder = (self.output_dir / request.task).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{request.doc_id:04d}_s{k}.png" for k in range(len(images))]
        for image, path in zip(images, paths, strict=True):
            image.save(path)
        return json.dumps({"text": "", "images": [str(path) for path in paths]})

    def _doc(self, request: Request) -> Any:
        """Return the row of the task's data set that the request is about."""
        return self.task_dict[request.task][request.split][request.doc_id]

    def _images(self, request: Request) -> list[Any]:
        """Return the images of the request's row as one flat list; tasks give them as a list, nested lists or None."""
        return list(flatten_images(request.doc_to_visual(self._doc(request))))


__all__ = ["DRAW_TASKS", "PAPER_TASKS", "JanusPro", "generation_settings", "lmms_conversation", "paper_prompt"]
