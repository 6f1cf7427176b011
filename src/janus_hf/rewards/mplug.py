"""The official judge of DPG-Bench, in another Python."""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from PIL import Image


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


__all__ = ["MplugJudge"]
