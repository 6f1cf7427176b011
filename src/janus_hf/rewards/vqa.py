"""Who answers DPG-Bench's questions: a question answerer of transformers, or the official mPLUG in another Python."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from PIL import Image

from .loading import alike


_INSTRUCTION = "Answer yes or no."


def plain_answer(text: str) -> str:
    """Lower case, without outer white space and a final full stop: "Yes." -> "yes"."""
    return text.strip().removesuffix(".").strip().lower()


class TransformersVqaJudge:
    """A question answerer of transformers: a BLIP (`Salesforce/blip-vqa-base`), or a chat model that sees.

    Its scores are not comparable with mPLUG's.

    Args:
        model: A repository or folder, or a loaded model together with `processor`.
        processor: The model's.
        name: Labels the metrics. Default: the last part of the model's name.
        device, dtype: Of a model that is loaded here. Default: the CPU, the checkpoint's type.
        batch_size: Questions at a time. The answers do not depend on it.
        max_new_tokens: Upper bound on an answer's length.
    """

    def __init__(
        self,
        model: Any = "Salesforce/blip-vqa-base",
        processor: Any = None,
        *,
        name: str | None = None,
        device: Any = "cpu",
        dtype: Any = "auto",
        batch_size: int = 16,
        max_new_tokens: int = 10,
    ) -> None:
        if isinstance(model, (str, os.PathLike)):
            model, processor = _load(model, processor, device, dtype)
        elif processor is None:
            raise ValueError("Expected the loaded model's processor beside it; got none. Pass processor=.")
        self.model, self.processor = model.eval(), processor
        self.source = str(getattr(model.config, "_name_or_path", "")) or type(model).__name__
        self.name = name or Path(getattr(model.config, "_name_or_path", "") or type(model).__name__).name
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens

    @torch.no_grad()
    def __call__(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """One answer per question, in lower case and without a full stop."""
        answers = [""] * len(questions)
        for places in alike(map(self._length, questions)).values():
            for start in range(0, len(places), self.batch_size):
                batch = places[start : start + self.batch_size]
                for place, text in zip(batch, self._batch(image, [questions[i] for i in batch]), strict=True):
                    answers[place] = text
        return answers

    @property
    def _is_chat(self) -> bool:
        return bool(getattr(self.processor, "chat_template", None))

    def _length(self, question: str) -> int:
        """Questions of one length share a batch: BLIP in transformers 5.23 attends to padding. Chats may be padded, so
        all count as equally long.
        """
        return 0 if self._is_chat else len(self.processor.tokenizer(question)["input_ids"])

    def _batch(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        inputs = self._chat(image, questions) if self._is_chat else self._plain(image, questions)
        inputs = inputs.to(self.model.device)
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        output = self.model.generate(**inputs, do_sample=False, max_new_tokens=self.max_new_tokens)
        if self._is_chat:
            output = output[:, inputs["input_ids"].shape[1] :]
        return [plain_answer(text) for text in self.processor.batch_decode(output, skip_special_tokens=True)]

    def _plain(self, image: Image.Image, questions: Sequence[str]) -> Any:
        return self.processor(images=[image] * len(questions), text=list(questions), return_tensors="pt")

    def _chat(self, image: Image.Image, questions: Sequence[str]) -> Any:
        conversations = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": image},
                        {"type": "text", "text": f"{question} {_INSTRUCTION}"},
                    ],
                }
            ]
            for question in questions
        ]
        return self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )


def _load(name: Any, processor: Any, device: Any, dtype: Any) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BlipForQuestionAnswering

    is_blip = AutoConfig.from_pretrained(name).model_type == "blip"
    loader = BlipForQuestionAnswering if is_blip else AutoModelForImageTextToText
    return loader.from_pretrained(name, dtype=dtype).to(device), processor or AutoProcessor.from_pretrained(name)


# Runs in the other Python. What modelscope prints must not get between the answers: they go out on a duplicate of
# standard output, and prints are sent to standard error.
_WORKER = """
import json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from PIL import Image
from modelscope.pipelines import pipeline
from modelscope.utils.constant import Tasks
answer = pipeline(Tasks.visual_question_answering, model=sys.argv[1], device=sys.argv[2])
for line in sys.stdin:
    request = json.loads(line)
    try:
        image = Image.open(request["image"])
        reply = {"answers": [answer({"image": image, "question": q})["text"] for q in request["questions"]]}
    except Exception as error:
        reply = {"error": repr(error)}
    answers.write(json.dumps(reply) + chr(10))
    answers.flush()
"""


class MplugJudge:
    """The official judge, mPLUG-large of modelscope, whose old dependencies need a Python environment of their own.

    `requirements.txt` of TencentQQGYLab/ELLA lists them: modelscope, fairseq, librosa==0.10.1, rouge_score<=0.0.4, ...

    A context manager; it starts the other Python at the first question and ends it on leaving.

    Args:
        python: The interpreter of that environment.
        model: modelscope's name of the model.
        device: As modelscope names it: "gpu", "gpu:0" or "cpu".
    """

    name = "mplug"

    def __init__(
        self,
        python: str | os.PathLike[str],
        *,
        model: str = "damo/mplug_visual-question-answering_coco_large_en",
        device: str = "gpu",
    ) -> None:
        self.command = [os.fspath(python), "-c", _WORKER, model, device]
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """One answer per question, as mPLUG gives it.

        Raises:
            FileNotFoundError: There is no such interpreter.
            ChildProcessError: The other Python ended; its own message is on standard error.
            ValueError: mPLUG failed on this picture.
        """
        if self._process is None:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "picture.png")
            image.save(path)
            try:
                self._process.stdin.write(json.dumps({"image": path, "questions": list(questions)}) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except BrokenPipeError:
                line = ""
        if not line:
            status = self._process.wait()
            self._process = None
            raise ChildProcessError(
                f"Expected answers of mPLUG; {self.command[0]} ended with status {status}. Its message is above; are "
                "modelscope and the rest of ELLA's requirements.txt installed there?"
            )
        reply = json.loads(line)
        if "error" in reply:
            raise ValueError(f"mPLUG failed: {reply['error']}")
        return list(reply["answers"])

    def close(self) -> None:
        """End the other Python."""
        if self._process is not None:
            process, self._process = self._process, None
            process.communicate()

    def __enter__(self) -> "MplugJudge":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


__all__ = ["MplugJudge", "TransformersVqaJudge", "plain_answer"]
