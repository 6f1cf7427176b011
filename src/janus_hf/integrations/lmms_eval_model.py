"""Janus-Pro as a model of lmms-eval:

    python -m lmms_eval --model janus_pro --model_args pretrained=deepseek-ai/Janus-Pro-7B,prompt_style=paper \\
        --tasks pope,mme,gqa --batch_size 8

Matched are lmms-eval 0.7.3's interface of "simple" models (lmms_eval/api/model.py) and the form in which its tasks
pass requests (`construct_requests` of lmms_eval/api/task.py).
"""

import ast
import itertools
import json
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from ..answering import Conversation, answer
from ..evaluation.benchmarks import protocol
from . import DEFAULT_CHECKPOINT, load_pipeline


try:
    from lmms_eval.api.model import lmms
except ImportError as error:
    raise ImportError("This is a model for lmms-eval, which is missing: pip install 'lmms-eval>=0.7.3'.") from error


# Tasks of lmms-eval whose rows hold what the authors' prompts need, and the benchmark that each is a part of.
PAPER_TASKS = {
    **dict.fromkeys(("pope", "pope_adv", "pope_pop", "pope_random"), "pope"),
    "mme": "mme",
    **dict.fromkeys(("mmbench_en_dev", "mmbench_en_dev_lite", "mmbench_en_dev_static", "mmbench_en_test"), "mmbench"),
    **dict.fromkeys(("seedbench", "seedbench_lite"), "seed"),
    **dict.fromkeys(("mmmu_val", "mmmu_test"), "mmmu"),
    "gqa": "gqa",
    "mmvet": "mmvet",
}
DRAW_TASKS = "wise+geneval+dpg_bench"

_MARK = "<image>"  # where a task wants a picture inside its text
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")


class _Request(NamedTuple):
    """`Instance.args` of output type `generate_until`."""

    context: str
    gen_kwargs: dict[str, Any]
    doc_to_visual: Callable[[Any], Any]
    doc_id: int
    task: str
    split: str


