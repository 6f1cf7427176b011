"""Functions that turn requests of lmms-eval's tasks into conversations, prompts and generation settings.

The requests have the form in which lmms-eval 0.7.3 passes them to a model (`construct_requests` of
lmms_eval/api/task.py). This module does not import lmms-eval.
"""

import ast
import itertools
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..answering import Conversation
from ..evaluation.benchmarks import protocol
from .paper_style import lettered_options


# Task of lmms-eval -> benchmark that it belongs to, for the tasks whose rows contain all that the prompts of
# Janus-Pro's authors need.
PAPER_TASKS = {
    **dict.fromkeys(("pope", "pope_adv", "pope_pop", "pope_random"), "pope"),
    "mme": "mme",
    **dict.fromkeys(("mmbench_en_dev", "mmbench_en_dev_lite", "mmbench_en_dev_static", "mmbench_en_test"), "mmbench"),
    **dict.fromkeys(("seedbench", "seedbench_lite"), "seed"),
    **dict.fromkeys(("mmmu_val", "mmmu_test"), "mmmu"),
    "gqa": "gqa",
    "mmvet": "mmvet",
}
# Prefixes, joined by "+", of the names of tasks that judge generated images.
DRAW_TASKS = "wise+geneval+dpg_bench"

_IMAGE_MARK = "<image>"  # marks in a task's prompt where an image belongs
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")
_NOT_FOR_GENERATE = ("until", "image_aspect_ratio", "do_sample")


class Request(NamedTuple):
    """Arguments of a request that lmms-eval makes with output type `generate_until`, in lmms-eval's order.

    Args:
        context: The prompt.
        gen_kwargs: Generation settings of the task.
        doc_to_visual: Function that returns the images of a row of the task's data set.
        doc_id: Index of the row.
        task: Name of the task.
        split: Split of the data set that contains the row.
    """

    context: str
    gen_kwargs: dict[str, Any]
    doc_to_visual: Callable[[Any], Any]
    doc_id: int
    task: str
    split: str


def lmms_conversation(context: str, images: Sequence[Any]) -> Conversation:
    """Return the prompt and the images of a task as a conversation of one user turn.

    Args:
        context: The prompt, in which "<image>" may mark where images belong.
        images: The images. If the prompt has as many marks as there are images, each image replaces its mark;
            otherwise the images come first and the marks stay in the text.
    """
    texts = context.split(_IMAGE_MARK)
    if not images or len(texts) != len(images) + 1:
        texts = ["" for _ in images] + [context]
    parts: list[dict[str, Any]] = []
    for text, image in itertools.zip_longest(texts, images):
        if text.strip():
            parts.append({"type": "text", "text": text.strip()})
        if image is not None:
            parts.append({"type": "image", "image": image})
    return [{"role": "user", "content": parts}]


def generation_settings(gen_kwargs: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Translate the generation settings of an lmms-eval task into arguments of `answering.answer`.

    Returns:
        The strings before which an answer is cut, and the arguments as a dict: greedy decoding unless the task asks
        for sampling, and at most 1024 new tokens unless the task gives another number.
    """
    settings = {key: value for key, value in gen_kwargs.items() if value is not None and key not in _NOT_FOR_GENERATE}
    until = gen_kwargs.get("until") or []
    # "\n\n" is lmms-eval's default, which would cut an answer after its first paragraph.
    until = [stop for stop in ([until] if isinstance(until, str) else until) if stop and stop != "\n\n"]
    temperature = settings.get("temperature", 1.0)
    is_greedy = temperature == 0 or not gen_kwargs.get("do_sample", "temperature" in settings)
    if is_greedy:
        settings = {key: value for key, value in settings.items() if key not in _SAMPLING}
    return until, {"max_new_tokens": 1024, "do_sample": not is_greedy} | settings


def paper_prompt(task: str, doc: Mapping[str, Any]) -> str:
    """Return the prompt with which the authors of Janus-Pro evaluated it, for a row of an lmms-eval task.

    Args:
        task: Name of the task.
        doc: The row of the task's data set.

    Raises:
        ValueError: If the task is not in `PAPER_TASKS`.
    """
    if task not in PAPER_TASKS:
        raise ValueError(
            f"`task` must be one of those with a prompt of the authors, the tasks {', '.join(PAPER_TASKS)}; got "
            f"{task!r}. Use prompt_style=lmms."
        )
    benchmark = PAPER_TASKS[task]
    options: dict[str, Any] = {}
    if benchmark == "mmbench":
        options = lettered_options(doc)
    elif benchmark == "seed":
        options = {letter: doc[f"choice_{letter.lower()}"] for letter in "ABCD"}
    elif benchmark == "mmmu":
        # The data set stores the list of options as Python source.
        listed = ast.literal_eval(doc["options"]) if isinstance(doc["options"], str) else doc["options"]
        options = dict(zip(string.ascii_uppercase, listed, strict=False))
    return protocol.paper_prompt(benchmark, doc["question"], options=options, hint=doc.get("hint"))


__all__ = ["DRAW_TASKS", "PAPER_TASKS", "Request", "generation_settings", "lmms_conversation", "paper_prompt"]