class JanusPro(lmms):
    """Answers questions, and draws for tasks that judge pictures.

    Args:
        pretrained: Repository id or folder.
        prompt_style: "lmms" takes the task's own prompt and generation settings, in the model's chat format. "paper"
            builds the authors' prompt from the row (`evaluation.protocol`) with their settings: greedy, at most 2048
            tokens, no system prompt except for MM-Vet. Known for `PAPER_TASKS` only.
        batch_size: Requests at a time. Neither answers nor pictures depend on it.
        device: Where the model runs; among several processes each has the device accelerate gives it.
        dtype: "bfloat16", "float32", ... or "auto".
        revision: Of the repository.
        system_prompt: For the style "lmms"; None is the model's own, "" none.
        draw_tasks: Beginnings of the names, joined by "+", of tasks whose prompts are to be drawn. Their answer is the
            JSON `{"text": "", "images": [path, ...]}`.
        images_per_prompt: Pictures for each prompt to be drawn.
        guidance_scale: Of drawing; None is the model's own.
        seed: The k-th picture of a prompt is drawn with `seed + k`.
        output_dir: Pictures go to `{output_dir}/{task}/{doc_id:04d}_s{k}.png`.
        max_batch_size: Passed by lmms-eval for automatic batch sizes, which there are none of here.

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
            raise ValueError(f"Expected prompt_style to be 'lmms' or 'paper'; got {prompt_style!r}.")
        if not str(batch_size).isdecimal() or int(batch_size) < 1 or int(images_per_prompt) < 1:
            raise ValueError(
                "Expected batch_size and images_per_prompt to be whole numbers of at least 1 ('auto' is not known "
                f"here); got {batch_size!r} and {images_per_prompt!r}."
            )
        self.prompt_style, self.batch_size = prompt_style, int(batch_size)
        self.system_prompt = "default" if system_prompt is None else system_prompt
        self.draw_tasks = tuple(name.lower() for name in draw_tasks.split("+") if name)
        self.images_per_prompt, self.guidance_scale, self.seed = int(images_per_prompt), guidance_scale, int(seed)
        self.output_dir = Path(output_dir)

        self.accelerator = Accelerator()
        # The evaluator indexes with the rank over all machines.
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        is_alone = self._world_size == 1
        self.device = torch.device(device) if device is not None and is_alone else self.accelerator.device
        self.pipe = load_pipeline(pretrained, dtype=dtype, device=self.device, revision=revision)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers, or JSON of drawn pictures, in the order of the requests.

        Greedy, unless a task asks for sampling. `until` cuts the answer, but for lmms-eval's default "\\n\\n", which
        would cut paragraphs; `image_aspect_ratio` concerns other models. "Yes." and "No." lose their full stop.

        Raises:
            ValueError: If the paper style has no prompt for a task, a picture cannot be read, a prompt is longer than
                the context, or a task asks for pictures to be edited, which Janus-Pro cannot.
        """
        results = [""] * len(requests)
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Janus-Pro") as progress:
            for numbers in self._batches(requests):
                batch = [_Request(*requests[number].args) for number in numbers]
                reply = self._draw if self._draws(batch[0].task) else self._answer
                for number, request, text in zip(numbers, batch, reply(batch), strict=True):
                    results[number] = text
                    self.cache_hook.add_partial("generate_until", (request.context, request.gen_kwargs), text)
                progress.update(len(batch))
        return results

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Per request what its rounds add up to: after every answer the task says what to ask next, or that it ends.

        Raises:
            ValueError: In the paper style, which has one round.
        """
        if self.prompt_style == "paper":
            raise ValueError(
                "The authors' prompts are for single questions; use prompt_style=lmms for several rounds."
            )
        return [self._rounds(request) for request in tqdm(requests, disable=self.rank != 0, desc="Janus-Pro")]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: lmms-eval's tasks disagree on whether they want a loss or a likelihood."""
        raise NotImplementedError(
            "janus_pro answers in words and ranks no given answers. Use the variant of the task that generates, as "
            "seedbench instead of seedbench_ppl."
        )

    def clean(self) -> None:
        """Lets go of the model."""
        self.pipe = None
        super().clean()

    def _batches(self, requests: Sequence[Any]) -> Iterator[list[int]]:
        """Numbers of requests that share a task and settings, `batch_size` at a time."""
        groups: dict[tuple[str, str], list[int]] = {}
        for number, instance in enumerate(requests):
            request = _Request(*instance.args)
            settings = json.dumps(request.gen_kwargs, sort_keys=True, default=str)
            groups.setdefault((request.task, settings), []).append(number)
        for numbers in groups.values():
            for start in range(0, len(numbers), self.batch_size):
                yield numbers[start : start + self.batch_size]

    def _answer(self, batch: Sequence[_Request]) -> list[str]:
        if self.prompt_style == "lmms":
            conversations = [lmms_conversation(r.context, _pictures(r.doc_to_visual(self._doc(r)))) for r in batch]
            return self._reply(conversations, batch[0].gen_kwargs)
        conversations = [self._paper_conversation(request) for request in batch]
        texts = answer(
            self.pipe.model,
            self.pipe.processor,
            conversations,
            max_new_tokens=protocol.MAX_NEW_TOKENS,
            system_prompt=protocol.system_prompt(PAPER_TASKS[batch[0].task]),
            roles=protocol.ROLES,
        )
        return [protocol.plain_yes_no(text) for text in texts]

    def _reply(self, conversations: Sequence[Conversation], gen_kwargs: Mapping[str, Any]) -> list[str]:
        until, settings = generation_settings(gen_kwargs)
        texts = answer(
            self.pipe.model, self.pipe.processor, conversations, system_prompt=self.system_prompt, **settings
        )
        for stop in until:
            texts = [text.split(stop)[0] for text in texts]
        return [protocol.plain_yes_no(text) for text in texts]

    def _paper_conversation(self, request: _Request) -> Conversation:
        doc = self._doc(request)
        prompt = paper_prompt(request.task, doc)
        pictures = _pictures(request.doc_to_visual(doc))
        return protocol.paper_conversation(prompt, pictures, image_token=self.pipe.processor.image_token)

    def _rounds(self, instance: Any) -> list[str]:
        context, gen_kwargs, doc_to_visual, doc_to_text, doc_id, task, split = instance.args
        doc = self.task_dict[task][split][doc_id]
        outputs: list[str] = []
        visuals, info = doc_to_visual(doc), None
        for number in itertools.count(1):
            outputs = [*outputs, *self._reply([lmms_conversation(context, _pictures(visuals))], gen_kwargs)]
            visuals, context, is_over, outputs, info = doc_to_text(
                doc, previous_output=outputs, round_idx=number, previous_round_info=info
            )
            if is_over:
                break
        return list(outputs)

    def _draws(self, task: str) -> bool:
        return bool(self.draw_tasks) and task.lower().startswith(self.draw_tasks)

    def _draw(self, batch: Sequence[_Request]) -> list[str]:
        for request in batch:
            if _pictures(request.doc_to_visual(self._doc(request))):
                raise ValueError(
                    f"Expected {request.task} to ask for pictures from text; its row {request.doc_id} shows one. "
                    "Janus-Pro cannot edit pictures: take the task out of draw_tasks."
                )
        seeds = [self.seed + k for _ in batch for k in range(self.images_per_prompt)]
        drawn = iter(
            self.pipe(
                [request.context for request in batch],
                num_images_per_prompt=self.images_per_prompt,
                guidance_scale=self.guidance_scale,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                batch_size=self.batch_size,
            ).images
        )
        return [self._save(request, list(itertools.islice(drawn, self.images_per_prompt))) for request in batch]

    def _save(self, request: _Request, pictures: Sequence[Any]) -> str:
        folder = (self.output_dir / request.task).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{request.doc_id:04d}_s{k}.png" for k in range(len(pictures))]
        for picture, path in zip(pictures, paths, strict=True):
            picture.save(path)
        return json.dumps({"text": "", "images": [str(path) for path in paths]})

    def _doc(self, request: _Request) -> Any:
        return self.task_dict[request.task][request.split][request.doc_id]


def lmms_conversation(context: str, pictures: Sequence[Any]) -> Conversation:
    """A task's prompt as one user turn: pictures where "<image>" stands if there is one for each, else first."""
    texts = context.split(_MARK)
    if not pictures or len(texts) != len(pictures) + 1:
        texts = ["" for _ in pictures] + [context]
    parts: list[dict[str, Any]] = []
    for text, picture in itertools.zip_longest(texts, pictures):
        if text.strip():
            parts.append({"type": "text", "text": text.strip()})
        if picture is not None:
            parts.append({"type": "image", "image": picture})
    return [{"role": "user", "content": parts}]


def generation_settings(gen_kwargs: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """A task's generation settings -> strings that end an answer, and arguments of `answering.answer`."""
    settings = {
        key: value
        for key, value in gen_kwargs.items()
        if value is not None and key not in ("until", "image_aspect_ratio", "do_sample")
    }
    until = gen_kwargs.get("until") or []
    until = [stop for stop in ([until] if isinstance(until, str) else until) if stop and stop != "\n\n"]
    temperature = settings.get("temperature", 1.0)
    is_greedy = temperature == 0 or not gen_kwargs.get("do_sample", "temperature" in settings)
    if is_greedy:
        settings = {key: value for key, value in settings.items() if key not in _SAMPLING}
    return until, {"max_new_tokens": 1024, "do_sample": not is_greedy} | settings


def paper_prompt(task: str, doc: Mapping[str, Any]) -> str:
    """The authors' prompt for a row of one of lmms-eval's data sets.

    Raises:
        ValueError: If the task is none of `PAPER_TASKS`.
    """
    if task not in PAPER_TASKS:
        raise ValueError(
            f"The authors' prompts are known for the tasks {', '.join(PAPER_TASKS)}; got {task!r}. Use "
            "prompt_style=lmms."
        )
    benchmark = PAPER_TASKS[task]
    options: dict[str, Any] = {}
    if benchmark == "mmbench":
        options = {letter: doc[letter] for letter in string.ascii_uppercase if letter in doc}
    elif benchmark == "seed":
        options = {letter: doc[f"choice_{letter.lower()}"] for letter in "ABCD"}
    elif benchmark == "mmmu":
        listed = ast.literal_eval(doc["options"]) if isinstance(doc["options"], str) else doc["options"]
        options = dict(zip(string.ascii_uppercase, listed, strict=False))
    return protocol.paper_prompt(benchmark, doc["question"], options=options, hint=doc.get("hint"))


def _pictures(visuals: Any) -> list[Any]:
    """What `doc_to_visual` returns (a list, perhaps nested, perhaps with None) -> pictures."""
    if visuals is None:
        return []
    if isinstance(visuals, (list, tuple)):
        return [picture for item in visuals for picture in _pictures(item)]
    return [visuals]


__all__ = ["DRAW_TASKS", "PAPER_TASKS", "JanusPro", "generation_settings", "lmms_conversation", "paper_prompt"]
